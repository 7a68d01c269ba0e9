"""From a primitive to a custom call: targets, layouts, padding and workspace.

Every call crosses into C++ in one canonical form, matrices of rank 3 with the product
of the weight's batch axes in front, and the lead axes of the dense operands flattened
to `rows`. A platform without kernels runs `_reference` instead, and where that is
faster or asked for, the product goes by way of `_dense`. The handler chooses the
kernel, unless one is asked for or `_measured` knows the fastest.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import types
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm import _dense, _reference

if TYPE_CHECKING:
    from jax_nm._pattern import Pattern
    from jax_nm._primitives import Spec

try:
    from jax_nm import _choice, _cpu, _measured, _tuning
except ImportError as error:
    raise ImportError(
        "jax_nm: the compiled modules are missing, so this is probably the source "
        "tree and not the installed package. Run `pip install .` in the checkout, then "
        "start Python elsewhere, or use the installed console script `jax-nm`."
    ) from error

# None is the rule of every platform that is not named.
PLATFORMS = ("cpu", "cuda", None)

# Where rows are contiguous a gathered reduction index is a contiguous read. Up to this
# many rows a transpose in front of the call has to pay, see `layouts`.
FEW_ROWS = 64

_KERNEL_DTYPES = {
    "cpu": ("float32", "bfloat16", "float16", "float64"),
    "cuda": ("float32", "bfloat16", "float16"),
}
_VALUES_TRANSPOSED = 4  # common/problem.h: kValuesTransposed
_ALLOW_TF32 = 1  # common/problem.h: kAllowTF32
_ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_exact": 3, "silu": 4}  # Activation

OPS = ("spmm", "spmm_t", "sddmm")
FUSED = "spmm_fused"
EXPAND = "expand"


@functools.cache
def cuda_module() -> types.ModuleType | None:
    """The compiled CUDA kernels, or None in a build without them."""
    try:
        return importlib.import_module("jax_nm._cuda")
    except ModuleNotFoundError:
        return None


def register_targets() -> None:
    """Registers the FFI targets of every compiled platform, once per process."""
    for target, handler in _cpu.registrations().items():
        jax.ffi.register_ffi_target(target, handler, platform="cpu")
    cuda = cuda_module()
    if cuda is not None:
        for target, handler in cuda.registrations().items():
            jax.ffi.register_ffi_target(target, handler, platform="CUDA")


register_targets()


def target_name(op: str) -> str:
    """The versioned FFI target; a changed contract gets a new version."""
    return f"jax_nm.{op}.v1"


def spmm(
    platform: str | None,
    x: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    spec: Spec,
    out_dtype: np.dtype,
    result_layout: str | None,
) -> jax.Array:
    (y,) = _call("spmm", platform, x, values, indices, spec, out_dtype, result_layout)
    return y


def spmm_t(
    platform: str | None,
    dy: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    *,
    spec: Spec,
    out_dtype: np.dtype,
) -> jax.Array:
    (dx,) = _call("spmm_t", platform, dy, values, indices, spec, out_dtype)
    return dx


def sddmm(
    platform: str | None,
    x: jax.Array,
    dy: jax.Array,
    indices: jax.Array,
    *,
    spec: Spec,
    out_dtype: np.dtype,
) -> jax.Array:
    (dvalues,) = _call("sddmm", platform, x, dy, indices, spec, out_dtype)
    return dvalues


class Epilogue(NamedTuple):
    """What the kernel of a fused spmm does to its sums: activation(sums + bias)."""

    bias: Any = None  # float32 [*batch, cols]
    activation: str | None = None
    emit_sum: bool = False  # gives sums + bias as a second result


def spmm_fused(
    platform: str | None,
    x: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    *bias: jax.Array,
    spec: Spec,
    out_dtype: np.dtype,
    result_layout: str | None,
    activation: str | None,
    emit_sum: bool,
) -> list[jax.Array]:
    """In one kernel where there is one; else XLA fuses what follows the sums."""
    epilogue = Epilogue(bias[0] if bias else None, activation, emit_sum)
    sizes = _batch_and_rows(x, spec)
    if _is_empty(*x.shape, *values.shape):
        fused = False
    elif goes_dense(
        "spmm", platform, x.dtype, out_dtype, sizes, values.shape[-1], spec
    ):
        fused, spec = False, dataclasses.replace(spec, implementation="dense")
    else:
        fused = fuses(platform, x.dtype) and has_kernel(platform, x.dtype)
    operands = (x, values, indices, spec)
    if fused:
        return _call("spmm", platform, *operands, out_dtype, result_layout, epilogue)
    wide = _reference.accumulator(x.dtype)
    (sums,) = _call("spmm", platform, *operands, wide, result_layout)
    results = _reference.finish(sums, epilogue.bias, activation, spec.batch_ndim)
    return [result.astype(out_dtype) for result in results[: 1 + emit_sum]]


def fuses(platform: str | None, dtype: Any) -> bool:
    """Whether kernels for this platform add a bias and apply an activation.

    On a CPU both cost little beside the product, and XLA's own code serves.
    """
    return platform == "cuda" and has_kernel_dtype(platform, dtype)


def _batch_and_rows(first: jax.Array, spec: Spec) -> tuple[Any, Any]:
    """The products of the weight's batch axes and of the lead axes."""
    ndim = spec.batch_ndim
    return math.prod(first.shape[:ndim]), math.prod(first.shape[ndim:-1])


