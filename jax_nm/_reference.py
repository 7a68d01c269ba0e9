"""The meaning of the three operations, in plain jnp.

    spmm:    y[r, c]              =  sum over j of  x[r, source(g, j)] * values[j, c]
    spmm_t:  dx[r, source(g, j)] +=  sum over c in g of  dy[r, c] * values[j, c]
    sddmm:   dvalues[j, c]        =  sum over r of  x[r, source(g, j)] * dy[r, c]

with ``g = c // vector_length``. Only kept elements are touched, so a NaN or Inf of x
reaches exactly the columns that read it. This is also what runs on platforms that have
no kernels of their own. Matrices here are [rows, ...]; `_lowering` flattens and maps.
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

# The activations that a fused spmm has by name.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


def spmm(
    x: Array, values: Array, indices: Array, *, pattern: Pattern, depth: int
) -> Array:
    """[rows, depth], [kept, cols], [groups, kept] -> [rows, cols], unrounded."""
    slots = pattern.is_slot(depth)
    x, values = _widen(x, values)

    def one_group(group: tuple[Array, Array]) -> Array:
        source, values = group
        picked = jnp.where(slots, x[:, source], 0)
        return _dot(picked, jnp.where(slots[:, None], values, 0))

    groups = (pattern.source(indices, depth), _split(values, pattern))
    return _join(jax.lax.map(one_group, groups), values.shape[1])


def spmm_t(
    dy: Array, values: Array, indices: Array, *, pattern: Pattern, depth: int
) -> Array:
    """[rows, cols], [kept, cols], [groups, kept] -> [rows, depth], unrounded."""
    slots = pattern.is_slot(depth)
    dy, values = _widen(dy, values)

    def one_group(dx: Array, group: tuple[Array, ...]) -> tuple[Array, None]:
        source, dy, values = group
        partial = _dot(dy, jnp.where(slots[:, None], values, 0).T)
        source = jnp.where(slots, source, depth)
        return dx.at[:, source].add(partial, mode="drop"), None

    groups = (
        pattern.source(indices, depth),
        _split(dy, pattern),
        _split(values, pattern),
    )
    dx = jnp.zeros((dy.shape[0], depth), dy.dtype)
    return jax.lax.scan(one_group, dx, groups)[0]


def sddmm(
    x: Array, dy: Array, indices: Array, *, pattern: Pattern, depth: int
) -> Array:
    """[rows, depth], [rows, cols], [groups, kept] -> [kept, cols], unrounded."""
    slots = pattern.is_slot(depth)
    x, dy = _widen(x, dy)

    def one_group(group: tuple[Array, Array]) -> Array:
        source, dy = group
        return jnp.where(slots[:, None], _dot(x[:, source].T, dy), 0)

    groups = (pattern.source(indices, depth), _split(dy, pattern))
    return _join(jax.lax.map(one_group, groups), dy.shape[1])


def finish(
    sums: Array, bias: Array | None, activation: str | None, batch_ndim: int
) -> tuple[Array, Array]:
    """What a fused spmm does to its sums: ``activation(sums + bias), sums + bias``.

    [*batch, *lead, cols], [*batch, cols] -> twice [*batch, *lead, cols], unrounded.
    """
    if bias is not None:
        lead = range(batch_ndim, sums.ndim - 1)
        sums = sums + jnp.expand_dims(bias, tuple(lead))
    return (ACTIVATIONS[activation](sums) if activation else sums), sums


def accumulator(dtype: Any) -> np.dtype:
    """The dtype in which sums are kept: float32, or float64 for float64."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _widen(a: Array, b: Array) -> tuple[Array, Array]:
    dtype = accumulator(a.dtype)
    return a.astype(dtype), b.astype(dtype)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _split(a: Array, pattern: Pattern) -> Array:
    """[rows, cols] -> [groups, rows, vector_length], the last group zero-padded."""
    rows, cols = a.shape
    groups, length = pattern.groups(cols), pattern.vector_length
    a = jnp.pad(a, ((0, 0), (0, groups * length - cols)))
    return jnp.moveaxis(a.reshape(rows, groups, length), 1, 0)


def _join(a: Array, cols: int) -> Array:
    """The inverse of `_split`."""
    groups, rows, length = a.shape
    return jnp.moveaxis(a, 0, 1).reshape(rows, groups * length)[:, :cols]
