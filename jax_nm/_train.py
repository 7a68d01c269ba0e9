"""Sparse training with a dense master kernel.

The parameters stay dense arrays, ``kernel[*batch, depth, cols]``. Beside them, out of
the optimizer's sight, are the `indices` of the vectors that are kept now:

    indices = select_indices(kernel, pattern)          the largest vectors
    w       = compress_at(kernel, indices, pattern)    gradients at kept positions only
    y       = spmm_ste(x, kernel, indices, pattern)    gradients at every position
    indices = reselect_indices(kernel, indices, ...)   every k steps, inside jit

`spmm_ste` is the straight-through estimator: the gradient of the dense product, at the
output of the sparse one. A dropped weight goes on learning and may come back.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jax_nm import _primitives, _prune, _spmm
from jax_nm._array import NMArray, kept_mask
from jax_nm._checks import check_array, check_dtype, check_floating
from jax_nm._pattern import Pattern
from jax_nm._reference import accumulator


def select_indices(kernel: Any, pattern: Pattern) -> jax.Array:
    """The indices of the vectors that `jax_nm.compress` would keep.

    In every window and group the `n` vectors with the largest ``sum |kernel|``, ties
    going to the lower index. Jit-able and deterministic. Scores of another kind, such
    as ``kernel * gradient``, go in the kernel's place.

    Args:
      kernel: ``[*batch, depth, cols]``, floating.
      pattern: The pattern to prune to.

    Returns:
      uint8 ``[*batch, groups, kept]``, the `indices` of an `NMArray`.

    Raises:
      TypeError: If `kernel` is not a floating array or `pattern` no `Pattern`.
      ValueError: If `kernel` has fewer than 2 axes.

    >>> import jax.numpy as jnp
    >>> kernel = jnp.array([[3.0, -3.0], [1.0, 1.0], [0.0, 2.0], [2.0, 2.0]])
    >>> select_indices(kernel, Pattern(1, 2, vector_length=2)).tolist()
    [[0, 1]]
    """
    pattern = _prune.check_pattern("select_indices", pattern)
    kernel = _prune.check_matrix("select_indices", "kernel", kernel)
    return _select(kernel, pattern)


def reselect_indices(
    kernels: Any, indices: Any, pattern: Pattern, *, step: Any, every: int
) -> Any:
    """`select_indices` anew in every `every`-th step; the old indices in between.

    For the state of a jitted training step: one `jax.lax.cond` on the step counter, so
    the other steps do not pay for the selection. Under `vmap` the counter must not be
    mapped, or both sides of the condition run in every step.

    Args:
      kernels: The master kernels: one array, or a pytree.
      indices: What is kept now, in the same structure. Where it holds None, `kernels`
        may hold anything, such as a bias: it stays dense.
      pattern: The pattern of all of them.
      step: Integer scalar, traced or not. Indices are new if it is a multiple of
        `every`.
      every: Steps between selections, a Python integer of at least 1.

    Returns:
      The indices for the step, in the structure of `indices`.

    Raises:
      TypeError: If an argument has the wrong type or dtype.
      ValueError: If structures or shapes disagree, or `every` is below 1.

    >>> import jax.numpy as jnp
    >>> pattern = Pattern(1, 2, vector_length=1)
    >>> old = select_indices(jnp.array([[1.0], [2.0]]), pattern)
    >>> new = jnp.array([[2.0], [1.0]])
    >>> [reselect_indices(new, old, pattern, step=s, every=10).item() for s in (9, 10)]
    [1, 0]
    """
    name = "reselect_indices"
    pattern = _prune.check_pattern(name, pattern)
    every = _check_every(every)
    step = _check_step(step)
    pairs, rebuild = _pair(name, kernels, indices, pattern)

    def select() -> list[jax.Array]:
        return [_select(kernel, pattern) for kernel, _ in pairs]

    if every == 1:
        return rebuild(select())
    old = [index for _, index in pairs]
    return rebuild(jax.lax.cond(step % every == 0, select, lambda: old))


def compress_at(
    kernel: Any, indices: Any, pattern: Pattern, *, dtype: Any = None
) -> NMArray:
    """Compresses a dense kernel at given indices.

        values[j, c] = kernel[source(g, j), c],    g = c // vector_length

    Differentiable: the gradient of a product with the result reaches the kernel at the
    kept positions, as a sparse product, and is 0 elsewhere. For gradients at every
    position see `spmm_ste`.

    Args:
      kernel: ``[*batch, depth, cols]``, floating: the dense master.
      indices: uint8 ``[*batch, groups, kept]``, from `select_indices`.
      pattern: The pattern that `indices` follow.
      dtype: The dtype of the values, for a product in half precision with a float32
        master. The gradient is rounded to it once and comes back in the kernel's dtype.

    Raises:
      TypeError: If an argument has the wrong type or dtype.
      ValueError: If shapes disagree.

    >>> import jax, jax.numpy as jnp, jax_nm
    >>> kernel = jnp.arange(4.0).reshape(4, 1)
    >>> pattern = Pattern(1, 2, vector_length=1)
    >>> indices = select_indices(kernel, pattern)
    >>> x = jnp.ones((1, 4))
    >>> loss = lambda k: jnp.sum(jax_nm.spmm(x, compress_at(k, indices, pattern)) ** 2)
    >>> jax.grad(loss)(kernel)[:, 0].tolist()
    [0.0, 8.0, 0.0, 8.0]
    """
    pattern = _prune.check_pattern("compress_at", pattern)
    kernel, indices = _check_master("compress_at", kernel, indices, pattern)
    target = kernel.dtype if dtype is None else _check_dtype("compress_at", dtype)
    values = _gather(kernel, indices, pattern, target)
    return NMArray(values, indices, pattern, *kernel.shape[-2:])


def spmm_ste(
    x: Any,
    kernel: Any,
    indices: Any,
    pattern: Pattern,
    bias: Any = None,
    activation: str | Callable[[jax.Array], jax.Array] | None = None,
    precision: Any = None,
    preferred_element_type: Any = None,
    result_layout: str | None = None,
    implementation: str | None = None,
    *,
    dtype: Any = None,
) -> jax.Array:
    """The sparse product of a dense master kernel, with a straight-through gradient.

        s[r, c] = sum over kept slots j of x[r, source(g, j)] * kernel[source(g, j), c]
        y[r, c] = activation(s[r, c] + bias[c]),    g = c // vector_length

    and with ds the gradient of s,

        dx[r, i]      = sum over the c whose group keeps i of ds[r, c] * kernel[i, c]
        dkernel[i, c] = sum over r of x[r, i] * ds[r, c],    kept or not.

    The value, the gradient of x and that of the bias are those of
    ``spmm(x, compress_at(kernel, indices, pattern))``. The gradient of the kernel is
    that of the dense product: one dense product in the backward pass, none in the
    forward pass. Works under the transforms that `spmm` works under, forward mode
    included. In second derivatives, where the gradient of x is differentiated in its
    turn, the kernel counts at the kept positions.

    Args:
      x: ``[..., depth]``, floating; leading axes as for `spmm`.
      kernel: ``[*batch, depth, cols]``, floating: the dense master.
      indices: uint8 ``[*batch, groups, kept]``, from `select_indices`.
      pattern: The pattern that `indices` follow.
      bias, activation, precision, preferred_element_type, result_layout,
        implementation: As for `spmm`.
      dtype: The dtype to compute in; `x` and the kept values are cast to it, for half
        precision with a float32 master. By default the promoted dtype of the two.
        Gradients come back in the dtypes of the arguments; that of the kernel is
        rounded to the compute dtype first, unless under HIGHEST.

    Returns:
      ``[..., cols]``.

    Raises:
      TypeError: If an argument has the wrong type or dtype.
      ValueError: If shapes disagree, or an option is none of those listed.

    Source: the estimator is that of Bengio et al., arXiv 1308.3432, used for N:M
    sparsity by Zhou et al., arXiv 2102.04010; see `sr_ste_penalty`.

    >>> import jax, jax.numpy as jnp
    >>> kernel = jnp.arange(4.0).reshape(4, 1)
    >>> pattern = Pattern(1, 2, vector_length=1)
    >>> indices = select_indices(kernel, pattern)
    >>> x = jnp.ones((1, 4))
    >>> loss = lambda kernel: jnp.sum(spmm_ste(x, kernel, indices, pattern) ** 2)
    >>> jax.grad(loss)(kernel)[:, 0].tolist()
    [8.0, 8.0, 8.0, 8.0]
    """
    name = "spmm_ste"
    pattern = _prune.check_pattern(name, pattern)
    kernel, indices = _check_master(name, kernel, indices, pattern)
    depth, cols = kernel.shape[-2:]
    x = _check_x(name, x, depth)
    if dtype is None:
        compute = np.dtype(jnp.promote_types(x.dtype, kernel.dtype))
    else:
        compute = _check_dtype(name, dtype)
    # The operands of the sparse product, for the checks that it shares with `spmm`.
    kept = (*indices.shape[:-2], pattern.kept(depth), cols)
    values = jax.ShapeDtypeStruct(kept, compute)
    shapes, w, options = _spmm.check(
        name,
        jax.ShapeDtypeStruct(x.shape, compute),
        NMArray(values, indices, pattern, depth, cols),
        precision,
        preferred_element_type,
        result_layout,
        abstract=True,
        implementation=implementation,
    )
    return _spmm_ste(
        x,
        kernel,
        indices,
        _spmm.check_bias(name, bias, shapes, w),
        activation=_spmm.check_activation(name, activation),
        options=options,
    )


def sr_ste_penalty(
    kernels: Any, indices: Any, pattern: Pattern, decay: Any = 2e-4
) -> jax.Array:
    """The regulariser of SR-STE: an L2 penalty on the weights that are dropped.

        penalty = decay / 2 * sum over dropped (i, c) of kernel[i, c]^2

    Add it to the loss. Its gradient, ``decay * (1 - mask) * kernel``, draws the dropped
    weights towards zero, which keeps the choice of the kept ones from flickering. As a
    term of the loss it follows the scale of a scaled loss, and it counts once for a
    kernel that is used twice.

    Args:
      kernels: The master kernels: one array, or a pytree.
      indices: What is kept, in the same structure; kernels where it holds None, and
        biases, are left out.
      pattern: The pattern of all of them.
      decay: The weight of the term, a number or a scalar array. The default is that of
        the source, for SGD; Adam divides the term by the size of the gradient.

    Returns:
      A scalar, summed in float32 or wider.

    Raises:
      TypeError: If an argument has the wrong type or dtype.
      ValueError: If structures or shapes disagree.

    Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks
    From Scratch", arXiv 2102.04010.

    >>> import jax, jax.numpy as jnp
    >>> kernel = jnp.arange(4.0).reshape(4, 1)
    >>> pattern = Pattern(1, 2, vector_length=1)
    >>> indices = select_indices(kernel, pattern)
    >>> jax.grad(sr_ste_penalty)(kernel, indices, pattern, 0.5)[:, 0].tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    name = "sr_ste_penalty"
    pattern = _prune.check_pattern(name, pattern)
    decay = _check_decay(decay)
    pairs, _ = _pair(name, kernels, indices, pattern)
    sums = [_dropped_squares(kernel, index, pattern) for kernel, index in pairs]
    wide = np.dtype(max((a.dtype.name for a in sums), default="float32"))
    total = sum((a.astype(wide) for a in sums), start=jnp.zeros((), wide))
    return decay.astype(wide) / 2 * total