def _is_empty(*sizes: Any) -> bool:
    return any(size == 0 for size in sizes if not _symbolic(size))


def _call(
    op: str,
    platform: str | None,
    first: jax.Array,
    second: jax.Array,
    indices: jax.Array,
    spec: Spec,
    out_dtype: np.dtype,
    result_layout: str | None = None,
    epilogue: Epilogue | None = None,
) -> list[jax.Array]:
    ndim, pattern = spec.batch_ndim, spec.pattern
    batch = first.shape[:ndim]
    lead = first.shape[ndim:-1]
    # The lead axes are merged; sddmm has them on both operands and not on its result.
    merged = _batch_and_rows(first, spec)
    first = first.reshape(*merged, first.shape[-1])
    if op == "sddmm":
        second = second.reshape(*merged, second.shape[-1])
        shape = (*batch, pattern.kept(spec.depth), second.shape[-1])
    else:
        second = second.reshape(merged[0], *second.shape[-2:])
        cols = second.shape[-1]
        shape = (*batch, *lead, cols if op == "spmm" else spec.depth)
    indices = indices.reshape(merged[0], *indices.shape[-2:])

    if _is_empty(*first.shape, *second.shape, spec.depth):
        # An empty sum; XLA's CPU compiler cannot lay out its operands feature-major.
        return [jnp.zeros(shape, out_dtype)]
    dtype = np.dtype(first.dtype)
    name = _choice.kernel_name(spec.implementation)
    if name is not None:
        _choice.check_built(name, platform, dtype, has_kernel(platform, dtype))
    if goes_dense(op, platform, dtype, out_dtype, merged, second.shape[-1], spec):
        results = [
            _dense.mapped(
                op,
                first,
                second,
                indices,
                pattern=spec.pattern,
                depth=spec.depth,
                highest=spec.highest,
                expander=expander(platform),
            )
        ]
    elif not has_kernel(platform, dtype):
        results = [_mapped_reference(op, first, second, indices, spec)]
    else:
        results = _ffi(
            op,
            platform,
            first,
            second,
            indices,
            spec,
            out_dtype,
            result_layout,
            epilogue,
        )
    # Results leave the kernels in the operands' dtype or unrounded: this rounds once.
    return [result.astype(out_dtype).reshape(shape) for result in results]


