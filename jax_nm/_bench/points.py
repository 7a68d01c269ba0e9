"""What is measured: points, the paper's sweep, and the named suites."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable
from typing import Any

from jax_nm import _tuning
from jax_nm._pattern import Pattern

OPS = ("spmm", "spmm_t", "sddmm", "step")
DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("default", "highest")
EPILOGUES = ("bias+gelu",)
IMPLEMENTATIONS = ("sparse", "dense", *_tuning.kernels("spmm"))

# The sweep of NM-SpMM (arXiv 2503.01253): five row counts, the linear layers of Llama.
SWEEP_ROWS = (256, 512, 1024, 2048, 4096)
SWEEP_COLS_DEPTH = (
    *((2048, 2048), (6144, 2048), (2048, 5632), (5632, 2048)),
    *((4096, 4096), (12288, 4096), (4096, 11008), (11008, 4096)),
    *((5120, 5120), (15360, 5120), (5120, 13824), (13824, 5120)),
    *((6656, 6656), (19968, 6656), (6656, 17920), (17920, 6656)),
    *((8192, 8192), (24576, 8192), (8192, 22016), (22016, 8192)),
)
SWEEP_KEPT = (16, 12, 8, 4)  # of windows of 32

# One to a few tokens of a sequence, the larger linear layers of Llama.
DECODE_ROWS = (1, 4, 16, 32, 64)
DECODE_COLS_DEPTH = ((8192, 8192), (28672, 8192), (4096, 14336), (8192, 28672))


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement: an operation on one problem.

    `op` is 'spmm', 'spmm_t', 'sddmm', or 'step': the product and both gradients. With
    `epilogue` 'bias+gelu' the sparse product is spmm(x, w, bias, 'gelu'); what it is
    compared with stays the bare dense product. `implementation` is what spmm is asked
    for; what ran may be another one, and stands in the results.
    """

    op: str
    rows: int
    cols: int
    depth: int
    pattern: Pattern
    dtype: str
    precision: str = "default"
    epilogue: str | None = None
    implementation: str | None = None

    @property
    def kept(self) -> int:
        return self.pattern.kept(self.depth)

    @property
    def shape(self) -> tuple:
        """What it shares with the points that are timed against one dense product."""
        return (
            self.op,
            self.rows,
            self.cols,
            self.depth,
            self.dtype,
            self.precision,
        )

    def as_json(self) -> dict[str, Any]:
        pattern = self.pattern
        return {
            "op": self.op,
            "rows": self.rows,
            "cols": self.cols,
            "depth": self.depth,
            "n": pattern.n,
            "m": pattern.m,
            "vector_length": pattern.vector_length,
            "dtype": self.dtype,
            "precision": self.precision,
            "epilogue": self.epilogue,
            "requested": self.implementation,
        }


def by_shape(points: Iterable[Point]) -> list[list[Point]]:
    """The points in groups of one shape, in the order of their first appearance."""
    groups: dict[tuple, list[Point]] = {}
    for point in points:
        groups.setdefault(point.shape, []).append(point)
    return list(groups.values())


def _fp32() -> Iterable[Point]:
    """The paper's own sweep: 100 shapes at its four patterns, without TF32."""
    for rows, (cols, depth), n in itertools.product(
        SWEEP_ROWS, SWEEP_COLS_DEPTH, SWEEP_KEPT
    ):
        yield Point("spmm", rows, cols, depth, Pattern(n, 32, 32), "float32", "highest")


def _generic() -> Iterable[Point]:
    """What the kernels that are right for every input reach on the paper's ground."""
    shapes = (
        (4096, 4096, 4096),
        (4096, 12288, 4096),
        (1024, 4096, 4096),
        (256, 4096, 4096),
    )
    for shape, n in itertools.product(shapes, (16, 8, 4)):
        yield Point("spmm", *shape, Pattern(n, 32, 32), "float32", "highest")
    square = (4096, 4096, 4096)
    for n in (16, 8, 4):
        yield Point("spmm", *square, Pattern(n, 32, 128), "float32", "highest")
    for op, n in itertools.product(("spmm_t", "sddmm"), (16, 8, 4)):
        yield Point(op, *square, Pattern(n, 32, 32), "float32", "highest")
    for n in (16, 8, 4):
        pattern = Pattern(n, 32, 32)
        yield Point("spmm", *square, pattern, "float32", implementation="sparse")


