"""`autotune`: the kernels that can compute a product, timed on this GPU.

Each candidate is a jitted program of many calls, in the layouts that the calls use
inside a model, on operands that together are larger than the cache, so that no call
finds its own there. Programs take turns. What counts is the median wall-clock time per
call, which needs no profiler; with some hundred microseconds of work in a program and
several programs in flight, the host is not what takes the time.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import json
import math
import operator
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.layout import Format, Layout

from jax_nm import _lowering, _measured, _plan, _primitives, _tuning
from jax_nm._array import NMArray
from jax_nm._checks import check_dtype
from jax_nm._pattern import Pattern
from jax_nm._primitives import Spec
from jax_nm._spmm import check

ROTATED_BYTES = 160 << 20  # 2.5 times the L2 of an H200 and more
MAX_CALLS = 64  # of one program
PROGRAM_US = 600  # by estimate; several times what the host needs to start it
RESULT_BYTES = 1 << 30  # of programs in flight
SAMPLE_SECONDS = 0.006  # work of one candidate before the next has its turn
ROUNDS = 7
HOPELESS = 2.0  # times the fastest: such a kernel is not timed again
_MESSAGE_BYTES = 1 << 14


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What `autotune` has found for one product; printable.

    Attributes:
      op: 'spmm', 'spmm_t' or 'sddmm'.
      gpu: The kind of GPU, as JAX names it.
      problem: The sizes, pattern, dtypes and layouts as the kernel sees them.
      kernel: The fastest kernel, which products like this one run from now on.
      us: (kernel, microseconds per call) of every candidate, the fastest first.
      date: When that was measured, UTC, as '2026-11-27T12:00:00Z'.
      cached: Whether the times were measured before this call.
      note: What else there is to know, or ''.
    """

    op: str
    gpu: str
    problem: str
    kernel: str
    us: tuple[tuple[str, float], ...]
    date: str
    cached: bool
    note: str = ""

    def __repr__(self) -> str:
        times = dict(self.us)
        lines = [
            f"Measurement: {self.op} on {self.gpu}, {self.date}"
            + (" (from the cache)" if self.cached else ""),
            f"  problem  {self.problem.partition(', ')[2]}",
            f"  kernel   {self.kernel}: {times[self.kernel]:.3g} us",
        ]
        lines += [f"  not      {name}: {us:.3g} us" for name, us in self.us[1:]]
        return "\n".join([*lines, *([f"  note     {self.note}"] if self.note else [])])