def has_kernel(platform: str | None, dtype: Any) -> bool:
    """Whether a compiled kernel serves this platform and compute dtype."""
    if platform == "cuda" and cuda_module() is None:
        _warn_no_cuda()
        return False
    return has_kernel_dtype(platform, dtype)


def has_kernel_dtype(platform: str | None, dtype: Any) -> bool:
    """Whether jax_nm has kernels of this compute dtype for the platform at all."""
    return np.dtype(dtype).name in _KERNEL_DTYPES.get(platform or "", ())


@functools.cache
def _warn_no_cuda() -> None:
    warnings.warn(
        "jax_nm was built without its CUDA kernels; sparse products on this GPU run as "
        "plain XLA operations and are slower than dense. Reinstall with "
        "`JAX_NM_CUDA=ON pip install .`.",
        stacklevel=2,
    )


def _mapped_reference(
    op: str,
    first: jax.Array,
    second: jax.Array,
    indices: jax.Array,
    spec: Spec,
) -> jax.Array:
    fun = functools.partial(
        getattr(_reference, op), pattern=spec.pattern, depth=spec.depth
    )
    return jax.vmap(fun)(first, second, indices)


def expander(platform: str | None) -> _dense.Expander | None:
    """The kernel that expands a weight, where there is one."""
    return _expand if platform == "cuda" and cuda_module() is not None else None


def _expand(
    values: jax.Array, indices: jax.Array, *, pattern: Pattern, depth: int
) -> jax.Array:
    """As `_dense.expand`. A mapped call is one call: the batch axes cross in front."""
    call = jax.ffi.ffi_call(
        target_name(EXPAND),
        jax.ShapeDtypeStruct((depth, values.shape[-1]), values.dtype),
        vmap_method="broadcast_all",
    )
    return call(
        values,
        indices,
        n=np.int32(pattern.n),
        m=np.int32(pattern.m),
        vector_length=np.int32(pattern.vector_length),
    )


def goes_dense(
    op: str,
    platform: str | None,
    dtype: Any,
    out_dtype: Any,
    batch_and_rows: tuple[Any, Any],
    cols: int,
    spec: Spec,
) -> bool:
    """Whether a product that is not empty goes by way of a dense matrix."""
    if spec.implementation is not None:
        return spec.implementation == "dense"
    if not has_kernel(platform, dtype):
        return False
    return dense_pays(op, platform, dtype, out_dtype, batch_and_rows, cols, spec)


def dense_pays(
    op: str,
    platform: str | None,
    dtype: Any,
    out_dtype: Any,
    batch_and_rows: tuple[Any, Any],
    cols: int,
    spec: Spec,
    wgmma: bool | None = None,
) -> bool:
    """Whether a product is faster by way of a dense matrix, as far as one can know.

    Decided when a program is lowered, for the GPU that is there. Symbolic sizes, and
    programs for a GPU that is not there, are left to the kernels, which choose at run
    time.
    """
    batch, rows = batch_and_rows
    if platform != "cuda" or _symbolic(batch) or _symbolic(rows):
        return False
    arch = spec.arch or local_arch()
    if arch == 0:
        return False
    sizes, given = (batch, rows, cols), spec
    spec = dataclasses.replace(spec, arch=arch)
    if wgmma is None:
        wgmma = has_wgmma()
    x_fm, y_fm = layouts(op, platform, dtype, sizes, spec, wgmma=wgmma)
    arguments = problem_arguments(
        op,
        dtype,
        dtype if out_dtype == dtype else _reference.accumulator(dtype),
        batch,
        rows + row_padding(platform, rows, np.dtype(dtype), x_fm or y_fm),
        cols,
        spec,
        x_fm,
        y_fm,
    )
    arguments = with_transposed_values(arguments, given, wgmma)
    return bool(_tuning.dense_pays(*(*arguments, wgmma)))


def has_wgmma() -> bool:
    cuda = cuda_module()
    return cuda is not None and cuda.has_wgmma()