# Checks.


def _check_master(
    function: str,
    kernel: Any,
    indices: Any,
    pattern: Pattern,
    names: tuple[str, str] = ("kernel", "indices"),
) -> tuple[jax.Array, jax.Array]:
    kernel = _prune.check_matrix(function, names[0], kernel)
    indices = check_array(function, names[1], indices)
    if indices.dtype != jnp.uint8:
        raise TypeError(
            f"{function}: {names[1]} must be uint8, got {indices.dtype}; make them "
            "with jax_nm.select_indices"
        )
    *batch, depth, cols = kernel.shape
    expected = (*batch, pattern.groups(cols), pattern.kept(depth))
    if indices.shape != expected:
        raise ValueError(
            f"{function}: {names[1]} must have shape {expected} for pattern {pattern} "
            f"and {names[0]} of shape {kernel.shape}, got {indices.shape}; make them "
            "with jax_nm.select_indices of this kernel and this pattern"
        )
    return kernel, indices


def _pair(
    function: str, kernels: Any, indices: Any, pattern: Pattern
) -> tuple[list[tuple[jax.Array, jax.Array]], Callable[[list[jax.Array]], Any]]:
    """The kernels that have indices, with them, and how to rebuild the indices."""
    pairs = []

    def visit(path: Any, index: Any, kernel: Any) -> None:
        if index is not None:
            place = jax.tree_util.keystr(path)
            names = (f"kernels{place}", f"indices{place}")
            pairs.append(_check_master(function, kernel, index, pattern, names))

    try:
        jax.tree_util.tree_map_with_path(
            visit, indices, kernels, is_leaf=lambda leaf: leaf is None
        )
    except ValueError as error:
        if str(error).startswith(f"{function}:"):
            raise
        raise ValueError(
            f"{function}: indices must have the structure of kernels, with None in "
            "place of what stays dense, got another one; make them with jax.tree.map "
            f"over the kernels ({error})"
        ) from error
    structure = jax.tree.structure(indices)
    return pairs, functools.partial(jax.tree.unflatten, structure)