def autotune(
    x_shape: Any,
    w: NMArray,
    op: str = "spmm",
    *,
    dtype: Any = None,
    precision: Any = None,
    preferred_element_type: Any = None,
    result_layout: str | None = None,
    refresh: bool = False,
) -> Measurement:
    """Times the CUDA kernels for ``spmm(x, w)`` on this GPU and makes the fastest run.

        kernel = argmin over kernels k of median time(y = x W computed by k)

    Every product that is lowered afterwards for GPUs of this kind, and is the same
    problem, runs that kernel: same op, sizes, pattern, dtypes, precision and layouts,
    with or without a bias and a named activation, in this process and in later ones,
    which find it in ``$XDG_CACHE_HOME/jax_nm/autotune`` (``~/.cache`` by default). Not
    so where `implementation` was given, where rows are symbolic, and in programs for
    `jax.export`, which may run on another GPU. Whether a product is sparse or dense,
    and how its operands lie in memory, are not changed: where `explain` says 'dense',
    it stays dense.

    Call this before the product is compiled: a compiled program, that of an eager call
    included, keeps its kernel (`jax.clear_caches` ends that). The kernel is a part of
    the program, so JAX's persistent compilation cache never mixes up two of them. An
    entry holds for one version of jax_nm and one build of its kernels.

    Where JAX runs several processes, all of them must make the same calls in the same
    order, in every run: process 0 measures, or reads its file, and tells the others.
    Without these calls such a run knows no measurements.

    Takes seconds, mostly to compile, and a GB on the GPU at most, or for large products
    the memory of two sets of operands and of four results.

    Args:
      x_shape: The shape of x, ``[..., depth]``, of ints.
      w: The weight ``[depth, cols]``; its leaves may be ``ShapeDtypeStruct``. What it
        holds is not read: the times are those of random numbers.
      op: 'spmm' for the product, 'spmm_t' for its gradient with respect to x, 'sddmm'
        for that with respect to ``w.values``.
      dtype: The dtype of x; by default that of `w`.
      precision, preferred_element_type, result_layout: As for `spmm`. A bias or an
        activation that XLA applies after the product, such as any callable, makes its
        result float32.
      refresh: Measures again what has been measured before.

    Returns:
      A `Measurement`; its repr is meant to be read.

    Raises:
      TypeError, ValueError: As `spmm`, for an unknown `op`, and for products that no
        CUDA kernel computes.
      RuntimeError: Without an NVIDIA GPU as JAX's default device, without the CUDA
        kernels, with GPUs of several kinds, or in every process of a run if measuring
        fails in process 0.
    """
    name, arguments, spec = _problem(
        x_shape, w, op, dtype, precision, preferred_element_type, result_layout
    )
    gpu, cuda = _gpu(), _lowering.cuda_module()
    known = None if refresh else _lowering.measured(arguments)
    file = _measured.path(gpu, cuda)
    cached, note = known is not None, ""
    if jax.process_count() > 1:
        # Each process decides alike, whatever it knows: this is a collective call.
        found = functools.partial(_found, file, gpu, cuda, name, arguments, refresh)
        entry, cached, note = _from_first(arguments[_measured.OP], found)
    elif known is None:
        entry = _measure_entry(arguments)
        note = _stored(file, gpu, cuda, name, entry)
    else:
        entry = known
    _measured.add(gpu, cuda, name, entry)
    if _goes_dense(arguments, spec):
        note = "; ".join(filter(None, (note, _DENSE.format(way=_way(op, entry)))))
    return Measurement(op, gpu, name, entry.kernel, entry.us, entry.date, cached, note)


_DENSE = (
    "by estimate the dense product is faster: calls stay dense, and the kernel runs "
    "{way}"
)


def _way(op: str, entry: _measured.Entry) -> str:
    if op == "spmm":
        return f"where implementation={entry.kernel!r} asks for it"
    return "in none of them"


# The problem.


def _problem(
    x_shape: Any,
    w: Any,
    op: Any,
    dtype: Any,
    precision: Any,
    preferred_element_type: Any,
    result_layout: Any,
) -> tuple[str, tuple, Spec]:
    """Its name, the problem as `_tuning` takes it, and the static parameters."""
    if op not in _lowering.OPS:
        raise ValueError(
            f"autotune: op must be 'spmm', 'spmm_t' or 'sddmm', got {op!r}; the last "
            "two are the products of the gradient"
        )
    if hasattr(x_shape, "shape"):
        raise TypeError(
            f"autotune: x_shape must be a shape, got {type(x_shape).__name__}; pass "
            "x.shape, and dtype=x.dtype if that is not the dtype of w"
        )
    try:
        shape = tuple(operator.index(size) for size in x_shape)
    except TypeError:
        raise TypeError(
            f"autotune: x_shape must be a sequence of ints, got {x_shape!r}; pass the "
            "shape of a batch that will be run"
        ) from None
    if any(size < 0 for size in shape):
        raise ValueError(
            f"autotune: x_shape must hold no negative size, got {shape}; pass the "
            "shape of a batch that will be run"
        )
    if dtype is not None:
        dtype = check_dtype("autotune", "dtype", dtype, "cast x to another dtype")
    elif isinstance(w, NMArray):
        dtype = w.values.dtype
    x = jax.ShapeDtypeStruct(shape, np.float32 if dtype is None else dtype)
    x, w, options = check(
        "autotune",
        x,
        w,
        precision,
        preferred_element_type,
        result_layout,
        abstract=True,
    )
    batch, rows = _plan.batch_and_rows(x, w)
    spec, cols = options.spec, w.values.shape[-1]
    if 0 in (batch, rows, spec.depth, cols):
        raise ValueError(
            f"autotune: the product of x of shape {shape} and w of shape {w.shape} is "
            "empty, so no kernel is called; pass the shape of a batch that will be run"
        )
    device = _plan.default_device()
    if device.platform not in ("cuda", "gpu"):
        raise RuntimeError(
            "autotune: needs an NVIDIA GPU, but JAX's default device is "
            f"{device.platform}:{device.id}, whose kernels leave nothing to choose; "
            "run it on the machine with the GPU, with jax[cuda13] installed and "
            "without JAX_PLATFORMS=cpu"
        )
    if _lowering.cuda_module() is None:
        raise RuntimeError(
            "autotune: jax_nm was built without its CUDA kernels; reinstall with "
            "JAX_NM_CUDA=ON pip install ."
        )
    compute, result = _plan.kernel_dtypes(op, options, options.result_dtype)
    if not _lowering.has_kernel_dtype("cuda", compute):
        raise ValueError(
            f"autotune: there are no CUDA kernels for {compute.name}; cast x and w to "
            "float32, bfloat16 or float16"
        )
    layout = result_layout if op == "spmm" else None
    sizes = (batch, rows, cols)
    x_fm, y_fm = _lowering.layouts(op, "cuda", compute, sizes, spec, layout)
    rows += _lowering.row_padding("cuda", rows, compute, x_fm or y_fm)
    arguments = _lowering.problem_arguments(
        op, compute, result, batch, rows, cols, spec, x_fm, y_fm
    )
    arguments = _lowering.with_transposed_values(arguments, spec)
    return _measured.problem_name(arguments), arguments, spec


