"""The timed programs: the sparse product, the dense one, and the dense limit.

Each program makes several calls on buffers of their own, and takes turns between sets
of buffers, so that no call finds its operands in the cache.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_nm import _lowering
from jax_nm._array import NMArray
from jax_nm._bench.operands import Stock, format_of
from jax_nm._bench.points import Point
from jax_nm._pattern import Pattern
from jax_nm._spmm import spmm

ROTATED_BYTES = 160 << 20  # 2.5 times the L2 of an H200 and more
MAX_CALLS = 8
MAX_BUFFERS = 128  # operands so small that this many fit the L2 stay in any cache


@dataclasses.dataclass(frozen=True)
class Product:
    """What a program computes: sparse with a `pattern`, otherwise dense."""

    op: str
    rows: int
    cols: int
    depth: int
    dtype: str
    precision: str
    feature_major: bool
    pattern: Pattern | None = None
    epilogue: str | None = None
    implementation: str | None = None

    @classmethod
    def sparse(cls, point: Point, feature_major: bool) -> Product:
        """The product as it runs inside a model, in the given layout of x and y."""
        return cls(
            point.op,
            point.rows,
            point.cols,
            point.depth,
            point.dtype,
            point.precision,
            feature_major,
            point.pattern,
            point.epilogue,
            point.implementation,
        )

    @classmethod
    def dense(cls, point: Point, depth: int, feature_major: bool) -> Product:
        """The dense XLA product of the full depth, or of `kept`: the limit."""
        return cls(
            point.op,
            point.rows,
            point.cols,
            depth,
            point.dtype,
            point.precision,
            feature_major,
        )

    @property
    def kept(self) -> int:
        return self.depth if self.pattern is None else self.pattern.kept(self.depth)

    @property
    def numbers(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        """The floating operands by role: shape, and whether feature-major."""
        numbers: dict[str, tuple[tuple[int, ...], bool]] = {
            "x": ((self.rows, self.depth), self.feature_major),
            "values": ((self.kept, self.cols), False),
        }
        if self.epilogue is not None:
            numbers["bias"] = ((self.cols,), False)
        if self.op != "spmm":
            numbers["dy"] = ((self.rows, self.cols), self.feature_major)
        return numbers

    @property
    def buffers(self) -> int:
        """How many sets of operands leave the cache behind; at least two."""
        if not on_gpu():
            return 2
        elements = self.rows * self.depth + self.kept * self.cols
        needed = -(-ROTATED_BYTES // (elements * jnp.dtype(self.dtype).itemsize))
        return max(2, min(MAX_BUFFERS, needed))

    @property
    def calls(self) -> int:
        """Calls in one run."""
        return min(MAX_CALLS, self.buffers)


# Per call x, values, indices, bias and dy, or None for what the product does not take.
Operands = tuple[list[Any], list[Any], list[Any], list[Any], list[Any]]


class Program:
    """A compiled program and its sets of operands; a run makes `calls` calls."""

    def __init__(
        self, compiled: Callable[..., Any], sets: list[Operands], calls: int
    ) -> None:
        self.compiled = compiled
        self.sets = sets
        self.calls = calls
        self._turns: Iterator[Operands] = itertools.cycle(sets)

    def run(self) -> Any:
        """Starts a run on the next set of operands: per call a tuple of results."""
        return self.compiled(*next(self._turns))


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def own_layout(rows: int) -> bool:
    """Whether the sparse call wants x and y with rows contiguous."""
    return on_gpu() and _lowering.has_many_rows(rows)


def build(product: Product, compiled: Callable[..., Any], stock: Stock) -> Program:
    """The compiled program on as many sets of operands as it needs."""
    calls = product.calls
    sets = -(-product.buffers // calls)
    columns = {
        role: stock.numbers(role, shape, product.dtype, feature_major, calls * sets)
        for role, (shape, feature_major) in product.numbers.items()
    }
    if product.pattern is not None:
        columns["indices"] = stock.indices(
            product.pattern, product.depth, product.cols, calls * sets
        )
    each = [
        _operands({role: c[k * calls :][:calls] for role, c in columns.items()}, calls)
        for k in range(sets)
    ]
    return Program(compiled, each, calls)


def compile_program(product: Product) -> Callable[..., Any]:
    """Compiles the calls of a product from shapes alone, in its layouts."""
    forward = _forward(product)

    def one(
        x: Any, values: Any, indices: Any, bias: Any, dy: Any
    ) -> tuple[jax.Array, ...]:
        if product.op == "spmm":
            return (forward(x, values, indices, bias),)
        y, pull = jax.vjp(lambda x, v: forward(x, v, indices, bias), x, values)
        dx, dvalues = pull(dy)
        every = {"spmm_t": (dx,), "sddmm": (dvalues,), "step": (y, dx, dvalues)}
        return every[product.op]

    def many(*operands: Any) -> list[tuple[jax.Array, ...]]:
        return [one(*each) for each in zip(*operands, strict=True)]

    calls = product.calls
    columns = {
        role: [jax.ShapeDtypeStruct(shape, product.dtype)] * calls
        for role, (shape, _) in product.numbers.items()
    }
    if product.pattern is not None:
        groups = product.pattern.groups(product.cols)
        indices = jax.ShapeDtypeStruct((groups, product.kept), jnp.uint8)
        columns["indices"] = [indices] * calls
    # x, dy and the results of their shape get the layout; weights are row-major.
    moving, still = format_of(2, product.feature_major), format_of(2, False)
    results = {
        "spmm": (moving,),
        "spmm_t": (moving,),
        "sddmm": (still,),
        "step": (moving, moving, still),
    }[product.op]
    jitted = jax.jit(
        many,
        in_shardings=(moving, None, None, None, moving),
        out_shardings=[results] * calls,
    )
    return jitted.lower(*_operands(columns, calls)).compile()


def _operands(columns: dict[str, list[Any]], calls: int) -> Operands:
    nothing = [None] * calls
    return (
        columns["x"],
        columns["values"],
        columns.get("indices", nothing),
        columns.get("bias", nothing),
        columns.get("dy", nothing),
    )


def _forward(product: Product) -> Callable[..., jax.Array]:
    precision, pattern = product.precision, product.pattern
    if pattern is None:
        return lambda x, kernel, _, __: jnp.matmul(x, kernel, precision=precision)
    activation = None if product.epilogue is None else "gelu"

    def forward(
        x: jax.Array, values: jax.Array, indices: jax.Array, bias: jax.Array | None
    ) -> jax.Array:
        w = NMArray(values, indices, pattern, product.depth, product.cols)
        return spmm(
            x,
            w,
            bias,
            activation,
            precision=precision,
            implementation=product.implementation,
        )

    return forward
