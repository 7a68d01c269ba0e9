"""`NMArray`: an N:M-sparse weight in compressed form."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm._checks import check_dtype, check_leaves, check_whole
from jax_nm._pattern import Pattern


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "indices"],
    meta_fields=["pattern", "depth", "cols"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NMArray:
    """The compressed form of a weight ``W[*batch, depth, cols]``.

        W[source(g, j), c] = values[j, c],    g = c // vector_length,
        source(g, j) = (j // n) * m + indices[g, j],    every other element is 0

    Build it with `jax_nm.compress`. It is a pytree, so it passes through `jit`, `vmap`,
    `scan`, checkpoints and optimizers; the constructor accepts any leaves (tracers,
    ``ShapeDtypeStruct``, ``None``, float0) and inspects none. `jax_nm.validate` checks
    concrete arrays.

    Attributes:
      values: ``[*batch, kept, cols]``, floating; the trainable leaf.
      indices: ``[*batch, groups, kept]``, uint8: the offset of each slot in its window,
        ascending inside a window.
      pattern: The static `Pattern`.
      depth: Reduction length of the whole weight.
      cols: Output features of the whole weight.
    """

    values: Any
    indices: Any
    pattern: Pattern
    depth: int
    cols: int

    # NumPy must leave `x @ w` to __rmatmul__ instead of making an object array of w.
    __array_ufunc__ = None

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes: stacked layers, experts."""
        return tuple(self.values.shape[:-2])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense weight, ``(*batch, depth, cols)``."""
        return (*self.batch_shape, self.depth, self.cols)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed form, indices included."""
        return sum(
            math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            for leaf in (self.values, self.indices)
        )

    def astype(self, dtype: Any) -> NMArray:
        """The same weight with `values` cast to a floating `dtype`."""
        fix = "a sparse weight has no values of another dtype"
        target = check_dtype("NMArray.astype", "dtype", dtype, fix)
        check_leaves("NMArray.astype", self)
        return dataclasses.replace(self, values=self.values.astype(target))

    def todense(self) -> jax.Array:
        """The dense weight ``[*batch, depth, cols]``."""
        check_whole("NMArray.todense", self)
        return _scatter(self.values, self.indices, self.pattern, self.depth)

    def mask(self) -> jax.Array:
        """bool ``[*batch, depth, cols]``: True where the pattern keeps an element."""
        check_whole("NMArray.mask", self)
        return kept_mask(self.indices, self.pattern, self.depth, self.cols)

    def __rmatmul__(self, x: Any) -> jax.Array:
        from jax_nm._spmm import spmm

        return spmm(x, self)

    def __matmul__(self, other: Any) -> NoReturn:
        raise TypeError(
            "NMArray: a sparse weight must stand on the right of @, as in x @ w with a "
            f"dense x, got w @ {type(other).__name__}; for another product use "
            "w.todense()"
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "NMArray: the conversion to a dense array must be explicit, got an "
            "implicit one; write w.todense()"
        )

    def __repr__(self) -> str:
        leaves = ", ".join(
            f"{name}={_describe(getattr(self, name))}" for name in ("values", "indices")
        )
        return (
            f"NMArray({self.pattern}, depth={self.depth}, cols={self.cols}, {leaves})"
        )


@functools.partial(jax.jit, static_argnames=["pattern", "depth"])
def _scatter(
    kept: jax.Array, indices: jax.Array, pattern: Pattern, depth: int
) -> jax.Array:
    """[..., kept, cols] -> [..., depth, cols]: each slot in the row that it names."""
    cols = kept.shape[-1]
    # A padding slot writes to row `depth`, which the scatter drops.
    slots = pattern.is_slot(depth)
    group = np.arange(cols) // pattern.vector_length

    def scatter(kept: jax.Array, indices: jax.Array) -> jax.Array:
        source = jnp.where(slots, pattern.source(indices, depth), depth)
        dense = jnp.zeros((depth, cols), kept.dtype)
        return dense.at[source[group].T, np.arange(cols)].set(kept, mode="drop")

    for _ in kept.shape[:-2]:
        scatter = jax.vmap(scatter)
    return scatter(kept, indices)


@functools.partial(jax.jit, static_argnames=["pattern", "depth", "cols"])
def kept_mask(indices: jax.Array, pattern: Pattern, depth: int, cols: int) -> jax.Array:
    """uint8 [*batch, groups, kept] -> bool [*batch, depth, cols].

    By comparison: unlike a scatter it fuses into what reads the mask.
    """
    n, m, slots = pattern.n, pattern.m, pattern.kept(depth)
    base = np.arange(slots, dtype=np.int32) // n * m
    offsets = pattern.source(indices, depth) - jnp.broadcast_to(base, indices.shape)
    offsets = jnp.where(pattern.is_slot(depth), offsets, -1)  # -1 is no row at all
    lead = indices.shape[:-1]
    rows = jax.nn.one_hot(offsets.reshape(*lead, slots // n, n), m, dtype=bool)
    rows = jnp.any(rows, axis=-2).reshape(*lead, slots // n * m)
    mask = jnp.swapaxes(rows, -1, -2)[..., :depth, :]
    length = min(pattern.vector_length, cols)
    return jnp.repeat(mask, length, axis=-1)[..., :cols]


def _describe(leaf: Any) -> str:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    return repr(leaf)


def validate(w: NMArray) -> NMArray:
    """Checks the contents of a concrete `NMArray` and returns it.

    The constructor checks nothing and the kernels are memory-safe for any content, but
    the product of a malformed weight is unspecified. Use this on weights that come from
    elsewhere.

    Raises:
      TypeError: If `w` is no `NMArray`, its leaves are not concrete arrays, or a dtype
        is wrong.
      ValueError: If shapes disagree with pattern, depth and cols, or an index is
        outside its window, beyond the depth, or not ascending inside its window.
    """
    if not isinstance(w, NMArray):
        raise TypeError(
            f"validate: w must be a jax_nm.NMArray, got {type(w).__name__}; make it "
            "with jax_nm.compress(kernel, pattern)"
        )
    for name in ("values", "indices"):
        leaf = getattr(w, name)
        if isinstance(leaf, jax.core.Tracer) or not isinstance(
            leaf, (jax.Array, np.ndarray)
        ):
            raise TypeError(
                f"validate: w.{name} must be a concrete array, got "
                f"{type(leaf).__name__}; call validate outside jit, on real weights"
            )
    check_whole("validate", w)
    pattern, depth = w.pattern, w.depth
    offset = np.asarray(w.indices).astype(np.int64)
    offset = offset.reshape(*offset.shape[:-1], pattern.windows(depth), pattern.n)
    slot = pattern.is_slot(depth).reshape(offset.shape[-2:])
    rows = np.minimum(pattern.m, depth - pattern.m * np.arange(offset.shape[-2]))
    outside = slot & (offset >= rows[:, None])
    if outside.any():
        raise ValueError(
            "validate: w.indices must lie inside their window (below m, and below "
            "depth in a ragged last one), got an offset of "
            f"{np.max(offset[outside])} with m={pattern.m}, depth={depth}; build w "
            "with compress"
        )
    if (slot[..., 1:] & (offset[..., 1:] <= offset[..., :-1])).any():
        raise ValueError(
            "validate: w.indices must be strictly ascending inside each window, got a "
            "repeated or descending offset; sort the slots of each window, values too"
        )
    return w