def _check_x(function: str, x: Any, depth: int) -> jax.Array:
    x = check_array(function, "x", x)
    check_floating(function, "x", x.dtype)
    if x.ndim < 1 or x.shape[-1] != depth:
        raise ValueError(
            f"{function}: x must have shape [..., depth] with the kernel's depth "
            f"{depth}, got {x.shape}; the last axis of x must be {depth}"
        )
    return x


def _check_dtype(function: str, dtype: Any) -> np.dtype:
    fix = "leave it out for the dtype of the arguments"
    target = check_dtype(function, "dtype", dtype, fix)
    return np.dtype(jax.dtypes.canonicalize_dtype(target))


def _check_every(every: Any) -> int:
    try:
        if isinstance(every, bool):
            raise TypeError
        number = operator.index(every)
    except TypeError:
        raise TypeError(
            f"reselect_indices: every must be a Python integer, got {every!r}; it is "
            "static, choose it outside jit"
        ) from None
    if number < 1:
        raise ValueError(
            f"reselect_indices: every must be at least 1, got {number}; with 1 the "
            "indices are new in every step"
        )
    return number


def _check_step(step: Any) -> jax.Array:
    dtype = np.result_type(step) if np.isscalar(step) else getattr(step, "dtype", None)
    integral = dtype is not None and jnp.issubdtype(dtype, np.integer)
    if not integral or np.shape(step) != ():
        raise TypeError(
            f"reselect_indices: step must be an integer scalar, got {step!r}; pass the "
            "count of the steps made so far"
        )
    return jnp.asarray(step)


