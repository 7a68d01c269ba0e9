"""The timed programs: the sparse product, the dense one, and the dense limit.

Each program makes several calls on buffers of their own, so that a dispatch is long
against its launch and no call finds its operands in the cache.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

from jax_nm import _lowering
from jax_nm._array import NMArray
from jax_nm._bench.points import Point
from jax_nm._prune import compress
from jax_nm._spmm import spmm

ROTATED_BYTES = 256 << 20  # several times the largest L2
MAX_CALLS = 24


@dataclasses.dataclass
class Program:
    """A compiled program and its operands; one run makes `calls` calls."""

    compiled: Callable[..., Any]
    operands: tuple[Any, ...]
    calls: int

    def run(self) -> Any:
        return self.compiled(*self.operands)


@dataclasses.dataclass(frozen=True)
class Product:
    """What a program computes, apart from the weight's pattern."""

    op: str
    rows: int
    cols: int
    depth: int
    dtype: str
    precision: str
    feature_major: bool

    @classmethod
    def of(cls, point: Point, depth: int, feature_major: bool) -> Product:
        return cls(
            point.op,
            point.rows,
            point.cols,
            depth,
            point.dtype,
            point.precision,
            feature_major,
        )

    def calls(self, kept: int) -> int:
        """How many buffer sets leave the cache behind."""
        if not on_gpu():
            return 2
        elements = (
            self.rows * self.depth + kept * self.cols + self.rows * self.cols
        ) * jnp.dtype(self.dtype).itemsize
        return max(2, min(MAX_CALLS, -(-ROTATED_BYTES // elements)))


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def own_layout(rows: int) -> bool:
    """Whether the sparse call wants x and y with rows contiguous."""
    return _lowering.layouts("cuda" if on_gpu() else "cpu", rows, None)[0]


def sparse(point: Point, feature_major: bool) -> Program:
    """The product as it runs inside a model, in the given layout of x and y."""
    product = Product.of(point, point.depth, feature_major)
    shape = (point.depth, point.cols)
    kernels = _random(1, product.calls(point.kept), shape, point.dtype)
    weights = [compress(kernel, point.pattern) for kernel in kernels]

    def forward(x: jax.Array, values: jax.Array, w: NMArray) -> jax.Array:
        w = dataclasses.replace(w, values=values)
        return spmm(x, w, precision=point.precision)

    return _build(product, forward, [w.values for w in weights], weights)


# The points of a suite share their dense products, and XLA takes seconds to tune one.
@functools.lru_cache(maxsize=8)
def dense(product: Product) -> Program:
    """The dense XLA product."""
    shape = (product.depth, product.cols)
    kernels = _random(2, product.calls(product.depth), shape, product.dtype)

    def forward(x: jax.Array, kernel: jax.Array, _: None) -> jax.Array:
        return jnp.matmul(x, kernel, precision=product.precision)

    return _build(product, forward, kernels, [None] * len(kernels))


def _build(
    product: Product, forward: Callable, values: list[jax.Array], rest: list[Any]
) -> Program:
    """Compiles `forward` or its gradients over every (x, values, dy)."""
    op, calls = product.op, len(values)
    xs = _random(3, calls, (product.rows, product.depth), product.dtype)
    dys = _random(4, calls, (product.rows, product.cols), product.dtype)

    def one(x: Any, values: Any, w: Any, dy: Any) -> tuple[jax.Array, ...]:
        if op == "spmm":
            return (forward(x, values, w),)
        y, pull = jax.vjp(lambda x, values: forward(x, values, w), x, values)
        dx, dvalues = pull(dy)
        return {"spmm_t": (dx,), "sddmm": (dvalues,), "step": (y, dx, dvalues)}[op]

    def many(*operands: Any) -> list[tuple[jax.Array, ...]]:
        return [one(*each) for each in zip(*operands, strict=True)]

    # x, dy and the results of their shape get the layout; weights are row-major.
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    moving = Format(Layout((1, 0) if product.feature_major else (0, 1)), sharding)
    still = Format(Layout((0, 1)), sharding)
    results = {
        "spmm": (moving,),
        "spmm_t": (moving,),
        "sddmm": (still,),
        "step": (moving, moving, still),
    }[op]
    operands = (jax.device_put(xs, moving), values, rest, jax.device_put(dys, moving))
    jitted = jax.jit(
        many, in_shardings=(moving, None, None, moving), out_shardings=[results] * calls
    )
    return Program(jitted.lower(*operands).compile(), operands, calls)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _random(seed: int, count: int, shape: tuple[int, ...], dtype: str) -> list:
    keys = jax.random.split(jax.random.key(seed), count)
    return [jax.random.normal(key, shape, jnp.float32).astype(dtype) for key in keys]
