"""The points of one shape, measured in one session."""

from __future__ import annotations

import concurrent.futures
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_nm._array import NMArray
from jax_nm._bench import check, machine, operands, programs, timing
from jax_nm._bench.points import Point
from jax_nm._bench.programs import Product
from jax_nm._plan import Plan, explain


def measure(
    points: Sequence[Point], repeats: int, roofs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Points of one shape: their sparse products, the dense one and the limits.

    All programs take turns in one session, and those that points share run once.

    `ms` is the product in the call's own layouts, `ms_row_major` with row-major
    operands and results, and so with the transposes that they cost. A product by way of
    a dense matrix has no layouts of its own: both are the row-major one. `dense_ms` is
    XLA's dense product of the full size, `limit_ms` that of the compressed depth, each
    in the faster of both layouts. These are times of the device where `timing` is
    'device'; `wall_ms` is the host's time for a call of the product of `ms`. `floor_ms`
    is what this machine's measured peak rate and bandwidth allow at best.
    `implementation` and `kernel` say what ran: 'sparse', 'dense', the name of a kernel
    that was asked for, or 'mixed' for a step whose products differ; the kernel of a
    step is that of its forward product.
    """
    start = time.perf_counter()
    layouts = (False, True) if programs.on_gpu() else (False,)
    plans = {point: plans_of(point) for point in points}
    own = {point: own_layout(point, plans[point]) for point in points}
    sparse = {
        point: {layout: Product.sparse(point, layout) for layout in (own[point], False)}
        for point in points
    }
    dense = {
        depth: [Product.dense(points[0], depth, layout) for layout in layouts]
        for depth in sorted({points[0].depth, *(point.kept for point in points)})
    }
    built = _build(
        dict.fromkeys(
            [
                *(product for pair in dense.values() for product in pair),
                *(product for pair in sparse.values() for product in pair.values()),
            ]
        )
    )
    compiled = time.perf_counter()
    times = timing.measure(built, repeats)
    timed = time.perf_counter()

    def fastest(depth: int) -> float:
        return min(times.ms[product] for product in dense[depth])

    results = []
    for point, products in sparse.items():
        error = check.error_over_bound(
            point, [built[product] for product in dict.fromkeys(products.values())]
        )
        results.append(
            {
                **point.as_json(),
                "implementation": what_ran(point, plans[point]),
                "kernel": plans[point][0].kernel,
                "config": dict(plans[point][0].config),
                "ms": times.ms[products[own[point]]],
                "ms_row_major": times.ms[products[False]],
                "dense_ms": fastest(point.depth),
                "limit_ms": fastest(point.kept),
                "floor_ms": machine.floor_ms(point, roofs),
                "wall_ms": times.wall_ms[products[own[point]]],
                "timing": times.timing,
                "sm_clock_mhz": times.sm_clock_mhz,
                "error_over_bound": error,
            }
        )
    checked = time.perf_counter()
    print(
        f"  {len(built)} programs: compiled in {compiled - start:.1f} s, timed in "
        f"{timed - compiled:.1f} s, checked in {checked - timed:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    return results


def _build(products: Mapping[Product, None]) -> dict[Product, programs.Program]:
    """Compiles in parallel, then makes the operands: XLA tunes on an idle device."""
    numbers = {
        (shape, product.dtype, feature_major)
        for product in products
        for shape, feature_major in product.numbers.values()
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        fillers = [pool.submit(operands.filler, *key) for key in numbers]
        compiled = list(pool.map(programs.compile_program, products))
        for future in fillers:
            future.result()
    stock = operands.Stock()
    return {
        product: programs.build(product, program, stock)
        for product, program in zip(products, compiled, strict=True)
    }


def plans_of(point: Point) -> list[Plan]:
    """The plan of each product of a point; ValueError if a kernel does not take it."""
    dtype, kept = jnp.dtype(point.dtype), point.kept
    groups = point.pattern.groups(point.cols)
    w = NMArray(
        jax.ShapeDtypeStruct((kept, point.cols), dtype),
        jax.ShapeDtypeStruct((groups, kept), jnp.uint8),
        point.pattern,
        point.depth,
        point.cols,
    )
    fused = point.epilogue is not None
    return [
        explain(
            jax.ShapeDtypeStruct((point.rows, point.depth), dtype),
            w,
            op=op,
            bias=jax.ShapeDtypeStruct((point.cols,), dtype) if fused else None,
            activation="gelu" if fused else None,
            precision=point.precision,
            implementation=point.implementation,
        )
        for op in (("spmm", "spmm_t", "sddmm") if point.op == "step" else (point.op,))
    ]


def own_layout(point: Point, plans: Sequence[Plan]) -> bool:
    """Whether x and y are feature-major in the call's own layouts."""
    kernels = any(plan.kernel != "dense" for plan in plans)
    return kernels and programs.own_layout(point.rows)


def what_ran(point: Point, plans: Sequence[Plan]) -> str:
    kinds = {plan.implementation for plan in plans}
    if len(kinds) > 1:
        return "mixed"
    (kind,) = kinds
    asked = kind == "sparse" and plans[0].kernel == point.implementation
    return plans[0].kernel if asked else kind
