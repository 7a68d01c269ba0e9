"""From a dense kernel to an `NMArray`: scores, masks, compression, calibrated refit."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm._array import NMArray
from jax_nm._checks import check_array, check_floating
from jax_nm._pattern import Pattern
from jax_nm._reference import accumulator


def prune_mask(scores: Any, pattern: Pattern) -> jax.Array:
    """The mask of the `pattern` that keeps the vectors with the largest scores.

        score[i, g] = sum over c in g of scores[i, c]

    In every window and group the `n` vectors with the largest score are kept (all rows
    of a ragged window with fewer), ties going to the lower index. Jit-able and
    deterministic. `jax_nm.compress` prunes by magnitude on its own; use this for scores
    of another kind, such as ``abs(w * gradient)``.

    Args:
      scores: ``[*batch, depth, cols]``, floating.
      pattern: The pattern to satisfy.

    Returns:
      bool ``[*batch, depth, cols]``, the same for all columns of a group.

    Raises:
      TypeError: If `scores` is not a floating array or `pattern` no `Pattern`.
      ValueError: If `scores` has fewer than 2 axes.

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    >>> prune_mask(scores, Pattern(2, 4, vector_length=2))[:, 0].tolist()
    [True, False, True, False]
    """
    pattern = check_pattern("prune_mask", pattern)
    scores = check_matrix("prune_mask", "scores", scores)
    return _prune_mask(scores, pattern)


def compress(
    kernel: Any,
    pattern: Pattern,
    mask: Any = None,
    gram: Any = None,
    *,
    damping: float = 0.01,
) -> NMArray:
    """Prunes a dense kernel and compresses it.

    Without a mask the kept vectors are those with the largest ``sum |w|``; with `gram`
    those with the largest ``sum |w| * sqrt(diag gram)``. With `gram` the kept values
    are also refit by least squares on the calibration inputs: per group, whose columns
    share their support S,

        (G_SS + lam I) v = G_S: W + lam W_S,    lam = damping * mean(diag G).

    Args:
      kernel: ``[*batch, depth, cols]``, floating: the dense weight, ``y = x @ kernel``.
      pattern: The pattern to prune to.
      mask: bool, the kernel's shape: keep exactly these elements. A concrete mask is
        checked against the pattern; a traced one is not, and where it breaks the
        pattern the result is unspecified.
      gram: ``[depth, depth]`` or ``[*batch, depth, depth]``, ``X^T X`` of the layer's
        calibration inputs.
      damping: Ridge term of the refit, relative to the mean of the diagonal. With 0 the
        kept rows of the gram must be independent.

    Returns:
      An `NMArray` with values in the kernel's dtype.

    Raises:
      TypeError: If an argument has the wrong type or dtype.
      ValueError: If shapes disagree, the mask breaks the pattern, damping is negative
        or not finite, or, outside jit, too small for a gram that is nearly singular.

    Source: vector-wise pruning, NM-SpMM (arXiv 2503.01253); the score is Wanda's
    (arXiv 2306.11695), summed over the vector; the refit is the exact optimum of the
    layer-wise problem of SparseGPT (arXiv 2301.00774) for a given mask.

    >>> import jax.numpy as jnp
    >>> w = compress(jnp.arange(8.0).reshape(4, 2), Pattern(1, 2, vector_length=2))
    >>> w.values.tolist()
    [[2.0, 3.0], [6.0, 7.0]]
    """
    pattern = check_pattern("compress", pattern)
    kernel = check_matrix("compress", "kernel", kernel)
    depth = kernel.shape[-2]
    if mask is not None:
        mask = _check_mask(mask, kernel.shape, pattern)
    if gram is not None:
        gram = _check_gram(gram, kernel.shape)
    damping = _check_damping(damping)
    values, indices = compress_arrays(kernel, mask, gram, damping, pattern)
    if gram is not None:
        _check_refit(values, kernel, gram, damping)
    return NMArray(values, indices, pattern, depth, kernel.shape[-1])


def check_pattern(function: str, pattern: Any) -> Pattern:
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"{function}: pattern must be a jax_nm.Pattern, got {pattern!r}; write "
            "jax_nm.Pattern(8, 32, vector_length=128) or "
            "jax_nm.Pattern.parse('8:32:128')"
        )
    return pattern


def check_matrix(function: str, name: str, a: Any) -> jax.Array:
    a = check_array(function, name, a)
    check_floating(function, name, a.dtype)
    if a.ndim < 2:
        raise ValueError(
            f"{function}: {name} must have shape [*batch, depth, cols], got {a.shape}; "
            "a sparse weight has at least 2 axes"
        )
    return a


def _check_mask(mask: Any, shape: tuple[int, ...], pattern: Pattern) -> jax.Array:
    mask = check_array("compress", "mask", mask)
    if mask.dtype != bool:
        raise TypeError(
            f"compress: mask must be bool, got {mask.dtype}; write mask != 0"
        )
    if mask.shape != shape:
        raise ValueError(
            f"compress: mask must have the kernel's shape {shape}, got {mask.shape}; "
            "make it from scores of the kernel's shape with prune_mask"
        )
    if isinstance(mask, jax.core.Tracer) or mask.size == 0:
        return mask
    uniform, counted, count = _mask_follows(mask, pattern)
    if not uniform:
        raise ValueError(
            "compress: mask must be the same for all columns of a group of "
            f"{pattern.vector_length} (pattern {pattern}), got a row of some group "
            "that is kept only in part; make it with prune_mask or use vector_length=1"
        )
    if not counted:
        raise ValueError(
            f"compress: mask must keep exactly {pattern.n} of every {pattern.m} rows "
            "in each group, or all rows of a ragged window with fewer (pattern "
            f"{pattern}), got {count} in some window; make it with prune_mask"
        )
    return mask


def _check_gram(gram: Any, shape: tuple[int, ...]) -> jax.Array:
    gram = check_array("compress", "gram", gram)
    check_floating("compress", "gram", gram.dtype)
    *batch, depth, _ = shape
    square = (depth, depth)
    if gram.shape not in (square, (*batch, *square)):
        raise ValueError(
            f"compress: gram must have shape {square} (X^T X of the inputs of a kernel "
            f"of depth {depth}) or that with the kernel's leading axes, got "
            f"{gram.shape}; sum x.T @ x over the calibration inputs x [rows, depth]"
        )
    return jnp.broadcast_to(gram, (*batch, *square))


def _check_damping(damping: Any) -> float:
    if not isinstance(damping, numbers.Real) or isinstance(damping, bool):
        raise TypeError(
            f"compress: damping must be a Python number, got {damping!r}; the default "
            "is 0.01"
        )
    damping = float(damping)
    if not 0 <= damping < math.inf:
        raise ValueError(
            f"compress: damping must be at least 0 and finite, got {damping!r}; the "
            "default is 0.01"
        )
    return damping


def _check_refit(
    values: jax.Array, kernel: jax.Array, gram: jax.Array, damping: float
) -> None:
    """Raises where the refit of finite inputs has no solution; traced ones pass."""
    if any(isinstance(a, jax.core.Tracer) for a in (values, kernel, gram)):
        return
    if bool(_any_nan(values)) and not bool(_any_nan(kernel) | _any_nan(gram)):
        raise ValueError(
            "compress: damping must make the gram positive definite in float32, got "
            f"damping={damping} and a singular system; the default is 0.01"
        )


@jax.jit
def _any_nan(a: jax.Array) -> jax.Array:
    return jnp.any(jnp.isnan(a))


@functools.partial(jax.jit, static_argnames=["pattern"])
def _mask_follows(mask: jax.Array, pattern: Pattern) -> tuple[jax.Array, ...]:
    """Whether vectors are kept whole, whether counts fit, and the first that is off."""
    cols = mask.shape[-1]
    first = np.arange(cols) // pattern.vector_length * pattern.vector_length
    kept = _windowed(mask[..., :: pattern.vector_length], pattern, False)
    counts = jnp.sum(kept, axis=-2, dtype=jnp.int32)
    expected = pattern.kept_per_window(mask.shape[-2]).astype(np.int32)[:, None]
    wrong = counts != np.broadcast_to(expected, counts.shape)
    count = counts.reshape(-1)[jnp.argmax(wrong)]
    return jnp.all(mask == mask[..., first]), ~jnp.any(wrong), count


@functools.partial(jax.jit, static_argnames=["pattern"])
def _prune_mask(scores: jax.Array, pattern: Pattern) -> jax.Array:
    depth, cols = scores.shape[-2:]
    offsets = _select(_vector_sums(scores, pattern), pattern)
    kept = jnp.put_along_axis(
        jnp.zeros((*offsets.shape[:-1], pattern.m), bool),
        offsets,
        True,
        axis=-1,
        inplace=False,
    )
    kept = jnp.swapaxes(kept, -1, -2)
    *batch, windows, m, groups = kept.shape
    kept = kept.reshape(*batch, windows * m, groups)[..., :depth, :]
    return jnp.repeat(kept, pattern.vector_length, axis=-1)[..., :cols]


@functools.partial(jax.jit, static_argnames=["pattern"])
def compress_arrays(
    kernel: jax.Array,
    mask: jax.Array | None,
    gram: jax.Array | None,
    damping: jax.Array,
    pattern: Pattern,
) -> tuple[jax.Array, jax.Array]:
    fun = functools.partial(_compress_matrix, damping=damping, pattern=pattern)
    for _ in kernel.shape[:-2]:
        fun = jax.vmap(fun)
    return fun(kernel, mask, gram)


def _compress_matrix(
    kernel: jax.Array,
    mask: jax.Array | None,
    gram: jax.Array | None,
    *,
    damping: jax.Array,
    pattern: Pattern,
) -> tuple[jax.Array, jax.Array]:
    depth = kernel.shape[0]
    dtype = accumulator(kernel.dtype)
    if mask is not None:
        scores = mask[:, :: pattern.vector_length].astype(dtype)
    else:
        scores = jnp.abs(kernel).astype(dtype)
        if gram is not None:
            scores *= jnp.sqrt(jnp.diag(gram).astype(dtype))[:, None]
        scores = _vector_sums(scores, pattern)
    indices = _indices(_select(scores, pattern), depth, pattern)
    values = gather(kernel, indices, pattern)
    if gram is not None:
        values = _refit(
            kernel.astype(dtype), indices, gram.astype(dtype), damping, pattern
        )
    slots = pattern.is_slot(depth)[:, None]
    return jnp.where(slots, values, 0).astype(kernel.dtype), indices


def _vector_sums(scores: jax.Array, pattern: Pattern) -> jax.Array:
    """[..., depth, cols] -> [..., depth, groups], summed over each group's columns."""
    cols, length = scores.shape[-1], pattern.vector_length
    groups = pattern.groups(cols)
    pad = [(0, 0)] * (scores.ndim - 1) + [(0, groups * length - cols)]
    grouped = jnp.pad(scores, pad).reshape(*scores.shape[:-1], groups, length)
    return jnp.sum(grouped, axis=-1, dtype=accumulator(scores.dtype))