def _gpu() -> str:
    gpu = _lowering.local_gpu()
    if gpu is None:
        kinds = sorted({device.device_kind for device in jax.devices()})
        raise RuntimeError(
            "autotune: all GPUs must be of one kind, because a program is lowered for "
            f"all of them, got {', '.join(kinds)}; choose one kind with "
            "CUDA_VISIBLE_DEVICES"
        )
    return gpu


def _goes_dense(arguments: tuple, spec: Spec) -> bool:
    op, dtype, result_dtype, batch, rows, _, cols = arguments[:7]
    # The lowering compares dtypes only.
    return _lowering.goes_dense(
        op, "cuda", jnp.dtype(dtype), jnp.dtype(result_dtype), (batch, rows), cols, spec
    )


def candidates(arguments: tuple) -> dict[str, int]:
    """The ids of the kernels that can compute a problem on this GPU, by name."""
    arch, wgmma = _lowering.local_arch(), _lowering.has_wgmma()
    found = {}
    for name, kernel in _tuning.kernels(arguments[_measured.OP]).items():
        try:
            _tuning.choose(*(*_measured.with_kernel(arguments, kernel, arch), wgmma))
        except ValueError:
            continue
        found[name] = kernel
    return found


# Process 0 and the others.


def _found(
    file: Any, gpu: str, cuda: Any, name: str, arguments: tuple, refresh: bool
) -> tuple[_measured.Entry, bool, str]:
    """The entry of process 0, whether it was there before, and what is wrong."""
    entry = None if refresh else _lowering.measured(arguments)
    if entry is None and not refresh:
        entry = _measured.read(file, gpu, cuda).get(name)
    if entry is not None:
        return entry, True, ""
    entry = _measure_entry(arguments)
    return entry, False, _stored(file, gpu, cuda, name, entry)


def _from_first(
    op: str, found: Callable[[], tuple[_measured.Entry, bool, str]]
) -> tuple[_measured.Entry, bool, str]:
    """What `found` returns in process 0, in all processes; or its error, in all."""
    message, failure = b"", None
    if jax.process_index() == 0:
        try:
            entry, cached, note = found()
            content = {"entry": entry.to_json(), "cached": cached, "note": note}
        except Exception as error:  # else the others would wait forever
            failure = error
            content = {"error": f"{type(error).__name__}: {error}"[:4000]}
        message = json.dumps(content).encode()
    sent = np.zeros(_MESSAGE_BYTES, np.uint8)
    sent[: len(message)] = np.frombuffer(message, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8)
    if failure is not None:
        raise failure
    content = json.loads(received.tobytes().rstrip(b"\0"))
    if "error" in content:
        raise RuntimeError(
            f"autotune: measuring failed in process 0: {content['error']}; see there"
        )
    entry = _measured.Entry.from_json(op, content["entry"])
    return entry, content["cached"], content["note"]