def _hopper() -> Iterable[Point]:
    """Half precision with long vectors: the ground of tensor cores."""
    for rows, (cols, depth), n, length in itertools.product(
        SWEEP_ROWS, SWEEP_COLS_DEPTH, SWEEP_KEPT, (256, 128)
    ):
        yield Point("spmm", rows, cols, depth, Pattern(n, 32, length), "bfloat16")
    square, large = (4096, 4096, 4096), (8192, 8192, 8192)
    beyond = [("float16", square), ("float16", large), ("float16", (1024, 4096, 4096))]
    beyond.append(("bfloat16", large))
    for (dtype, shape), n, length in itertools.product(beyond, (16, 8, 4), (256, 128)):
        yield Point("spmm", *shape, Pattern(n, 32, length), dtype)
    # Odd sizes, and their aligned neighbours as far as the sweep does not hold them.
    odd = [(rows, 4096, 4096) for rows in (192, 197, 1000, 4095)]
    odd += [(1024, cols, 4096) for cols in (50256, 50257)]
    for shape, length in itertools.product(odd, (256, 128)):
        yield Point("spmm", *shape, Pattern(8, 32, length), "bfloat16")
    for n, length in itertools.product((16, 8, 4), (256, 128)):
        pattern = Pattern(n, 32, length)
        yield Point("spmm", *square, pattern, "bfloat16", epilogue="bias+gelu")


def _backward() -> Iterable[Point]:
    """Both gradients in half precision, alone and in a whole training step."""
    many_rows = [rows for rows in SWEEP_ROWS if rows >= 1024]
    for rows, (cols, depth), n in itertools.product(
        many_rows, SWEEP_COLS_DEPTH, SWEEP_KEPT
    ):
        yield Point("sddmm", rows, cols, depth, Pattern(n, 32, 128), "bfloat16")
    squares = [(4096, 4096, 4096), (8192, 8192, 8192)]
    for shape, n, length in itertools.product(
        [*squares, (4096, 4096, 11264)], (16, 8, 4), (128, 256)
    ):
        yield Point("spmm_t", *shape, Pattern(n, 32, length), "bfloat16")
    for shape, n in itertools.product(squares, (16, 8, 4)):
        yield Point("step", *shape, Pattern(n, 32, 256), "bfloat16")


def _small() -> Iterable[Point]:
    """Where dense products run on tensor cores: short vectors, and TF32."""
    squares = ((8192, 8192, 8192), (4096, 4096, 4096))
    for shape, n, length in itertools.product(squares, (16, 8, 4), (64, 32, 16)):
        yield Point("spmm", *shape, Pattern(n, 32, length), "bfloat16")
    shapes = (
        (1024, 4096, 4096),
        (4096, 4096, 4096),
        (4096, 12288, 4096),
        (4096, 4096, 11008),
        (8192, 8192, 8192),
    )
    for shape, n, length in itertools.product(shapes, (16, 8, 4), (128, 32)):
        yield Point("spmm", *shape, Pattern(n, 32, length), "float32")


def _tf32() -> Iterable[Point]:
    """Float32 as JAX multiplies it by default, the sweep from 1024 rows on."""
    for rows, (cols, depth), n in itertools.product(
        SWEEP_ROWS[2:], SWEEP_COLS_DEPTH, SWEEP_KEPT
    ):
        yield Point("spmm", rows, cols, depth, Pattern(n, 32, 128), "float32")


def _decode() -> Iterable[Point]:
    """Few rows, in the row-major layout that such calls have: memory's ground."""
    for rows, (cols, depth), n, length in itertools.product(
        DECODE_ROWS, DECODE_COLS_DEPTH, (16, 8, 4), (128, 32)
    ):
        yield Point("spmm", rows, cols, depth, Pattern(n, 32, length), "bfloat16")


def _dispatch() -> Iterable[Point]:
    """What `implementation=None` runs, where it should never be slower than dense.

    The sweep and the shapes of decoding: L = 64 and 128 at 16:32 and 4:32 in full, of
    everything else a sample; and shapes that no estimate was fitted to.
    """
    chance = random.Random(0)
    shapes = [
        (rows, cols, depth)
        for rows, (cols, depth) in itertools.product(SWEEP_ROWS, SWEEP_COLS_DEPTH)
    ]
    shapes += [
        (rows, cols, depth)
        for rows, (cols, depth) in itertools.product(DECODE_ROWS, DECODE_COLS_DEPTH)
    ]
    lengths = (64, 128, 8, 16, 32, 256)
    for shape, n, length in itertools.product(shapes, SWEEP_KEPT, lengths):
        in_full = n in (16, 4) and length in (64, 128)
        if in_full or chance.random() < 0.15:
            yield Point("spmm", *shape, Pattern(n, 32, length), "bfloat16")
    for _ in range(100):
        rows = round(2 ** chance.uniform(0, 13))
        cols, depth = (16 * round(2 ** chance.uniform(5, 10.5)) for _ in range(2))
        pattern = Pattern(chance.choice(SWEEP_KEPT), 32, chance.choice((32, 64, 128)))
        yield Point("spmm", rows, cols, depth, pattern, "bfloat16")


def _quick() -> Iterable[Point]:
    """A look at this machine in seconds."""
    for length, n in itertools.product((32, 128), (16, 8, 4)):
        yield Point("spmm", 512, 2048, 2048, Pattern(n, 32, length), "float32")


SUITES = {
    "quick": _quick,
    "generic": _generic,
    "hopper": _hopper,
    "backward": _backward,
    "small": _small,
    "tf32": _tf32,
    "decode": _decode,
    "dispatch": _dispatch,
    "fp32": _fp32,
}