def _windowed(a: jax.Array, pattern: Pattern, fill: Any) -> jax.Array:
    """[..., depth, groups] -> [..., windows, m, groups], the last window filled up."""
    depth, groups = a.shape[-2:]
    windows = pattern.windows(depth)
    pad = [(0, 0)] * (a.ndim - 2) + [(0, windows * pattern.m - depth), (0, 0)]
    padded = jnp.pad(a, pad, constant_values=fill)
    return padded.reshape(*a.shape[:-2], windows, pattern.m, groups)


def _select(scores: jax.Array, pattern: Pattern) -> jax.Array:
    """[..., depth, groups] -> int32 [..., windows, groups, n], ascending offsets.

    The n largest scores of each window, ties to the lower offset. NaN ranks last, and
    rows beyond the depth after everything else.
    """
    # top_k puts -0.0 below 0.0; as scores they tie.
    scores = jnp.where(scores == 0, 0, jnp.where(jnp.isnan(scores), -jnp.inf, scores))
    windowed = jnp.swapaxes(_windowed(scores, pattern, -jnp.inf), -1, -2)
    if pattern.m <= _MOST_COMPARED:
        return _rank(windowed, pattern.n)
    return jnp.sort(jax.lax.top_k(windowed, pattern.n)[1], axis=-1)


