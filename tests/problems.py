"""The ragged problems that every kernel is tested on, and data for them.

Each problem is there for one way of being awkward; its name says which. Padding slots
always hold NaN values and arbitrary indices, so that a kernel that touches one fails.
"""

from __future__ import annotations

import dataclasses
import math
import types
import zlib
from typing import NamedTuple

import jax
import numpy as np

from jax_nm import NMArray, Pattern, _lowering, _tuning
from jax_nm._primitives import Spec

OPS = ("spmm", "spmm_t", "sddmm")
# The kernels that compute float32 from products in bfloat16.
SPLIT = {kernel for name, kernel in _tuning.kernels().items() if "_split_" in name}
# Those that compute float32 in TF32 from transposed values.
TF32 = frozenset(k for name, k in _tuning.kernels().items() if "tf32" in name)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Sizes, pattern and dtype of one product.

    x is ``[*batch, *lead, depth]``, y is ``[*batch, *lead, cols]``.
    """

    name: str
    lead: tuple[int, ...]
    depth: int
    cols: int
    pattern: Pattern
    dtype: str = "float32"
    batch: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}-{self.dtype}"

    @property
    def rows(self) -> int:
        return math.prod(self.lead)

    @property
    def kept(self) -> int:
        return -(-self.depth // self.pattern.m) * self.pattern.n

    @property
    def groups(self) -> int:
        return -(-self.cols // self.pattern.vector_length)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "x": (*self.batch, *self.lead, self.depth),
            "dy": (*self.batch, *self.lead, self.cols),
            "values": (*self.batch, self.kept, self.cols),
            "indices": (*self.batch, self.groups, self.kept),
        }

    def reduction(self, op: str) -> int:
        """The most terms that one element of the result sums."""
        return {"spmm": self.kept, "spmm_t": self.cols, "sddmm": self.rows}[op]

    def spec(self, **options) -> Spec:
        return Spec(self.pattern, self.depth, len(self.batch), **options)

    def precision(self):
        """A context in which arrays of this dtype exist."""
        return jax.enable_x64(self.dtype == "float64")

    def rng(self, *salt: object) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(repr((self, salt)).encode()))


def _problem(name, lead, depth, cols, pattern, dtype="float32", batch=()):
    lead = (lead,) if isinstance(lead, int) else lead
    return Problem(name, lead, depth, cols, Pattern.parse(pattern), dtype, batch)


_RAGGED = [
    _problem("no_rows", 0, 64, 32, "2:4:8"),
    _problem("no_depth", 70, 0, 6, "2:4:2"),
    _problem("no_cols", 70, 8, 0, "2:4:2"),
    _problem("no_batch", 4, 8, 6, "2:4:2", batch=(0,)),
    _problem("one_row", 1, 96, 96, "8:32:32"),
    _problem("one_col", 66, 40, 1, "2:8:16"),
    _problem("one_deep", 5, 1, 3, "2:4:2"),
    _problem("odd_rows", 7, 60, 30, "2:4:3"),
    _problem("rows_3", 3, 66, 70, "5:8:64"),
    _problem("rows_16", 16, 200, 600, "8:32:128"),
    _problem("rows_17", 17, 200, 136, "4:16:32"),
    _problem("rows_65", 65, 128, 128, "8:32:32"),
    _problem("rows_130", 130, 96, 64, "8:16:16"),
    _problem("tail_below_n", 33, 66, 24, "4:8:8"),
    _problem("tail_above_n", 33, 70, 24, "4:8:8"),
    _problem("one_col_group", 9, 32, 33, "2:8:32"),
    _problem("vector_beyond_cols", 12, 32, 20, "2:8:64"),
    _problem("all_kept", 10, 24, 16, "8:8:8"),
    _problem("all_kept_tail", 10, 21, 16, "8:8:8"),
    _problem("one_kept", 67, 64, 48, "1:8:16"),
    _problem("one_in_one", 5, 9, 6, "1:1:2"),
    _problem("odd_pattern", 31, 45, 77, "3:7:5"),
    _problem("window_256", 35, 600, 40, "17:256:16"),
    _problem("window_256_one", 66, 300, 24, "1:256:8"),
    _problem("window_256_all", 3, 256, 9, "256:256:4"),
    _problem("vector_1", 70, 48, 37, "2:4:1"),
    _problem("vector_64", 64, 64, 130, "12:32:64"),
    _problem("vector_128", 129, 96, 300, "8:32:128"),
    _problem("vector_256", 68, 64, 520, "4:16:256"),
    _problem("tiles", 300, 1000, 520, "8:32:32"),
    _problem("tiles_128", 300, 1000, 520, "8:32:128"),
    _problem("tiles_256", 264, 520, 600, "16:32:256"),
    _problem("lead_axes", (2, 3, 11), 48, 40, "4:16:8"),
    _problem("batched", 70, 40, 36, "4:16:8", batch=(3,)),
    _problem("batched_lead", (3, 5), 22, 20, "3:8:4", batch=(2, 2)),
]

# What the tensor cores of Hopper take: rows that are a multiple of 8, a vector length
# that is one of 64 or spans all columns. Tiles are 64, 128 or 256 by 128, they step
# over 32 or 64 slots in a ring of 4 to 8 stages, and 132 blocks walk over them; where
# that leaves blocks idle, they share the slots of a tile.
_HOPPER = [
    _problem("hopper_64", 72, 200, 392, "12:32:64"),
    _problem("hopper_128", 136, 520, 392, "8:32:128"),
    _problem("hopper_192", 104, 90, 200, "3:7:192"),
    _problem("hopper_256", 264, 200, 392, "4:16:256"),
    _problem("hopper_one_group", 88, 96, 392, "8:32:512"),
    _problem("hopper_batched", 72, 100, 136, "8:32:64", batch=(2,)),
    _problem("hopper_few_slots", 72, 8, 72, "1:8:64"),
    _problem("hopper_eighth", 264, 1090, 264, "4:32:128"),
    _problem("hopper_sixteenth", 136, 1330, 200, "2:32:64"),
    _problem("hopper_partial_blocks", 136, 706, 200, "3:64:64"),
    _problem("hopper_partial_batched", 72, 300, 136, "7:16:128", batch=(2,)),
    _problem("hopper_many_steps", 136, 1400, 264, "16:32:128"),
    _problem("hopper_many_tiles", 264, 40, 136, "8:32:256", batch=(45,)),
    _problem("hopper_bands", 1032, 40, 1160, "8:32:128"),
    _problem("hopper_shared_tiles", 136, 16000, 264, "16:32:128"),
    _problem("hopper_shared_batched", 136, 8200, 200, "16:32:64", batch=(3,)),
    _problem("hopper_odd_cols", 136, 520, 393, "8:32:128"),
    _problem("hopper_odd_cols_batched", 72, 100, 131, "8:32:64", batch=(2,)),
]

# What the skinny kernels take: at most 64 rows, as tiles of 8, 16, 32 or 64, and a
# vector length that is a multiple of 16, or of 4 in float32. Tiles are 64 to 512
# columns wide, of 16-column operands; groups of warps take steps of 16 to 64 slots in
# turn, or 16 slots each of a step of 16 to 128, and clusters or the workspace split
# what is deep.
_SKINNY = [
    _problem("skinny_row", 1, 1024, 208, "16:32:32"),
    _problem("skinny_rows_8", 8, 600, 264, "8:32:128"),
    _problem("skinny_rows_9", 9, 328, 144, "4:32:32"),
    _problem("skinny_rows_33", 33, 330, 197, "16:32:16"),
    _problem("skinny_rows_64", 64, 2056, 600, "16:32:32"),
    _problem("skinny_deep", 16, 9000, 72, "4:32:128"),
    _problem("skinny_long", 64, 24000, 200, "16:32:32"),
    _problem("skinny_wide", 20, 64, 2000, "8:32:48"),
    _problem("skinny_odd_windows", 12, 451, 96, "5:9:32"),
    _problem("skinny_wide_windows", 6, 1100, 80, "17:256:32"),
    _problem("skinny_short", 17, 40, 33, "2:8:64"),
    _problem("skinny_batched", 13, 264, 136, "12:16:32", batch=(3,)),
]
# What the kernel for short vectors takes: rows that are a multiple of 8, a vector
# length that is one of 8 or spans all columns, windows with whole products of 16 slots
# in at most 256 features. Tiles are 128 by 256, of which 132 blocks walk over several.
_SHORT = [
    _problem("short_32", 136, 1100, 392, "8:32:32"),
    _problem("short_16", 264, 520, 280, "16:32:16"),
    _problem("short_8", 136, 330, 264, "4:32:8"),
    _problem("short_24", 72, 300, 136, "12:32:24"),
    _problem("short_odd_windows", 136, 451, 96, "16:21:40"),
    _problem("short_tail", 72, 4 * 32 + 3, 72, "8:32:8"),
    _problem("short_batched", 136, 706, 264, "8:32:32", batch=(3,)),
    _problem("short_many_tiles", 1032, 136, 5000, "16:32:32"),
]
# What the kernels take that split float32: rows and columns that are a multiple of 4,
# vectors and windows as above. Tiles are 64 by 256; where 132 blocks are not a divisor
# of them, clusters of 2 to 4 blocks share the slots of the last ones. Those of sddmm
# take any number of columns and of slots, tiles are 64 or 32 slots by 256 columns of
# what may be more than one box of 256 features, and the shares are rows.
_SPLIT = [
    _problem("split_32", 132, 1100, 392, "8:32:32"),
    _problem("split_16", 260, 520, 280, "16:32:16"),
    _problem("split_8", 68, 330, 264, "4:32:8"),
    _problem("split_24", 76, 300, 136, "12:32:24"),
    _problem("split_odd", 127, 200, 513, "8:32:64"),
    _problem("split_odd_windows", 129, 451, 96, "16:21:40"),
    _problem("split_tail", 70, 4 * 32 + 3, 516, "8:32:8"),
    _problem("split_batched", 132, 706, 264, "8:32:32", batch=(3,)),
    _problem("split_one_group", 100, 270, 300, "8:16:512"),
    _problem("split_all_kept", 68, 100, 260, "16:16:32"),
    _problem("split_many_tiles", 1028, 32, 2564, "16:32:32"),
    _problem("split_shared_tiles", 136, 8200, 264, "16:32:32"),
    _problem("split_shared_batched", 68, 4100, 520, "8:32:16", batch=(5,)),
    _problem("split_shared_last", 580, 1100, 3596, "8:32:32"),
    _problem("split_two_boxes", 132, 600, 264, "16:96:32"),
    _problem("split_odd_slots", 100, 450, 261, "5:12:40"),
    _problem("split_long_windows", 72, 700, 264, "80:128:32"),
    _problem("split_many_slots", 68, 4200, 1100, "16:32:32"),
]
# What the kernels take that multiply float32 in TF32: rows that are a multiple of 4, a
# vector length that is one of 128, or of 64, or spans all columns. Tiles are 128 or 256
# by 128; few tiles are shared by clusters of 2 to 4 blocks. Slots are padded to a
# multiple of 4.
_TF32 = [
    _problem("tf32_128", 132, 1100, 392, "8:32:128"),
    _problem("tf32_64", 260, 520, 280, "16:32:64"),
    _problem("tf32_odd", 127, 200, 513, "8:32:64"),
    _problem("tf32_odd_windows", 129, 451, 96, "5:9:128"),
    _problem("tf32_wide_windows", 68, 700, 200, "33:256:64"),
    _problem("tf32_tail", 70, 4 * 32 + 3, 516, "6:32:128"),
    _problem("tf32_batched", 132, 706, 264, "8:32:128", batch=(3,)),
    _problem("tf32_one_group", 100, 270, 300, "8:16:512"),
    _problem("tf32_all_kept", 68, 100, 260, "16:16:64"),
    _problem("tf32_one_slot", 300, 30, 130, "1:32:128"),
    _problem("tf32_many_tiles", 2052, 40, 4100, "8:32:128"),
    _problem("tf32_shared_tiles", 136, 8200, 264, "16:32:128"),
    _problem("tf32_shared_batched", 68, 4100, 520, "8:32:64", batch=(5,)),
]
_HOPPER_ROUNDS = _problem("hopper_shared_last", 136, 4096, 17000, "8:32:128")


def _named(names: str, dtype: str) -> list[Problem]:
    chosen = [p for p in _RAGGED if p.name in names.split()]
    return [dataclasses.replace(p, dtype=dtype) for p in chosen]


_HALF = (
    "no_rows one_row one_col odd_rows rows_3 rows_16 rows_65 tail_below_n "
    "one_col_group odd_pattern window_256 vector_1 vector_128 tiles tiles_128 "
    "tiles_256 batched"
)
PROBLEMS: list[Problem] = [
    *_RAGGED,
    *_named(_HALF, "bfloat16"),
    *_named(_HALF, "float16"),
    *(dataclasses.replace(p, dtype="bfloat16") for p in _HOPPER),
    *(dataclasses.replace(p, dtype="float16") for p in _HOPPER),
    *(dataclasses.replace(p, dtype="bfloat16") for p in _SHORT),
    *(dataclasses.replace(p, dtype="float16") for p in _SHORT),
    *_SPLIT,
    *_TF32,
    dataclasses.replace(_HOPPER_ROUNDS, dtype="bfloat16"),
    *_SKINNY,
    *(dataclasses.replace(p, dtype="bfloat16") for p in _SKINNY),
    *(dataclasses.replace(p, dtype="float16") for p in _SKINNY),
    *_named(
        "one_row rows_3 rows_65 tail_below_n odd_pattern vector_128 batched", "float64"
    ),
]
# One problem for each way of being ragged, where a test is about something else.
FEW: list[Problem] = [
    p
    for p in PROBLEMS
    if p.name in ("rows_65", "tail_below_n", "odd_pattern", "batched", "tf32_tail")
]


class Operands(NamedTuple):
    """NumPy operands of all three products of one problem."""

    x: np.ndarray
    dy: np.ndarray
    values: np.ndarray
    indices: np.ndarray

    def of(self, op: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, second = {
            "spmm": (self.x, self.values),
            "spmm_t": (self.dy, self.values),
            "sddmm": (self.x, self.dy),
        }[op]
        return first, second, self.indices

    def weight(self, problem: Problem) -> NMArray:
        return NMArray(
            self.values, self.indices, problem.pattern, problem.depth, problem.cols
        )


def integers(problem: Problem, largest: int = 4) -> Operands:
    """Small integers: every sum of every product is exact in the accumulator."""
    rng = problem.rng("integers")
    draw = {
        name: rng.integers(-largest, largest + 1, shape).astype(np.float64)
        for name, shape in problem.shapes.items()
        if name != "indices"
    }
    for array in draw.values():
        array[array == 0] = -0.0
    return _finish(problem, rng, draw)


def gaussians(problem: Problem) -> Operands:
    """Random reals."""
    rng = problem.rng("gaussians")
    draw = {
        name: rng.standard_normal(shape)
        for name, shape in problem.shapes.items()
        if name != "indices"
    }
    return _finish(problem, rng, draw)


def random_indices(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """Ascending offsets of each window and group; any byte in the padding slots."""
    n, m = problem.pattern.n, problem.pattern.m
    shape = (*problem.batch, problem.groups, problem.kept // n, m)
    keys = rng.random(shape)
    windows = np.arange(shape[-2])[:, None]
    keys[..., windows * m + np.arange(m) >= problem.depth] = 2  # sorts behind the rest
    offsets = np.sort(np.argsort(keys, axis=-1)[..., :n], axis=-1).astype(np.uint8)
    offsets = offsets.reshape(problem.shapes["indices"])
    noise = rng.integers(0, 256, offsets.shape).astype(np.uint8)
    return np.where(is_padding(problem), noise, offsets)


def cuda_stub() -> types.ModuleType:
    """In place of the CUDA module, to lower for a GPU where nothing is run."""
    module = types.ModuleType("_cuda")
    module.has_wgmma = lambda: True
    return module


def is_padding(problem: Problem) -> np.ndarray:
    """bool [kept]: the slots of a ragged last window that hold nothing."""
    n, m = problem.pattern.n, problem.pattern.m
    slot = np.arange(problem.kept)
    return slot // n * m + slot % n >= problem.depth


def cuda_kernels(op: str, problem: Problem, *epilogue, highest=False) -> list[int]:
    """The ids of the kernels that can compute this problem as it is lowered here.

    `epilogue` is the name of a fused activation and whether there is a bias.
    """
    capability = str(jax.devices("cuda")[0].compute_capability).replace(".", "")
    dtype = jax.numpy.dtype(problem.dtype)
    batch, rows, cols = math.prod(problem.batch), problem.rows, problem.cols

    def can_run(kernel: int) -> bool:
        spec = problem.spec(kernel=kernel, arch=int(capability), highest=highest)
        layouts = _lowering.layouts(op, "cuda", dtype, (batch, rows, cols), spec)
        padding = _lowering.row_padding("cuda", rows, dtype, any(layouts))
        sizes = (batch, rows + padding, cols)
        arguments = _lowering.problem_arguments(
            op, dtype, dtype, *sizes, spec, *layouts, *epilogue
        )
        try:
            _tuning.choose(*arguments)
        except ValueError:
            return False
        return True

    return [kernel for kernel in _tuning.kernels().values() if can_run(kernel)]


def on_tensor_cores(platform: str, op: str, problem: Problem, *, highest) -> bool:
    """Whether this product may be summed on tensor cores, which truncate."""
    if platform != "cuda":
        return False
    if problem.dtype != "float32" or not highest:
        return True
    return not SPLIT.isdisjoint(cuda_kernels(op, problem, highest=True))


def _finish(problem, rng, draw) -> Operands:
    values = draw["values"]
    if problem.kept > problem.pattern.n:
        values[..., : problem.pattern.n, :] = 0  # the first window holds zeros only
    values[..., is_padding(problem), :] = np.nan
    dtype = jax.numpy.dtype(problem.dtype)
    return Operands(
        draw["x"].astype(dtype),
        draw["dy"].astype(dtype),
        values.astype(dtype),
        random_indices(problem, rng),
    )
