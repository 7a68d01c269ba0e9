"""The three products by way of a dense matrix, where that is faster.

    spmm:    y       = x W                with the dense weight W, expanded for the call
    spmm_t:  dx      = dy W^T
    sddmm:   dvalues = (x^T dy) at the kept positions

XLA's own product is as fast as the GPU is; what is added is one pass over memory. To
expand W a GPU has a kernel, which the lowering passes as `expander`. Elsewhere each
element of W, and everywhere each one of dvalues, is a gather within its window, in
which consecutive columns read consecutive elements. XLA chooses the layouts of x and y
as it does for a dense product. A NaN or Inf of x or dy makes its whole row of y or dx
non-finite here. Matrices are [rows, ...] as in `_reference`; indices must not repeat
within a window.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_nm._pattern import Pattern
from jax_nm._reference import accumulator

# (values, indices, *, pattern, depth) -> W, as `expand`.
Expander = Callable[..., Array]

# Beyond this many bytes of dense matrices the weights of a batch go one by one.
MANY_BYTES = 1 << 30


def mapped(
    op: str,
    first: Array,
    second: Array,
    indices: Array,
    *,
    pattern: Pattern,
    depth: int,
    highest: bool,
    expander: Expander | None = None,
) -> Array:
    """One of the products for a batch of weights, the leading axis of all operands.

    Every dense matrix takes its memory while its product lasts. Of how many there are,
    a symbolic batch says nothing.
    """
    precision = jax.lax.Precision
    options: dict[str, Any] = {} if op == "sddmm" else {"expander": expander}
    products: dict[str, Callable[..., Array]]
    products = {"spmm": spmm, "spmm_t": spmm_t, "sddmm": sddmm}
    fun = functools.partial(
        products[op],
        pattern=pattern,
        depth=depth,
        precision=precision.HIGHEST if highest else precision.DEFAULT,
        **options,
    )
    batch = first.shape[0]
    known = isinstance(batch, (int, np.integer))
    if known and 4 * batch * depth * second.shape[-1] <= MANY_BYTES:
        return jax.vmap(fun)(first, second, indices)
    return jax.lax.map(lambda operands: fun(*operands), (first, second, indices))


def spmm(
    x: Array,
    values: Array,
    indices: Array,
    *,
    pattern: Pattern,
    depth: int,
    precision: Any,
    expander: Expander | None = None,
) -> Array:
    """[rows, depth], [kept, cols], [groups, kept] -> [rows, cols], unrounded."""
    x, indices = _beside(x, indices)
    dense = (expander or expand)(values, indices, pattern=pattern, depth=depth)
    return _product("rk,kc->rc", x, dense, precision)


def spmm_t(
    dy: Array,
    values: Array,
    indices: Array,
    *,
    pattern: Pattern,
    depth: int,
    precision: Any,
    expander: Expander | None = None,
) -> Array:
    """[rows, cols], [kept, cols], [groups, kept] -> [rows, depth], unrounded."""
    dy, indices = _beside(dy, indices)
    dense = (expander or expand)(values, indices, pattern=pattern, depth=depth)
    return _product("rc,kc->rk", dy, dense, precision)


def sddmm(
    x: Array,
    dy: Array,
    indices: Array,
    *,
    pattern: Pattern,
    depth: int,
    precision: Any,
) -> Array:
    """[rows, depth], [rows, cols], [groups, kept] -> [kept, cols], unrounded."""
    full = _product("rk,rc->kc", x, dy, precision)
    cols = full.shape[1]
    windows = _windows(full, pattern, depth, pattern.m)
    offsets = jnp.moveaxis(_offsets(indices, pattern, depth), 0, 2)[..., None]
    picked = jnp.take_along_axis(windows, offsets, 1, mode="promise_in_bounds")
    kept = picked.reshape(pattern.kept(depth), -1)[:, :cols]
    return jnp.where(pattern.is_slot(depth)[:, None], kept, 0)


def _beside(operand: Array, indices: Array) -> tuple[Array, Array]:
    """What expands a weight for a product with `operand` alone.

    Behind a barrier it is no common subexpression of two products. XLA would keep that
    of the forward pass until the backward pass: a dense weight per layer.
    """
    return jax.lax.optimization_barrier((operand, indices))


def expand(values: Array, indices: Array, *, pattern: Pattern, depth: int) -> Array:
    """[kept, cols], [groups, kept] -> the dense weight [depth, cols]."""
    cols = values.shape[1]
    windows = _windows(values, pattern, depth, pattern.n)
    # Which slot holds each row of a window, [groups, windows, m].
    slots = pattern.is_slot(depth).reshape(1, -1, 1, pattern.n)
    rows = jnp.arange(pattern.m, dtype=jnp.int32).reshape(1, 1, -1, 1)
    holds = (_offsets(indices, pattern, depth)[:, :, None] == rows) & slots
    slot, is_held = jax.lax.argmax(holds, 3, jnp.int32), jnp.any(holds, axis=-1)
    slot, is_held = (jnp.moveaxis(a, 0, 2)[..., None] for a in (slot, is_held))
    picked = jnp.take_along_axis(windows, slot, 1, mode="promise_in_bounds")
    dense = jnp.where(is_held, picked, 0)
    return dense.reshape(-1, windows.shape[2] * windows.shape[3])[:depth, :cols]


def _product(equation: str, a: Array, b: Array, precision: Any) -> Array:
    """In float32. Asked for half precision, XLA may round partial sums to it too."""
    dtype = accumulator(a.dtype)
    sums = jnp.einsum(equation, a, b, precision=precision, preferred_element_type=dtype)
    # Nor may the rounding that follows be fused into the product.
    return jax.lax.optimization_barrier(sums)


def _offsets(indices: Array, pattern: Pattern, depth: int) -> Array:
    """[groups, kept] -> int32 [groups, windows, n], within the window and the depth."""
    offsets = indices.astype(jnp.int32).reshape(indices.shape[0], -1, pattern.n)
    last = depth - 1 - np.arange(pattern.windows(depth)) * pattern.m
    last = np.minimum(last, pattern.m - 1).astype(np.int32)
    return jnp.minimum(offsets, last[None, :, None])


def _windows(a: Array, pattern: Pattern, depth: int, height: int) -> Array:
    """[rows, cols] -> [windows, height, groups, columns of a group], zero-padded."""
    rows, cols = a.shape
    windows, groups = pattern.windows(depth), pattern.groups(cols)
    length = min(pattern.vector_length, cols)
    a = jax.lax.pad(
        a,
        jnp.zeros((), a.dtype),
        ((0, windows * height - rows, 0), (0, groups * length - cols, 0)),
    )
    return a.reshape(windows, height, groups, length)