# Two CPU cores rank the windows of a 4096 x 4096 matrix, 16:32 and one column a vector,
# in 160 ms by comparison and in 470 ms by top_k; of 64 rows each, in 3.0 s and 0.37 s.
_MOST_COMPARED = 32


def _rank(scores: jax.Array, n: int) -> jax.Array:
    """[..., m] -> int32 [..., n]: the n largest, ascending, by comparing all pairs."""
    m = scores.shape[-1]
    is_earlier = np.arange(m)[:, None] > np.arange(m)
    is_earlier = is_earlier.reshape((1,) * (scores.ndim - 1) + (m, m))
    one, other = scores[..., :, None], scores[..., None, :]
    beaten_by = (other > one) | ((other == one) & is_earlier)
    is_kept = jnp.sum(beaten_by, axis=-1, dtype=jnp.int32) < n
    slot = jnp.sum(is_kept[..., None, :] & is_earlier, axis=-1, dtype=jnp.int32)
    slots = np.arange(n, dtype=np.int32).reshape((1,) * (scores.ndim - 1) + (n, 1))
    lands = is_kept[..., None, :] & (slot[..., None, :] == slots)
    offsets = np.arange(m, dtype=np.int32).reshape((1,) * scores.ndim + (m,))
    return jnp.sum(jnp.where(lands, offsets, 0), axis=-1, dtype=jnp.int32)