@functools.cache
def local_arch() -> int:
    """The compute capability of this process's first GPU, as 90 for 9.0; or 0."""
    try:
        device = jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        return 0
    return int(str(device.compute_capability).replace(".", ""))


@functools.cache
def local_gpu() -> str | None:
    """The kind of the GPUs of this run, as JAX names it; None of none or of several."""
    try:
        kinds = {device.device_kind for device in jax.devices("cuda")}
    except RuntimeError:
        return None
    return kinds.pop() if len(kinds) == 1 else None


def measured(arguments: tuple) -> _measured.Entry | None:
    """What `autotune` has found for a problem, given as `_tuning` takes it."""
    gpu = local_gpu()
    if gpu is None:
        return None
    arch = local_arch()
    return _measured.find(gpu, arch, cuda_module(), arguments, has_wgmma())


def _may_be_measured(spec: Spec) -> bool:
    """Whether the choice of the kernel is left open, and for a GPU of this run."""
    forced = spec.kernel or spec.arch or spec.implementation is not None
    return not forced and not spec.exported


def _ffi(
    op: str,
    platform: str | None,
    first: jax.Array,
    second: jax.Array,
    indices: jax.Array,
    spec: Spec,
    out_dtype: np.dtype,
    result_layout: str | None,
    epilogue: Epilogue | None,
) -> list[jax.Array]:
    name = _choice.kernel_name(spec.implementation)
    if name is not None:
        spec = dataclasses.replace(spec, kernel=_choice.kernel_ids()[name])
    batch, rows, _ = first.shape
    dtype = np.dtype(first.dtype)
    result_dtype = dtype if out_dtype == dtype else _reference.accumulator(dtype)
    pattern, depth = spec.pattern, spec.depth
    cols = first.shape[-1] if op == "spmm_t" else second.shape[-1]
    x_fm, y_fm = layouts(op, platform, dtype, (batch, rows, cols), spec, result_layout)

    pad = row_padding(platform, rows, dtype, x_fm or y_fm)
    if pad:
        first = jnp.pad(first, ((0, 0), (0, pad), (0, 0)))
        if op == "sddmm":
            second = jnp.pad(second, ((0, 0), (0, pad), (0, 0)))

    shape = {
        "spmm": (batch, rows + pad, cols),
        "spmm_t": (batch, rows + pad, depth),
        "sddmm": (batch, pattern.kept(depth), cols),
    }[op]
    order = {True: (0, 2, 1), False: (0, 1, 2)}  # major to minor
    x_order, y_order, weight_order = order[x_fm], order[y_fm], order[False]
    first_order, second_order, result_order = {
        "spmm": (x_order, weight_order, y_order),
        "spmm_t": (y_order, weight_order, x_order),
        "sddmm": (x_order, y_order, weight_order),
    }[op]

    bias, activation, emit_sum = epilogue or Epilogue()
    arguments: tuple | None = None
    transposed = _takes_transposed_values(op, spec)
    if platform == "cuda" and not _symbolic(rows) and not _symbolic(batch):
        arguments = problem_arguments(
            *(op, dtype, result_dtype, batch, rows + pad, cols, spec, x_fm, y_fm),
            activation=activation,
            has_bias=bias is not None,
        )
        arguments = with_transposed_values(arguments, spec)
        transposed = arguments[_measured.TRANSPOSED_VALUES]
    if transposed:
        second = jnp.pad(second, ((0, 0), (0, -pattern.kept(depth) % 4), (0, 0)))
        second = jnp.swapaxes(second, 1, 2)
    elif pads_values(op, platform, dtype, rows, cols, spec, x_fm):
        second = jnp.pad(second, ((0, 0), (0, 0), (0, -cols % 8)))

    operands = [first, second, indices]
    operand_orders: list[tuple[int, ...]] = [first_order, second_order, weight_order]
    results = [jax.ShapeDtypeStruct(shape, result_dtype)]
    result_orders: list[tuple[int, ...]] = [result_order]
    attributes = {
        "n": pattern.n,
        "m": pattern.m,
        "vector_length": pattern.vector_length,
        "layout": int(x_fm) | int(y_fm) << 1 | _VALUES_TRANSPOSED * transposed,
        "flags": 0 if spec.highest else _ALLOW_TF32,
        "kernel": spec.kernel,
        "arch": spec.arch,
    }
    if epilogue is not None:
        # What is not there crosses the call as an empty array.
        operands.append(
            jnp.zeros((batch, 0), np.float32)
            if bias is None
            else bias.reshape(batch, cols)
        )
        operand_orders.append((0, 1))
        empty = jax.ShapeDtypeStruct((0,), result_dtype)
        results.append(results[0] if emit_sum else empty)
        result_orders.append(result_order if emit_sum else (0,))
        attributes["activation"] = _ACTIVATIONS[activation]
    if platform == "cuda":
        size = 0
        if arguments is not None:
            size = _tuning.workspace_bytes(*arguments)
            found = measured(arguments) if _may_be_measured(spec) else None
            if found is not None:
                attributes["kernel"] = _tuning.kernels(op)[found.kernel]
            if name is not None:
                # Of a GPU that is not there, the kernel gets the benefit of the doubt.
                arch = spec.arch or local_arch()
                there = _measured.with_kernel(arguments, spec.kernel, arch)
                _choice.check_kernel(name, there, not arch or has_wgmma())
        results.append(jax.ShapeDtypeStruct((size,), np.uint8))
        result_orders.append((0,))

    outputs = jax.ffi.ffi_call(
        target_name(op if epilogue is None else FUSED),
        results,
        input_layouts=operand_orders,
        output_layouts=result_orders,
    )(*operands, **{name: np.int32(value) for name, value in attributes.items()})
    padded = pad and op != "sddmm"
    return [y[:, :rows] if padded else y for y in outputs[: 1 + emit_sum]]