def _check_decay(decay: Any) -> jax.Array:
    real = isinstance(decay, numbers.Real) or jnp.issubdtype(
        getattr(decay, "dtype", bool), np.floating
    )
    if isinstance(decay, bool) or not real or np.shape(decay) != ():
        raise TypeError(
            f"sr_ste_penalty: decay must be a real scalar, got {decay!r}; the default "
            "is 2e-4"
        )
    return jnp.asarray(decay)


# The work.


@functools.partial(jax.jit, static_argnames=["pattern"])
def _select(kernel: jax.Array, pattern: Pattern) -> jax.Array:
    # Inside jit the values that compress gathers are dead code.
    return _prune.compress_arrays(kernel, None, None, 0.0, pattern)[1]


@functools.partial(jax.jit, static_argnames=["pattern", "dtype"])
def _gather(
    kernel: jax.Array, indices: jax.Array, pattern: Pattern, dtype: np.dtype
) -> jax.Array:
    """[*batch, depth, cols] -> [*batch, kept, cols], padding slots zero."""
    slots = pattern.is_slot(kernel.shape[-2])[:, None]

    def gather(kernel: jax.Array, indices: jax.Array) -> jax.Array:
        return jnp.where(slots, _prune.gather(kernel, indices, pattern), 0)

    for _ in kernel.shape[:-2]:
        gather = jax.vmap(gather)
    return gather(kernel, indices).astype(dtype)