def _stored(file: Any, gpu: str, cuda: Any, name: str, entry: _measured.Entry) -> str:
    """Writes the entry to the file. Returns why it could not, or ''."""
    error = _measured.write(file, gpu, cuda, name, entry)
    if error is None:
        return ""
    note = f"not stored, so it ends with this process: {error}"
    warnings.warn(
        f"autotune: {note}; make {file.parent} writable or set XDG_CACHE_HOME",
        stacklevel=3,
    )
    return note


# Measuring.


def _measure_entry(arguments: tuple) -> _measured.Entry:
    arch, wgmma = _lowering.local_arch(), _lowering.has_wgmma()
    try:
        _tuning.choose(*(*_measured.with_kernel(arguments, 0, arch), wgmma))
    except ValueError as error:
        raise ValueError(
            f"autotune: no CUDA kernel computes this product on sm_{arch}: {error}; "
            "there is nothing to choose, implementation='dense' computes it"
        ) from None
    times = measure(arguments, candidates(arguments))
    us = tuple(sorted(times.items(), key=lambda pair: pair[1]))
    now = datetime.datetime.now(datetime.UTC)
    return _measured.Entry(us[0][0], us, now.strftime("%Y-%m-%dT%H:%M:%SZ"))


def measure(arguments: tuple, kernels: Mapping[str, int]) -> dict[str, float]:
    """Microseconds per call of each kernel on random operands, on the default device.

    That the results have one type is the lowering's doing, and that they are right is
    shown by the tests, kernel by kernel.
    """
    predicted = _tuning.choose(*arguments)["predicted_us"]
    # A traced program may be what asks: nothing of this becomes a part of it.
    with jax.ensure_compile_time_eval():
        operands = _draw_operands(arguments)
        buffers = len(operands[0])
        _, result = _operands(arguments)
        most_calls = RESULT_BYTES / (4 * math.prod(result.shape))
        calls = min(MAX_CALLS, PROGRAM_US / predicted, most_calls)
        passes = min(buffers, math.ceil(calls / buffers))
        programs = {
            name: functools.partial(
                _compile(arguments, kernel, operands, passes), *operands
            )
            for name, kernel in kernels.items()
        }
        calls = passes * buffers
        return median_us(programs, calls, max(1, int(most_calls / calls)))


def median_us(
    programs: Mapping[str, Callable[[], Any]], calls: int, most_runs: int
) -> dict[str, float]:
    """Median time per call of programs that take turns and make `calls` calls each.

    A program runs for about `SAMPLE_SECONDS`, or `most_runs` times, before the host
    waits for it. Those that are `HOPELESS` after the first turn get no other.
    """

    def seconds(program: Callable[[], Any], runs: int) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            results = program()
        jax.block_until_ready(results)
        return (time.perf_counter() - start) / runs

    samples: dict[str, list[float]] = {}
    runs: dict[str, int] = {}
    for name, program in programs.items():
        seconds(program, 2)  # loads the kernel, records graphs
        wanted = math.ceil(SAMPLE_SECONDS / seconds(program, 1))
        runs[name] = max(1, min(most_runs, wanted))
        samples[name] = [seconds(program, runs[name])]
    limit = HOPELESS * min(times[0] for times in samples.values())
    for _ in range(ROUNDS - 1):
        for name, times in samples.items():
            if times[0] <= limit:
                times.append(seconds(programs[name], runs[name]))
    return {
        name: 1e6 * statistics.median(times) / calls for name, times in samples.items()
    }


@dataclasses.dataclass(frozen=True)
class _Operand:
    """Shape and layout of one operand or result."""

    shape: tuple[int, ...]
    feature_major: bool

    def format(self) -> Format:
        order = (0, 2, 1) if self.feature_major else (0, 1, 2)
        sharding = jax.sharding.SingleDeviceSharding(_plan.default_device())
        return Format(Layout(order), sharding)