def layouts(
    op: str,
    platform: str | None,
    dtype: Any,
    sizes: tuple[Any, Any, int],
    spec: Spec,
    result_layout: str | None = None,
    *,
    wgmma: bool | None = None,
) -> tuple[bool, bool]:
    """Whether x-like and y-like matrices cross the call with rows contiguous.

    On the GPU they do when rows is symbolic or exceeds `FEW_ROWS`; `sizes` are batch,
    rows and cols. With fewer rows only x of `spmm` does, where a kernel that takes it
    so is faster by estimate in spite of a transpose in front of it. The CPU kernels
    pack what they read and run either way at one speed, so XLA's own stays.
    `result_layout` overrides the choice for y, whose consumer cannot be seen from here.
    """
    many = platform == "cuda" and has_many_rows(sizes[1])
    x = many
    if op == "spmm" and platform == "cuda" and not many:
        x = _transpose_pays(dtype, sizes, spec, result_layout == "feature", wgmma)
    return x, many if result_layout is None else result_layout == "feature"


def has_many_rows(rows: Any) -> bool:
    """Whether x and y are feature-major for a GPU whatever the kernels are."""
    return _symbolic(rows) or rows > FEW_ROWS


def _transpose_pays(
    dtype: Any,
    sizes: tuple[Any, int, int],
    spec: Spec,
    y_fm: bool,
    wgmma: bool | None,
) -> bool:
    batch, rows, cols = sizes
    arch = spec.arch or local_arch()
    if arch == 0 or _symbolic(batch) or not has_kernel_dtype("cuda", dtype):
        return False
    if wgmma is None:
        wgmma = has_wgmma()
    spec, dtype = dataclasses.replace(spec, arch=arch), np.dtype(dtype)

    def estimate(x_fm: bool) -> float:
        padded = rows + row_padding("cuda", rows, dtype, x_fm or y_fm)
        operands = ("spmm", dtype, dtype, batch, padded, cols, spec, x_fm, y_fm)
        return _tuning.few_rows_us(*(*problem_arguments(*operands), wgmma))

    return estimate(True) < estimate(False)