def _indices(offsets: jax.Array, depth: int, pattern: Pattern) -> jax.Array:
    """[windows, groups, n] -> uint8 [groups, kept]; padding repeats the last row."""
    windows, groups, n = offsets.shape
    rows = np.minimum(pattern.m, depth - pattern.m * np.arange(windows))
    last = (rows - 1).astype(np.int32)[:, None, None]
    offsets = jnp.minimum(offsets, last).astype(jnp.uint8)
    return jnp.swapaxes(offsets, 0, 1).reshape(groups, windows * n)


def gather(kernel: jax.Array, indices: jax.Array, pattern: Pattern) -> jax.Array:
    """[depth, cols] -> [kept, cols]: the vectors that the slots name."""
    depth, cols = kernel.shape
    group = np.arange(cols) // pattern.vector_length
    source = pattern.source(indices, depth)
    return jnp.take_along_axis(kernel, source[group].T, axis=0)


def _refit(
    kernel: jax.Array,
    indices: jax.Array,
    gram: jax.Array,
    damping: jax.Array,
    pattern: Pattern,
) -> jax.Array:
    """The least-squares values for the kept support, one solve per group."""
    depth, cols = kernel.shape
    length, groups = pattern.vector_length, pattern.groups(cols)
    slots = pattern.is_slot(depth)
    pair = slots[:, None] & slots
    # A zero gram (no calibration input reached the layer) keeps the kernel's values.
    scale = jnp.mean(jnp.diag(gram))
    ridge = jnp.where(scale == 0, 1, damping * scale)

    def one_group(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        source, columns = group
        rows = gram[source]
        system = jnp.where(pair, rows[:, source], 0) + ridge * jnp.eye(len(slots))
        target = jnp.matmul(rows, columns, precision=jax.lax.Precision.HIGHEST)
        target = target + ridge * columns[source]
        factor = jax.scipy.linalg.cho_factor(system, lower=True)
        return jax.scipy.linalg.cho_solve(factor, jnp.where(slots[:, None], target, 0))

    padded = jnp.pad(kernel, ((0, 0), (0, groups * length - cols)))
    columns = jnp.moveaxis(padded.reshape(depth, groups, length), 1, 0)
    solved = jax.lax.map(one_group, (pattern.source(indices, depth), columns))
    solved = jnp.moveaxis(solved, 0, 1).reshape(len(slots), groups * length)
    return solved[:, :cols]