def _operands(arguments: tuple) -> tuple[list[_Operand], _Operand]:
    """The floating operands and the result of a problem."""
    op, _, _, batch, rows, depth, cols, n, m = arguments[:9]
    x_fm, y_fm = arguments[_measured.LAYOUTS]
    x = _Operand((batch, rows, depth), x_fm)
    y = _Operand((batch, rows, cols), y_fm)
    values = _Operand((batch, -(-depth // m) * n, cols), False)
    return {
        "spmm": ([x, values], y),
        "spmm_t": ([y, values], x),
        "sddmm": ([x, y], values),
    }[op]


def _draw_operands(arguments: tuple) -> tuple[list, ...]:
    """(firsts, seconds, indices), each as many as leave the cache behind."""
    dtype = jnp.dtype(arguments[1])
    operands, _ = _operands(arguments)
    bytes_per_call = sum(math.prod(o.shape) for o in operands) * dtype.itemsize
    buffers = max(2, min(MAX_CALLS, -(-ROTATED_BYTES // bytes_per_call)))
    # This generator compiles in a third of the time of the default one.
    keys = (jax.random.key(seed, impl="rbg") for seed in itertools.count())

    def draw(operand: _Operand) -> Callable[[], Any]:
        shape = operand.shape
        normal = jax.jit(
            lambda key: jax.random.normal(key, shape, jnp.float32).astype(dtype),
            out_shardings=operand.format(),
        )
        return lambda: normal(next(keys))

    draws = (*map(draw, operands), _indices(arguments))
    return tuple([draw() for _ in range(buffers)] for draw in draws)


def _indices(arguments: tuple) -> Callable[[], jax.Array]:
    """Draws uint8 [batch, groups, kept]: n random offsets of each window, ascending.

    A window's offsets are consecutive ones of a random cyclic walk with a stride that
    has no common divisor with m, so that none repeats.
    """
    batch, depth, cols, n, m, length = (arguments[i] for i in (3, 5, 6, 7, 8, 9))
    windows, groups = -(-depth // m), -(-cols // length)
    strides = np.array([s for s in range(1, m + 1) if math.gcd(s, m) == 1], np.int32)
    rng = np.random.default_rng(n)
    device = _plan.default_device()

    def draw() -> jax.Array:
        shape = (batch, groups, windows, 1)
        start = rng.integers(0, m, shape, np.int32)
        walk = start + rng.choice(strides, shape) * np.arange(n, dtype=np.int32)
        offsets = np.sort((walk % m).astype(np.uint8), axis=-1)
        return jax.device_put(offsets.reshape(batch, groups, windows * n), device)

    return draw


def _compile(
    arguments: tuple, kernel: int, operands: tuple[list, ...], passes: int
) -> Callable[..., Any]:
    """The program that calls a kernel on each of the operands, several times over.

    Each time with other partners: of two calls that are the same XLA would make one.
    """
    op, _, result_dtype = arguments[:3]
    spec = _spec(arguments, kernel)
    products: dict[str, Callable[..., jax.Array]] = {
        "spmm": functools.partial(
            _primitives.spmm,
            result_layout="feature" if arguments[_measured.LAYOUTS][1] else "row",
        ),
        "spmm_t": _primitives.spmm_t,
        "sddmm": _primitives.sddmm,
    }

    def run(*columns: list[jax.Array]) -> list[jax.Array]:
        out_dtype = jnp.dtype(result_dtype)
        buffers = len(columns[0])
        return [
            products[op](
                columns[0][i],
                *(column[(i + turn) % buffers] for column in columns[1:]),
                spec=spec,
                out_dtype=out_dtype,
            )
            for turn in range(passes)
            for i in range(buffers)
        ]

    inputs, result = _operands(arguments)
    jitted = jax.jit(
        run,
        in_shardings=(*(operand.format() for operand in inputs), None),
        out_shardings=result.format(),
    )
    return jitted.lower(*operands).compile()


def _spec(arguments: tuple, kernel: int) -> Spec:
    n, m, length = arguments[7:10]
    return Spec(
        Pattern(n, m, length),
        arguments[5],
        batch_ndim=1,
        highest=not arguments[_measured.TF32],
        kernel=kernel,
    )
