"""The public products: the one place where a user's mistakes are reported."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm import _choice, _primitives
from jax_nm._array import NMArray
from jax_nm._checks import (
    check_array,
    check_dtype,
    check_floating,
    check_leaves,
    check_precision,
    is_supported,
)
from jax_nm._primitives import Spec
from jax_nm._reference import ACTIVATIONS, accumulator


def spmm(
    x: Any,
    w: NMArray,
    bias: Any = None,
    activation: str | Callable[[jax.Array], jax.Array] | None = None,
    precision: Any = None,
    preferred_element_type: Any = None,
    result_layout: str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """The product with an N:M-sparse weight, in place of ``x @ W``.

        s[r, c] = sum over kept slots j of x[r, source(g, j)] * values[j, c]
        y[r, c] = activation(s[r, c] + bias[c]),    g = c // vector_length

    Works under `jit`, `grad`, `vmap`, `scan`, `jax.checkpoint` and `shard_map`, with
    gradients for `x`, ``w.values`` and `bias`. Sums are kept in float32 (float64 for
    float64), the bias and the activation act on that sum, and the result is rounded
    once. On a GPU the kernel itself adds the bias and applies a named activation. The
    gradient of a named activation reads the sum in the dtype of the result, or
    unrounded under HIGHEST, on every platform.

    Where a GPU has no kernel that is faster, the product and its gradients for `x` and
    ``w.values`` are dense products (`explain` says where), each of which takes the
    memory of a dense weight while it lasts. There a NaN or Inf in a row of `x` or of
    the cotangent makes that whole row of the result or of the gradient for `x`
    non-finite; the latter also on the tensor cores of Hopper. Elsewhere it reaches the
    elements that read it. Those tensor cores also round each group's share of that
    gradient: in bfloat16 to 8 bits or 16, in float16 and under HIGHEST to 16.

    Args:
      x: ``[..., depth]``, floating. A batched `w` broadcasts against ``x.shape[:-2]``
        as `numpy.matmul` does, and `x` then has at least 2 axes.
      w: The weight, from `jax_nm.compress`. Inside `shard_map` its leaves may be
        shards: of cols by whole groups, of depth by whole windows.
      bias: ``[cols]``, or ``[*batch, cols]`` for a batched `w`.
      activation: 'relu', 'gelu' (tanh form, `jax.nn.gelu`), 'gelu_exact', 'silu', or a
        hashable callable.
      precision: As for `jax.numpy.matmul`; None means `jax.default_matmul_precision`.
        For float32 on a GPU, DEFAULT, HIGH and 'tensorfloat32' may use TF32; HIGHEST
        and 'float32' have the accuracy of float32, and keep wide cotangents wide. On
        Hopper that product may be six in bfloat16, whose error is the smaller one.
      preferred_element_type: The floating dtype of the result; by default the promoted
        dtype of `x` and ``w.values``.
      result_layout: 'row' or 'feature': how the result should lie in memory, when its
        consumer is known to prefer one. It changes no value. By default it follows x.
      implementation: None for what is estimated to be fastest: a sparse kernel or, on
        GPUs of known sizes and architecture, XLA's dense product. 'sparse' rules the
        dense product out and 'dense' asks for it on every platform, in all derivatives
        too. The name of a CUDA kernel, as in `explain`, asks for it in this product
        alone; derivatives of every order are then as with None.

    Returns:
      ``[..., cols]``.

    Raises:
      TypeError: If an argument has the wrong type or dtype.
      ValueError: If shapes disagree, or an option is none of those listed. When the
        program is lowered, if a kernel that was named cannot compute the product.

    Source: NM-SpMM, arXiv 2503.01253.

    >>> import jax.numpy as jnp, jax_nm
    >>> pattern = jax_nm.Pattern(1, 2, vector_length=2)
    >>> w = jax_nm.compress(jnp.arange(8.0).reshape(4, 2), pattern)
    >>> jax_nm.spmm(jnp.ones((1, 4)), w).tolist()
    [[8.0, 10.0]]
    """
    static = {
        "activation": activation,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "result_layout": result_layout,
        "implementation": implementation,
    }
    if _is_eager(x, w, bias, static):
        return _eager(x, w, bias, **static)
    return _checked(x, w, bias, **static)


def _is_eager(x: Any, w: Any, bias: Any, static: dict[str, Any]) -> bool:
    """Whether all operands are arrays that exist, and the options may be static."""
    if type(w) is not NMArray:
        return False
    for a in (
        (x, w.values, w.indices) if bias is None else (x, w.values, w.indices, bias)
    ):
        if isinstance(a, jax.core.Tracer) or not isinstance(a, jax.Array):
            return False
    try:
        hash(tuple(static.values()))
    except TypeError:
        return False
    return True


def _checked(
    x: Any,
    w: Any,
    bias: Any,
    *,
    activation: Any,
    precision: Any,
    preferred_element_type: Any,
    result_layout: Any,
    implementation: Any,
) -> jax.Array:
    x, w, options = check(
        "spmm",
        x,
        w,
        precision,
        preferred_element_type,
        result_layout,
        implementation=implementation,
    )
    return _spmm(
        x,
        w.values,
        w.indices,
        check_bias("spmm", bias, x, w),
        activation=check_activation("spmm", activation),
        options=options,
    )


# The checks are Python, and take several times as long as a small product. As a part of
# the traced program an eager call meets them once for its shapes and options.
_eager = jax.jit(
    _checked,
    static_argnames=[
        "activation",
        "precision",
        "preferred_element_type",
        "result_layout",
        "implementation",
    ],
)


def spmm_fm(xT: Any, w: NMArray, **keywords: Any) -> jax.Array:
    """`spmm` on transposed operands: ``[..., depth, rows] -> [..., cols, rows]``.

        yT[c, r] = sum over kept slots j of xT[source(g, j), r] * values[j, c]

    On the GPU the kernels read and write rows contiguously. XLA fits its layouts around
    them, except for the carry of a `scan` or `while` loop, which keeps the default
    layout and costs a transpose per iteration; a carry of this form costs none.

    Args, Returns, Raises: those of `spmm`, with the last two axes of x and y swapped.
    """
    xT = check_array("spmm_fm", "xT", xT)
    if xT.ndim < 2:
        raise ValueError(
            f"spmm_fm: xT must have shape [..., depth, rows], got {xT.shape}; use spmm "
            "for a single row"
        )
    check_floating("spmm_fm", "xT", xT.dtype)
    if isinstance(w, NMArray) and not _inside_shard_map() and xT.shape[-2] != w.depth:
        raise ValueError(
            f"spmm_fm: xT has depth {xT.shape[-2]} but w was compressed from depth "
            f"{w.depth}; the last axis of xT but one must be {w.depth}"
        )
    return jnp.swapaxes(spmm(jnp.swapaxes(xT, -1, -2), w, **keywords), -1, -2)


@dataclasses.dataclass(frozen=True)
class Options:
    """The static half of a call, after checking."""

    spec: Spec
    compute_dtype: np.dtype
    result_dtype: np.dtype
    result_layout: str | None


def check(
    function: str,
    x: Any,
    w: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    result_layout: str | None = None,
    abstract: bool = False,
    implementation: str | None = None,
) -> tuple[Any, NMArray, Options]:
    """Checks the operands of a product and settles its static options.

    With `abstract`, arrays may be ``ShapeDtypeStruct``.
    """
    if isinstance(x, NMArray):
        raise TypeError(
            f"{function}: x must be dense, got an NMArray; the weight is the second "
            "argument, and a product of two sparse arrays needs x.todense()"
        )
    if not isinstance(w, NMArray):
        raise TypeError(
            f"{function}: w must be a jax_nm.NMArray, got {type(w).__name__}; make it "
            "with jax_nm.compress(kernel, pattern)"
        )
    x = check_array(function, "x", x, abstract)
    check_floating(function, "x", x.dtype)
    check_leaves(function, w, abstract)
    if x.ndim < 1:
        raise ValueError(
            f"{function}: x must have shape [..., depth], got a scalar; "
            f"the last axis of x must be {w.depth}"
        )
    depth = _check_depth(function, x, w)
    _check_cols(function, w)
    _broadcast(function, x, w)

    # A NumPy leaf may be float64 where JAX has no float64.
    values_dtype = jax.dtypes.canonicalize_dtype(w.values.dtype)
    compute = np.dtype(jnp.promote_types(x.dtype, values_dtype))
    result = compute
    if preferred_element_type is not None:
        name, fix = "preferred_element_type", "cast the result to another dtype"
        target = check_dtype(function, name, preferred_element_type, fix)
        result = np.dtype(jax.dtypes.canonicalize_dtype(target))
    if result_layout is not None and (
        not isinstance(result_layout, str) or result_layout not in ("row", "feature")
    ):
        raise ValueError(
            f"{function}: result_layout must be None, 'row' or 'feature', got "
            f"{result_layout!r}; None follows the layout of x"
        )
    spec = Spec(
        w.pattern,
        depth,
        highest=check_precision(function, precision),
        implementation=_choice.check_implementation(function, implementation),
    )
    return x, w, Options(spec, compute, result, result_layout)


def _check_depth(function: str, x: Any, w: NMArray) -> int:
    pattern, depth, kept = w.pattern, x.shape[-1], w.values.shape[-2]
    fix = f"the last axis of x must be {w.depth}"
    if not isinstance(depth, int):
        raise ValueError(
            f"{function}: x has a symbolic depth {depth}, but w was compressed from "
            f"depth {w.depth}; {fix}"
        )
    if depth != w.depth:
        if not _inside_shard_map() or kept == pattern.kept(w.depth):
            raise ValueError(
                f"{function}: x has depth {depth} but w was compressed from depth "
                f"{w.depth}; {fix}"
            )
        if depth == 0 or depth % pattern.m or w.depth % depth:
            raise ValueError(
                f"{function}: this shard holds {depth} of depth {w.depth}, which cuts "
                f"a window of {pattern.m}; shard depth over a number of devices that "
                f"leaves each a multiple of m={pattern.m}"
            )
    if kept != pattern.kept(depth):
        raise ValueError(
            f"{function}: w.values must have {pattern.kept(depth)} rows for depth "
            f"{depth} and pattern {pattern}, got shape {tuple(w.values.shape)}; under "
            "shard_map, shard the depth of x and the kept axis of w.values and "
            "w.indices alike"
        )
    return depth


def _check_cols(function: str, w: NMArray) -> None:
    pattern, cols = w.pattern, w.values.shape[-1]
    if cols != w.cols:
        if not _inside_shard_map():
            raise ValueError(
                f"{function}: w.values has {cols} columns but w was compressed from "
                f"{w.cols}; outside shard_map an NMArray must be whole, so compress "
                "the slice of the kernel instead of slicing w"
            )
        if cols % pattern.vector_length:
            raise ValueError(
                f"{function}: this shard holds {cols} of {w.cols} columns, which cuts "
                f"a group of vector_length {pattern.vector_length}; shard cols over a "
                "number of devices that leaves each a multiple of it, or prune with a "
                f"vector_length that divides {cols}"
            )
    expected = (pattern.groups(cols), w.values.shape[-2])
    if tuple(w.indices.shape[-2:]) != expected:
        raise ValueError(
            f"{function}: w.indices must have shape [..., {expected[0]}, "
            f"{expected[1]}] beside values of shape {tuple(w.values.shape)}, got "
            f"{tuple(w.indices.shape)}; under shard_map, shard indices like values "
            "(its groups as cols, its kept axis as kept)"
        )


def _inside_shard_map() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def check_activation(function: str, activation: Any) -> Any:
    """The activation as a static argument: a name, or a hashable callable."""
    if activation is None:
        return None
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{function}: activation must be one of "
                f"{', '.join(map(repr, ACTIVATIONS))} or a callable, got "
                f"{activation!r}; pass a function of jax.nn for another one"
            )
        return activation
    if not callable(activation):
        raise TypeError(
            f"{function}: activation must be a string or a callable, got "
            f"{activation!r}; it is static, choose it outside jit"
        )
    for name, known in ACTIVATIONS.items():
        if activation is known:
            return name
    try:
        hash(activation)
    except TypeError:
        raise TypeError(
            f"{function}: activation must be hashable, because it is a static argument "
            f"of the compiled product, got {activation!r}; apply it to the result "
            "instead"
        ) from None
    return activation


def check_bias(
    function: str, bias: Any, x: Any, w: NMArray, abstract: bool = False
) -> Any:
    """The bias as an array, or None."""
    if bias is None:
        return None
    bias = check_array(function, "bias", bias, abstract)
    check_floating(function, "bias", bias.dtype)
    cols = w.values.shape[-1]
    allowed = {(cols,), (*w.batch_shape, cols), (*_broadcast(function, x, w), cols)}
    if tuple(bias.shape) not in allowed:
        shapes = " or ".join(str(shape) for shape in sorted(allowed, key=len))
        raise ValueError(
            f"{function}: bias must have shape {shapes}, got {tuple(bias.shape)}; it "
            "holds one number per column of w"
        )
    return bias


def _broadcast(function: str, x: Any, w: NMArray) -> tuple[int, ...]:
    """The leading axes of the result when w is batched; () otherwise."""
    if not w.batch_shape:
        return ()
    if x.ndim < 2:
        raise ValueError(
            f"{function}: x must have at least 2 axes for a batched w of shape "
            f"{w.shape}, got {x.shape}; add an axis for the rows, x[None, :]"
        )
    try:
        # NumPy's form of this takes no symbolic sizes.
        return jnp.broadcast_shapes(x.shape[:-2], w.batch_shape)
    except ValueError:
        raise ValueError(
            f"{function}: x of shape {x.shape} and w of shape {w.shape} must have "
            "leading axes that broadcast, as for numpy.matmul, got "
            f"{x.shape[:-2]} and {w.batch_shape}; add axes of length 1 where they are "
            "missing"
        ) from None


class Axes(NamedTuple):
    """The leading axes of a product, sorted into those of the weight and of rows."""

    ndim: int
    batch: list[int]
    rows: list[int]
    sizes: tuple[Any, ...]  # of the batch axes


def sort_axes(x: Any, values: Any) -> Axes:
    """An axis along which w has one weight only is an axis of rows, wherever it stands.

    So no weight is ever repeated.
    """
    ndim = max(x.ndim, values.ndim) - 2
    shape = (1,) * (ndim + 2 - values.ndim) + tuple(values.shape[:-2])
    batch = [i for i in range(ndim) if shape[i] != 1]
    rows = [i for i in range(ndim) if shape[i] == 1]
    return Axes(ndim, batch, rows, tuple(shape[i] for i in batch))


def is_fused(x: Any, values: Any, bias: Any, activation: Any) -> bool:
    """Whether the fused primitive takes this bias and this activation."""
    if bias is None and activation is None:
        return False
    if activation is not None and not isinstance(activation, str):
        return False
    if bias is None:
        return True
    # Of a bias that differs between the rows of one weight, it knows nothing.
    axes = sort_axes(x, values)
    shape = (1,) * (axes.ndim + 1 - bias.ndim) + tuple(bias.shape)
    return all(shape[i] == 1 for i in axes.rows)


@functools.partial(jax.jit, static_argnames=["activation", "options"])
def _spmm(
    x: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    bias: jax.Array | None,
    *,
    activation: Any,
    options: Options,
) -> jax.Array:
    result_dtype = options.result_dtype
    wide = accumulator(options.compute_dtype)
    x = x.astype(options.compute_dtype)
    values = values.astype(options.compute_dtype)
    if bias is not None:
        bias = bias.astype(wide)
    if is_fused(x, values, bias, activation):
        return bind(x, values, indices, bias, activation, options, result_dtype)
    plain = bias is None and activation is None
    out_dtype = result_dtype if plain else wide
    y = bind(x, values, indices, None, None, options, out_dtype)
    return finish(y, bias, activation, result_dtype, batched=values.ndim > 2)


def finish(
    y: jax.Array,
    bias: jax.Array | None,
    activation: Any,
    result_dtype: np.dtype,
    *,
    batched: bool,
) -> jax.Array:
    """Bias, activation and rounding, by XLA. A batched weight has batched biases."""
    if bias is not None:
        bias = bias[..., None, :] if batched else bias
        y = y + jnp.expand_dims(bias, range(y.ndim - bias.ndim))
    if activation is not None:
        y = _activate(y, activation)
    return y.astype(result_dtype)


def _activate(y: jax.Array, activation: Any) -> jax.Array:
    result = ACTIVATIONS.get(activation, activation)(y)
    if isinstance(result, jax.Array):
        if result.shape == y.shape and is_supported(result.dtype):
            return result
        got = f"{result.dtype}{list(result.shape)}"
    else:
        got = type(result).__name__
    raise TypeError(
        "spmm: activation must map a floating array to one of the same shape, got "
        f"{got} for {y.dtype}{list(y.shape)} from {activation!r}; apply it to the "
        "result instead"
    )


def bind(
    x: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    bias: jax.Array | None,
    activation: str | None,
    options: Options,
    out_dtype: np.dtype,
) -> jax.Array:
    """Binds a primitive, with the leading axes sorted into batch and rows.

    x is repeated along the axes that it lacks, and so is the bias.
    """
    ndim, batch, rows, sizes = sort_axes(x, values)
    if values.ndim > 2:
        x = x.reshape((1,) * (ndim + 2 - x.ndim) + x.shape)
        x = jnp.moveaxis(x, batch, range(len(batch)))
        x = jnp.broadcast_to(x, (*sizes, *x.shape[len(batch) :]))
        values = values.reshape(*sizes, *values.shape[-2:])
        indices = indices.reshape(*sizes, *indices.shape[-2:])
        if bias is not None:
            bias = bias.reshape((1,) * (ndim + 1 - bias.ndim) + bias.shape)
            bias = jnp.squeeze(bias, rows)
            bias = jnp.broadcast_to(bias, (*sizes, *bias.shape[-1:]))
    static: dict[str, Any] = {
        "spec": dataclasses.replace(options.spec, batch_ndim=len(batch)),
        "out_dtype": out_dtype,
        "result_layout": options.result_layout,
    }
    if bias is None and activation is None:
        y = _primitives.spmm(x, values, indices, **static)
    else:
        (y,) = _primitives.spmm_fused(
            x, values, indices, bias, activation=activation, **static
        )
    return jnp.moveaxis(y, range(ndim), [*batch, *rows])