@functools.partial(jax.jit, static_argnames=["pattern"])
def _dropped_squares(
    kernel: jax.Array, indices: jax.Array, pattern: Pattern
) -> jax.Array:
    mask = kept_mask(indices, pattern, *kernel.shape[-2:])
    dropped = jnp.where(mask, 0, kernel).astype(accumulator(kernel.dtype))
    return jnp.sum(jnp.square(dropped))


@functools.partial(jax.jit, static_argnames=["activation", "options"])
def _spmm_ste(
    x: jax.Array,
    kernel: jax.Array,
    indices: jax.Array,
    bias: jax.Array | None,
    *,
    activation: Any,
    options: _spmm.Options,
) -> jax.Array:
    compute, wide = options.compute_dtype, accumulator(options.compute_dtype)
    x = x.astype(compute)
    values = _gather(kernel, indices, options.spec.pattern, compute)
    operands = (x, values, indices, kernel)
    if bias is not None:
        bias = bias.astype(wide)
    plain = bias is None and activation is None
    fused = kernel.ndim == 2 and _spmm.is_fused(x, values, bias, activation)
    if plain or fused:
        call = Call(options, options.result_dtype, activation)
        return _product(*operands, bias, call)[0]
    # Of a batched kernel, and of an activation without a name, XLA does this part.
    (y,) = _product(*operands, None, Call(options, wide))
    batched = kernel.ndim > 2
    return _spmm.finish(y, bias, activation, options.result_dtype, batched=batched)


@dataclasses.dataclass(frozen=True)
class Call:
    """The static half of a product: its options, and what it returns."""

    options: _spmm.Options
    out_dtype: np.dtype
    activation: str | None = None
    emit_sum: bool = False


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _product(
    x: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    call: Call,
) -> list[jax.Array]:
    """[y], or [y, sums]: the sparse product, whose tangent is dense in the kernel's."""
    options, out_dtype = call.options, call.out_dtype
    if bias is None and call.activation is None:
        return [_spmm.bind(x, values, indices, None, None, options, out_dtype)]
    return _primitives.spmm_fused(
        x,
        values,
        indices,
        bias,
        spec=options.spec,
        out_dtype=out_dtype,
        result_layout=options.result_layout,
        activation=call.activation,
        emit_sum=call.emit_sum,
    )


@functools.partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(
    call: Call, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[list[jax.Array], list[jax.Array]]:
    x, values, indices, *_ = primals
    x_dot, _, _, kernel_dot, bias_dot = (
        None if isinstance(dot, SymbolicZero) else dot for dot in tangents
    )
    options, wide = call.options, accumulator(x.dtype)
    highest = options.spec.highest

    terms = []
    if x_dot is not None:
        spec = options.spec.of_derivatives()
        of_x = dataclasses.replace(options, spec=spec)
        terms.append(_spmm.bind(x_dot, values, indices, None, None, of_x, wide))
    if kernel_dot is not None:
        # In place of the tangent of values, which has the kept positions alone.
        # As in the sparse products, a wide cotangent is narrowed unless under HIGHEST.
        narrow = wide if highest else x.dtype
        dense = jnp.matmul(
            x.astype(narrow),
            kernel_dot.astype(narrow),
            precision="highest" if highest else "default",
            preferred_element_type=narrow,
        )
        terms.append(dense.astype(wide))

    if call.activation is None:
        (y,) = _product(*primals, call)
        sums = y
    else:
        emit = dataclasses.replace(call, emit_sum=True)
        if highest:
            emit = dataclasses.replace(emit, out_dtype=wide)
        y, sums = _product(*primals, emit)
    return _primitives.finish_jvp(
        (y, sums)[: 1 + call.emit_sum],
        sums,
        terms or [jnp.zeros_like(sums, wide)],
        [] if bias_dot is None else [bias_dot],
        call.activation,
        call.out_dtype,
        options.spec,
    )
