"""Timing, roofs and checks."""

from __future__ import annotations

import concurrent.futures
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm._array import NMArray
from jax_nm._bench import programs
from jax_nm._bench.points import Point
from jax_nm._bench.programs import Product, Program
from jax_nm._plan import explain
from jax_nm._prune import compress
from jax_nm._spmm import spmm

Key = tuple[str, bool]  # which product, and whether x and y are feature-major


def measure(point: Point, repeats: int) -> dict[str, Any]:
    """One point: the sparse product, the dense one and the limit, interleaved.

    `ms` is the product in the call's own layouts, `ms_row_major` with row-major
    operands and results, and so with the transposes that they cost. `dense_ms` is XLA's
    dense product of the full size, `limit_ms` that of the compressed depth, each in the
    faster of both layouts. `floor_ms` is what this machine's measured peak rate and
    bandwidth allow at best.
    """
    w = compress(
        jax.random.normal(jax.random.key(0), (point.depth, point.cols), point.dtype),
        point.pattern,
    )
    error = error_over_bound(point, w)
    own = programs.own_layout(point.rows)
    layouts = (False, True) if programs.on_gpu() else (False,)

    def build(key: Key) -> Program:
        kind, layout = key
        if kind == "sparse":
            return programs.sparse(point, layout)
        depth = point.depth if kind == "dense" else point.kept
        return programs.dense(Product.of(point, depth, layout))

    keys = [("sparse", layout) for layout in sorted({own, False})]
    keys += [(kind, layout) for kind in ("dense", "limit") for layout in layouts]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # XLA compiles for seconds
        built = dict(zip(keys, pool.map(build, keys), strict=True))
    ms = time_interleaved(built, repeats)
    plan = explain(
        jax.ShapeDtypeStruct((point.rows, point.depth), jnp.dtype(point.dtype)),
        w,
        op="spmm" if point.op == "step" else point.op,
        precision=point.precision,
    )
    return {
        **point.as_json(),
        "implementation": "sparse",
        "kernel": plan.kernel,
        "config": dict(plan.config),
        "ms": ms["sparse", own],
        "ms_row_major": ms["sparse", False],
        "dense_ms": min(ms["dense", layout] for layout in layouts),
        "limit_ms": min(ms["limit", layout] for layout in layouts),
        "floor_ms": floor_ms(point),
        "error_over_bound": error,
    }


def time_interleaved(built: dict[Key, Program], repeats: int) -> dict[Key, float]:
    """Median milliseconds per call of each program, taken in turns."""
    runs = {}
    for key, program in built.items():
        jax.block_until_ready(program.run())
        # Enough work in flight that the launch of the first run does not count.
        runs[key] = max(1, min(20, round(0.01 / _seconds(program, 1))))
    samples: dict[Key, list[float]] = {key: [] for key in built}
    for _ in range(repeats):
        for key, program in built.items():
            seconds = _seconds(program, runs[key])
            samples[key].append(1e3 * seconds / (runs[key] * program.calls))
    return {key: statistics.median(times) for key, times in samples.items()}


def _seconds(program: Program, runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        results = program.run()
    jax.block_until_ready(results)
    return time.perf_counter() - start


def error_over_bound(point: Point, w: NMArray) -> float:
    """The largest error relative to the elementwise bound, on a sample of the result.

        |out - ref| <= (u_out + 2 u_in + (len + 2) u_acc) * (|x| @ |W|)

    against float64. At most 1 is right; NaN is wrong.
    """
    rng = np.random.default_rng(4)
    dtype = jnp.dtype(point.dtype)
    x = jnp.asarray(rng.standard_normal((point.rows, point.depth)), dtype)
    dy = jnp.asarray(rng.standard_normal((point.rows, point.cols)), dtype)
    rows = rng.choice(point.rows, min(point.rows, 16), replace=False)
    cols = rng.choice(point.cols, min(point.cols, 16), replace=False)

    @jax.jit
    def products(x: jax.Array, w: NMArray, dy: jax.Array) -> tuple[jax.Array, ...]:
        def forward(x: jax.Array, values: jax.Array) -> jax.Array:
            weight = NMArray(values, w.indices, w.pattern, w.depth, w.cols)
            return spmm(x, weight, precision=point.precision)

        y, pull = jax.vjp(forward, x, w.values)
        dx, dvalues = pull(dy)
        return y[rows], dx[rows], dvalues[:, cols]

    def wide(a: jax.Array) -> np.ndarray:
        return np.asarray(a.astype(jnp.float32)).astype(np.float64)

    y, dx, dvalues = map(wide, products(x, w, dy))
    tf32 = programs.on_gpu() and (dtype, point.precision) == (jnp.float32, "default")
    units = float(jnp.finfo(dtype).eps) / 2 + (2.0**-9 if tf32 else 0.0)

    def worst(got: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        bound = (units + (a.shape[-1] + 2) * 2.0**-23) * (np.abs(a) @ np.abs(b))
        error = np.abs(got - a @ b)
        if not (error <= bound).all():
            return float("inf")
        return float(np.max(error[bound > 0] / bound[bound > 0], initial=0.0))

    worsts = []
    if point.op in ("spmm", "step"):
        worsts.append(worst(y, wide(x[rows]), wide(w.todense())))
    if point.op in ("spmm_t", "step"):
        worsts.append(worst(dx, wide(dy[rows]), wide(w.todense()).T))
    if point.op in ("sddmm", "step"):
        source = np.asarray(w.pattern.source(w.indices, w.depth))
        x64, dy64 = wide(x), wide(dy[:, cols])
        for place, group in enumerate(cols // w.pattern.vector_length):
            picked = x64[:, source[group]].T
            worsts.append(worst(dvalues[:, place], picked, dy64[:, place]))
    return max(worsts)


def floor_ms(point: Point) -> float:
    """max(flops / peak, bytes / bandwidth), both roofs measured on this machine."""
    size = jnp.dtype(point.dtype).itemsize
    products = 3 if point.op == "step" else 1
    flops = 2.0 * point.rows * point.kept * point.cols * products
    moved = point.rows * (point.depth + point.cols) + point.kept * point.cols
    moved = moved * size * (2 if point.op == "step" else 1)
    moved += point.kept * point.pattern.groups(point.cols)
    peak = peak_flops(point.dtype, point.precision)
    return 1e3 * max(flops / peak, moved / bandwidth())


@functools.cache
def peak_flops(dtype: str, precision: str) -> float:
    """FLOP/s of a large dense XLA product on this machine."""
    size = 8192 if programs.on_gpu() else 2048
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    return 2.0 * size**3 / _median_seconds(lambda: product(x, x))


@functools.cache
def bandwidth() -> float:
    """Bytes/s of a large copy, reads and writes counted."""
    elements = (1 << 30 if programs.on_gpu() else 1 << 28) // 4
    x = jnp.ones((elements,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2.0 * x.nbytes / _median_seconds(lambda: copy(x))


def _median_seconds(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(5):
        start = time.perf_counter()
        results = [run() for _ in range(3)]
        jax.block_until_ready(results)
        times.append((time.perf_counter() - start) / 3)
    return statistics.median(times)