def row_padding(
    platform: str | None, rows: Any, dtype: np.dtype, feature_major: bool
) -> int:
    """How many zero rows are added, so that contiguous rows are multiples of 16 bytes.

    Aligned rows let the CUDA kernels move 16 bytes at a time. XLA fuses the padding
    into the producer; the results of padded rows are sliced away. Where it has to be,
    many rows get whole lines of 128 bytes: those that begin elsewhere cost the kernels
    a third of their speed (1000 rows of bfloat16 24 us, 1024 rows 18).
    """
    if platform != "cuda" or not feature_major or _symbolic(rows):
        return 0
    if rows * dtype.itemsize % 16 == 0:
        return 0
    return -rows % ((128 if has_many_rows(rows) else 16) // dtype.itemsize)


def pads_values(
    op: str,
    platform: str | None,
    dtype: Any,
    rows: Any,
    cols: int,
    spec: Spec,
    x_fm: bool,
) -> bool:
    """Whether rows of values are padded to 16 bytes, to reach the tensor cores.

    Their kernels fetch values 16 bytes at a time. With many rows a copy of the weight
    costs less than the kernels that need no alignment.
    """
    length = spec.pattern.vector_length
    half = np.dtype(dtype).itemsize == 2
    splits_float32 = (spec.arch or local_arch()) == 90  # on tensor cores, under HIGHEST
    tensor_cores = half or not spec.highest or splits_float32
    groups = length % 8 == 0 or length >= cols
    aligned = cols * np.dtype(dtype).itemsize % 16 == 0
    on_gpu = op == "spmm" and platform == "cuda"
    applies = on_gpu and tensor_cores and x_fm and has_many_rows(rows)
    return applies and groups and not aligned


def problem_arguments(
    op: str,
    dtype: Any,
    result_dtype: Any,
    batch: int,
    rows: int,
    cols: int,
    spec: Spec,
    x_fm: bool,
    y_fm: bool,
    activation: str | None = None,
    has_bias: bool = False,
) -> tuple:
    """A problem as `_tuning` takes it, in its argument order."""
    pattern = spec.pattern
    transposed = _takes_transposed_values(op, spec)
    return (
        op,
        np.dtype(dtype).name,
        np.dtype(result_dtype).name,
        batch,
        rows,
        spec.depth,
        cols,
        pattern.n,
        pattern.m,
        pattern.vector_length,
        x_fm,
        y_fm,
        not spec.highest,
        spec.kernel,
        spec.arch,
        activation or "",
        has_bias,
        not transposed and pads_values(op, "cuda", dtype, rows, cols, spec, x_fm),
        transposed,
    )


def _takes_transposed_values(op: str, spec: Spec) -> bool:
    """Whether a kernel is asked for that needs values transposed."""
    return op == "spmm" and spec.kernel in _choice.of_transposed_values()


def with_transposed_values(
    arguments: tuple, spec: Spec, wgmma: bool | None = None
) -> tuple:
    """A problem as `_tuning` takes it, with values transposed where that pays.

    The kernels that multiply float32 in TF32 on Hopper read slots contiguously, and no
    others do, so this is decided when a program is lowered, for GPUs that are known.
    """
    arch = spec.arch
    if not arch and not spec.exported and local_gpu() is not None:
        arch = local_arch()
    if not arch or spec.kernel or not has_many_rows(arguments[_measured.ROWS]):
        return arguments
    if wgmma is None:
        wgmma = has_wgmma() and local_arch() in (0, 90)
    there = _measured.with_kernel(arguments, 0, arch)
    if not _tuning.transposed_values_pay(*(*there, wgmma)):
        return arguments
    return _measured.with_transposed_values(arguments)


def _symbolic(size: Any) -> bool:
    return not isinstance(size, (int, np.integer))
