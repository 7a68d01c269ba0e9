"""The primitives and every contact with JAX's extension interface.

The product is trilinear in (x, values, dy), so its three partial maps

    spmm(x, values) -> y        spmm_t(dy, values) -> dx        sddmm(x, dy) -> dvalues

are closed under differentiation: the tangents and cotangents of each are the other two,
and every order of AD needs these alone. Operand shapes, with the weight's batch axes in
front and any number of lead axes on the dense operands:

    x, dx   [*batch, *lead, depth]      values   [*batch, kept, cols]
    y, dy   [*batch, *lead, cols]       indices  [*batch, groups, kept]

A fourth one, not linear, is the product with what often follows it:

    spmm_fused(x, values, bias) -> activation(spmm(x, values) + bias)

Its derivatives are products of the other three.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import PartitionSpec

from jax_nm import _choice, _lowering
from jax_nm._pattern import Pattern
from jax_nm._reference import ACTIVATIONS, accumulator, finish


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static parameters that all primitives share.

    Attributes:
      pattern: The weight's pattern.
      depth: The reduction length of x; under `shard_map`, of the local shard.
      batch_ndim: How many leading axes of the operands belong to the weight.
      highest: True for `Precision.HIGHEST`: no TF32, cotangents not narrowed.
      kernel: Forces a kernel by its id; 0 lets the tuning function choose.
      arch: Chooses as that compute capability (times ten) would; 0 is the device's own.
      implementation: None, 'sparse', 'dense' or a CUDA kernel of spmm, see `_choice`.
      exported: True while a program is lowered that may run on any GPU of its platform.
    """

    pattern: Pattern
    depth: int
    batch_ndim: int = 0
    highest: bool = False
    kernel: int = 0
    arch: int = 0
    implementation: str | None = None
    exported: bool = False

    def of_derivatives(self) -> Spec:
        """The parameters of the products that differentiation adds to this one."""
        implementation = _choice.of_derivatives(self.implementation)
        return dataclasses.replace(self, implementation=implementation)


def spmm(
    x: Array,
    values: Array,
    indices: Array,
    *,
    spec: Spec,
    out_dtype: Any,
    result_layout: str | None = None,
) -> Array:
    """y[r, c] = sum over j of x[r, source(g, j)] * values[j, c]."""
    return spmm_p.bind(
        *_vary_alike(x, values, indices),
        spec=spec,
        out_dtype=np.dtype(out_dtype),
        result_layout=result_layout,
    )


def spmm_t(
    dy: Array, values: Array, indices: Array, *, spec: Spec, out_dtype: Any
) -> Array:
    """dx[r, source(g, j)] += sum over c in g of dy[r, c] * values[j, c].

    This, like the other two, may be a dense product: `_dense`.
    """
    return spmm_t_p.bind(
        *_vary_alike(dy, values, indices), spec=spec, out_dtype=np.dtype(out_dtype)
    )


def sddmm(x: Array, dy: Array, indices: Array, *, spec: Spec, out_dtype: Any) -> Array:
    """dvalues[j, c] = sum over r of x[r, source(g, j)] * dy[r, c]."""
    return sddmm_p.bind(
        *_vary_alike(x, dy, indices), spec=spec, out_dtype=np.dtype(out_dtype)
    )


def spmm_fused(
    x: Array,
    values: Array,
    indices: Array,
    bias: Array | None = None,
    *,
    spec: Spec,
    out_dtype: Any,
    result_layout: str | None = None,
    activation: str | None = None,
    emit_sum: bool = False,
) -> list[Array]:
    """y = activation(s), s[r, c] = bias[c] + sum over j of x[r, source] * values[j, c].

    `bias` is ``[*batch, cols]`` in the dtype of the accumulator, float32. The result is
    ``[y]``, or ``[y, s]`` with `emit_sum`. Both are computed in that dtype and rounded
    once to `out_dtype`, so a derivative that needs s reads it with that dtype's digits.
    Differentiation makes the call emit s, in the accumulator's dtype under HIGHEST.
    """
    operands = (x, values, indices) if bias is None else (x, values, indices, bias)
    return spmm_fused_p.bind(
        *_vary_alike(*operands),
        spec=spec,
        out_dtype=np.dtype(out_dtype),
        result_layout=result_layout,
        activation=activation,
        emit_sum=emit_sum,
    )


spmm_p = Primitive("nm_spmm")
spmm_t_p = Primitive("nm_spmm_t")
sddmm_p = Primitive("nm_sddmm")
spmm_fused_p = Primitive("nm_spmm_fused")
spmm_fused_p.multiple_results = True
PRIMITIVES = (spmm_p, spmm_t_p, sddmm_p, spmm_fused_p)


def spmm_saveable(prim: Primitive, *_: Any, **__: Any) -> bool:
    """A `jax.checkpoint` policy: keep sparse products, recompute everything else.

    Compose it with JAX's own, for example
    ``jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable, jax_nm.spmm_saveable)``.
    """
    return prim in PRIMITIVES


def _vary_alike(*operands: Array) -> list[Array]:
    """Makes operands vary over the same manual mesh axes, as `shard_map` requires.

    The cast transposes to a sum over the added axes, which is what the gradient of a
    replicated weight needs.
    """
    varying = [jax.typeof(a).manual_axis_type.varying for a in operands]
    union = frozenset().union(*varying)
    return [
        jax.lax.pcast(a, tuple(union - mine), to="varying") if union - mine else a
        for a, mine in zip(operands, varying, strict=True)
    ]


# Abstract evaluation. The operands' consistency is re-checked here, so that a wrong
# bind fails at trace time; what a user can get wrong is reported by `_spmm`.


def _result(
    like: ShapedArray, shape: tuple[int, ...], dtype: np.dtype, last: Any
) -> ShapedArray:
    """The type of a result sharded as `like`, but with `last` on its last axis."""
    named = like.sharding.spec[: len(shape) - 1]
    used = {axis for entry in named for axis in _axes(entry)}
    if used & set(_axes(last)):
        last = None  # one mesh axis shards one dimension
    return like.update(
        shape=tuple(shape),
        dtype=dtype,
        weak_type=False,
        sharding=like.sharding.update(spec=PartitionSpec(*named, last)),
    )


def _axes(entry: Any) -> tuple:
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _check(
    name: str,
    spec: Spec,
    dense: list[tuple[str, ShapedArray]],
    values: tuple[str, ShapedArray],
    indices: tuple[str, ShapedArray],
) -> None:
    pattern, batch = spec.pattern, dense[0][1].shape[: spec.batch_ndim]
    kept = pattern.kept(spec.depth)
    cols = values[1].shape[-1]
    expected = [
        (*values, (*batch, kept, cols)),
        (*indices, (*batch, pattern.groups(cols), kept)),
    ]
    lead = dense[0][1].shape[spec.batch_ndim : -1]
    for label, aval in dense:
        length = cols if label.endswith("y") else spec.depth
        expected.append((label, aval, (*batch, *lead, length)))
    for label, aval, shape in expected:
        if tuple(aval.shape) != tuple(shape):
            raise TypeError(
                f"{name}: expected {label} of shape {tuple(shape)}, got "
                f"{tuple(aval.shape)} (pattern {pattern}, depth {spec.depth})"
            )
    floating = [aval.dtype for _, aval in dense] + [values[1].dtype]
    if len(set(floating)) > 1:
        raise TypeError(f"{name}: operands must share one dtype, got {floating}")
    if indices[1].dtype != np.uint8:
        raise TypeError(f"{name}: expected uint8 indices, got {indices[1].dtype}")


@spmm_p.def_abstract_eval
def _spmm_abstract(
    x: ShapedArray,
    values: ShapedArray,
    indices: ShapedArray,
    *,
    spec: Spec,
    out_dtype: np.dtype,
    result_layout: str | None,
) -> ShapedArray:
    _check("spmm", spec, [("x", x)], ("values", values), ("indices", indices))
    shape = (*x.shape[:-1], values.shape[-1])
    return _result(x, shape, out_dtype, values.sharding.spec[-1])


@spmm_fused_p.def_abstract_eval
def _spmm_fused_abstract(
    x: ShapedArray,
    values: ShapedArray,
    indices: ShapedArray,
    *bias: ShapedArray,
    spec: Spec,
    out_dtype: np.dtype,
    result_layout: str | None,
    activation: str | None,
    emit_sum: bool,
) -> list[ShapedArray]:
    _check("spmm_fused", spec, [("x", x)], ("values", values), ("indices", indices))
    shape = (*x.shape[: spec.batch_ndim], values.shape[-1])
    for aval in bias:
        if (aval.shape, aval.dtype) != (shape, accumulator(x.dtype)):
            raise TypeError(
                f"spmm_fused: expected bias of shape {shape} and dtype "
                f"{accumulator(x.dtype)}, got {aval.shape} and {aval.dtype}"
            )
    shape = (*x.shape[:-1], values.shape[-1])
    y = _result(x, shape, out_dtype, values.sharding.spec[-1])
    return [y, y] if emit_sum else [y]


@spmm_t_p.def_abstract_eval
def _spmm_t_abstract(
    dy: ShapedArray,
    values: ShapedArray,
    indices: ShapedArray,
    *,
    spec: Spec,
    out_dtype: np.dtype,
) -> ShapedArray:
    _check("spmm_t", spec, [("dy", dy)], ("values", values), ("indices", indices))
    return _result(dy, (*dy.shape[:-1], spec.depth), out_dtype, None)


@sddmm_p.def_abstract_eval
def _sddmm_abstract(
    x: ShapedArray,
    dy: ShapedArray,
    indices: ShapedArray,
    *,
    spec: Spec,
    out_dtype: np.dtype,
) -> ShapedArray:
    batch = x.shape[: spec.batch_ndim]
    shape = (*batch, spec.pattern.kept(spec.depth), dy.shape[-1])
    values = ShapedArray(shape, x.dtype)
    dense = [("x", x), ("dy", dy)]
    _check("sddmm", spec, dense, ("values", values), ("indices", indices))
    named = (*x.sharding.spec[: spec.batch_ndim], None)
    like = x.update(
        shape=shape, sharding=x.sharding.update(spec=PartitionSpec(*named, None))
    )
    return _result(like, shape, out_dtype, dy.sharding.spec[-1])


# Differentiation.


def _matching(operand: Array, cotangent: Array, spec: Spec) -> tuple[Array, Array]:
    """The two operands of a transposed product, in one compute dtype.

    A cotangent wider than the operand (from `preferred_element_type`) is narrowed to
    the operand's dtype, or keeps its precision under HIGHEST.
    """
    dtype = operand.dtype
    if spec.highest:
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(dtype, cotangent.dtype)
    return operand.astype(dtype), cotangent.astype(dtype)


def _bilinear_jvp(
    bind: Callable,
    primals: Sequence[Array],
    tangents: Sequence[Any],
    *,
    spec: Spec,
    **params: Any,
) -> tuple[Array, Any]:
    first, second, indices = primals
    first_dot, second_dot, _ = tangents
    result = bind(first, second, indices, spec=spec, **params)
    params["spec"] = spec.of_derivatives()
    terms = []
    if type(first_dot) is not ad.Zero:
        terms.append(bind(first_dot, second, indices, **params))
    if type(second_dot) is not ad.Zero:
        terms.append(bind(first, second_dot, indices, **params))
    if not terms:
        return result, ad.Zero.from_primal_value(result)  # type: ignore[attr-defined]
    return result, functools.reduce(jnp.add, terms)


def _fused_jvp(
    primals: Sequence[Array],
    tangents: Sequence[Any],
    *,
    spec: Spec,
    out_dtype: np.dtype,
    result_layout: str | None,
    activation: str | None,
    emit_sum: bool,
) -> tuple[list[Array], list[Any]]:
    x, values, indices, *_ = primals
    x_dot, values_dot, _, *bias_dot = tangents
    bias_dot = [dot for dot in bias_dot if type(dot) is not ad.Zero]
    params: dict[str, Any] = {"spec": spec, "result_layout": result_layout}
    bind = functools.partial(spmm_fused, *primals, activation=activation, **params)
    params["spec"] = spec.of_derivatives()
    wide = accumulator(x.dtype)

    # The tangent of the sums is linear: the other primitives transpose it.
    terms = []
    if type(x_dot) is not ad.Zero:
        terms.append(spmm(x_dot, values, indices, out_dtype=wide, **params))
    if type(values_dot) is not ad.Zero:
        terms.append(spmm(x, values_dot, indices, out_dtype=wide, **params))
    if not terms and not bias_dot:
        results = bind(out_dtype=out_dtype, emit_sum=emit_sum)
        zero: Any = ad.Zero
        return results, [zero.from_primal_value(result) for result in results]

    if activation is None:
        (y,) = bind(out_dtype=out_dtype)
        sums = y
    else:
        y, sums = bind(out_dtype=wide if spec.highest else out_dtype, emit_sum=True)
    return finish_jvp(
        (y, sums)[: 1 + emit_sum],
        sums,
        terms or [jnp.zeros_like(sums, wide)],
        bias_dot,
        activation,
        out_dtype,
        spec,
    )


def finish_jvp(
    results: Sequence[Array],
    sums: Array,
    terms: Sequence[Array],
    bias_dots: Sequence[Array],
    activation: str | None,
    out_dtype: np.dtype,
    spec: Spec,
) -> tuple[list[Array], list[Array]]:
    """[y] or [y, sums], and their tangents, from the terms of the tangent of the sums.

    `bias_dots` is empty or holds the tangent of the bias.
    """
    sums_dot = functools.reduce(jnp.add, terms)
    for dot in bias_dots:
        _, sums_dot = finish(sums_dot, dot, None, spec.batch_ndim)
    _, sums_dot = _vary_alike(sums, sums_dot)
    y_dot = sums_dot
    if activation is not None:
        y_dot = _activation_jvp(sums, sums_dot, activation)
    dots = (y_dot, sums_dot)[: len(results)]
    return [a.astype(out_dtype) for a in results], [a.astype(out_dtype) for a in dots]


# A backward pass that is far from the forward one keeps the sums alone, and not what
# their derivative is made of.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _activation_jvp(sums: Array, sums_dot: Array, activation: str) -> Array:
    """The derivative at the emitted sums times a tangent, in the tangent's dtype."""
    if sums.dtype == np.float16:
        # Sums beyond the range of float16 were rounded to infinity. At the largest
        # number the derivatives have their limits, at infinity some are NaN.
        limit = jnp.finfo(sums.dtype).max
        sums = jnp.clip(sums, -limit, limit)
    primal = sums.astype(sums_dot.dtype)
    return jax.jvp(ACTIVATIONS[activation], (primal,), (sums_dot,))[1]


# What a transposition rule gives: one cotangent, for first, second or neither.
_Cotangents = tuple[Array | None, Array | None, None]


def _transpose(
    ct: Any,
    first: Any,
    second: Any,
    *,
    spec: Spec,
    to_first: Callable[..., Array],
    to_second: Callable[..., Array],
) -> _Cotangents:
    """Sends the cotangent to the operand that is being solved for."""
    if type(ct) is ad.Zero:
        return None, None, None
    if ad.is_undefined_primal(first):
        other, ct = _matching(second, ct, spec)
        result = to_first(ct, other, out_dtype=first.aval.dtype)
        return _shard_like(first.aval, result), None, None
    other, ct = _matching(first, ct, spec)
    result = to_second(ct, other, out_dtype=second.aval.dtype)
    return None, _shard_like(second.aval, result), None


def _shard_like(aval: ShapedArray, cotangent: Array) -> Array:
    """Under explicit sharding, gives a cotangent the sharding of its primal."""
    if jax.typeof(cotangent).sharding == aval.sharding:
        return cotangent
    return jax.sharding.reshard(cotangent, aval.sharding)


def _spmm_transpose(
    ct: Any, x: Any, values: Any, indices: Array, *, spec: Spec, **_: Any
) -> _Cotangents:
    spec = spec.of_derivatives()
    return _transpose(
        ct,
        x,
        values,
        spec=spec,
        to_first=lambda dy, v, **kw: spmm_t(dy, v, indices, spec=spec, **kw),
        to_second=lambda dy, x, **kw: sddmm(x, dy, indices, spec=spec, **kw),
    )


def _spmm_t_transpose(
    ct: Any, dy: Any, values: Any, indices: Array, *, spec: Spec, **_: Any
) -> _Cotangents:
    spec = spec.of_derivatives()
    return _transpose(
        ct,
        dy,
        values,
        spec=spec,
        to_first=lambda x, v, **kw: spmm(x, v, indices, spec=spec, **kw),
        to_second=lambda x, dy, **kw: sddmm(x, dy, indices, spec=spec, **kw),
    )


def _sddmm_transpose(
    ct: Any, x: Any, dy: Any, indices: Array, *, spec: Spec, **_: Any
) -> _Cotangents:
    spec = spec.of_derivatives()
    return _transpose(
        ct,
        x,
        dy,
        spec=spec,
        to_first=lambda v, dy, **kw: spmm_t(dy, v, indices, spec=spec, **kw),
        to_second=lambda v, x, **kw: spmm(x, v, indices, spec=spec, **kw),
    )


def _fused_transpose(
    cts: Sequence[Any],
    x: Any,
    values: Any,
    indices: Array,
    *bias: Any,
    spec: Spec,
    activation: str | None,
    **_: Any,
) -> tuple[Array | None, ...]:
    """Without an activation the results are the sums: linear in x or values, and bias.

    Derivatives never come here; `jax.linear_transpose` does.
    """
    if activation is not None:
        raise NotImplementedError(
            f"spmm: the product with activation {activation!r} is not linear, so it "
            "has no transpose; transpose the product without it, or use jax.vjp"
        )
    found = [ct for ct in cts if type(ct) is not ad.Zero]
    if not found:
        return (None,) * (3 + len(bias))
    ct = functools.reduce(jnp.add, found)
    product: _Cotangents = (None, None, None)
    if ad.is_undefined_primal(x) or ad.is_undefined_primal(values):
        product = _spmm_transpose(ct, x, values, indices, spec=spec)
    lead = tuple(range(spec.batch_ndim, ct.ndim - 1))
    shifts = [
        _shard_like(b.aval, jnp.sum(ct.astype(b.aval.dtype), lead))
        if ad.is_undefined_primal(b)
        else None
        for b in bias
    ]
    return (*product, *shifts)


# Batching. The weight side of an operation is what carries `batch_ndim` axes in front.
# As long as it is not mapped, a new axis only joins the lead axes: nothing is copied.


def _batch_dense(
    bind: Callable[..., Any],
    operands: Sequence[Array],
    dims: Sequence[int | None],
    *,
    spec: Spec,
    weight: tuple[bool, ...],
    **params: Any,
) -> tuple[Any, int]:
    """Batching rule; `weight` marks operands and result of the weight side."""
    *weight_operands, weight_result = weight
    mapped = [d is not None for d in dims]
    if weight_result:  # sddmm: its result has no lead axes for a new axis to join
        grouped = any(mapped)
    else:
        grouped = any(m and w for m, w in zip(mapped, weight_operands, strict=True))
    if not grouped:
        # The new axis becomes the first lead axis.
        moved = [
            a if d is None else jnp.moveaxis(a, d, spec.batch_ndim)
            for a, d in zip(operands, dims, strict=True)
        ]
        return bind(*moved, spec=spec, **params), spec.batch_ndim
    size = next(
        a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None
    )
    moved = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(operands, dims, strict=True)
    ]
    spec = dataclasses.replace(spec, batch_ndim=spec.batch_ndim + 1)
    return bind(*moved, spec=spec, **params), 0


def _batch_fused(
    operands: Sequence[Array],
    dims: Sequence[int | None],
    *,
    out_dtype: np.dtype,
    activation: str | None,
    emit_sum: bool,
    **params: Any,
) -> tuple[list[Array], list[int]]:
    _, values_dim, indices_dim, *bias_dim = dims
    if values_dim is None and indices_dim is None and bias_dim not in ([], [None]):
        # Biases share the weight: adding them afterwards repeats none of it.

        def unfused(
            x: Array, values: Array, indices: Array, bias: Array
        ) -> list[Array]:
            sums = spmm(x, values, indices, out_dtype=accumulator(x.dtype), **params)
            results = finish(sums, bias, activation, params["spec"].batch_ndim)
            return [result.astype(out_dtype) for result in results[: 1 + emit_sum]]

        return jax.vmap(unfused, tuple(dims))(*operands), [0] * (1 + emit_sum)
    weight = (False, True, True, *(True for _ in bias_dim), False)
    params = dict(params, out_dtype=out_dtype, activation=activation, emit_sum=emit_sum)
    results, dim = _batch_dense(spmm_fused, operands, dims, weight=weight, **params)
    return results, [dim] * len(results)


def _register(
    prim: Primitive, jvp: Callable, batch: Callable, lower: Callable[..., Any]
) -> None:
    prim.def_impl(functools.partial(xla.apply_primitive, prim))
    ad.primitive_jvps[prim] = jvp
    batching.primitive_batchers[prim] = batch
    for platform in _lowering.PLATFORMS:
        rule = _lower_plain(functools.partial(lower, platform), prim.multiple_results)
        mlir.register_lowering(prim, rule, platform=platform)


def _register_bilinear(
    prim: Primitive,
    bind: Callable,
    transpose: Callable,
    weight: tuple[bool, ...],
    lower: Callable[..., Any],
) -> None:
    jvp = functools.partial(_bilinear_jvp, bind)
    batch = functools.partial(_batch_dense, bind, weight=weight)
    _register(prim, jvp, batch, lower)
    ad.primitive_transposes[prim] = transpose


def _lower_plain(fun: Callable, multiple_results: bool) -> Callable:
    """Lowers a function of arrays, with the operands' shapes and dtypes alone.

    Shardings and manual axes were settled by the primitive's own type; the plain calls
    inside the lowering must not be checked against them again.
    """
    lowered = mlir.lower_fun(fun, multiple_results=multiple_results)

    def rule(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        avals = cast(Sequence[ShapedArray], ctx.avals_in)
        plain = [ShapedArray(a.shape, a.dtype) for a in avals]
        if ctx.module_context.lowering_parameters.for_export:
            params["spec"] = dataclasses.replace(params["spec"], exported=True)
        return lowered(ctx.replace(avals_in=plain), *operands, **params)

    return rule


_register_bilinear(
    spmm_p, spmm, _spmm_transpose, (False, True, True, False), _lowering.spmm
)
_register_bilinear(
    spmm_t_p, spmm_t, _spmm_t_transpose, (False, True, True, False), _lowering.spmm_t
)
_register_bilinear(
    sddmm_p, sddmm, _sddmm_transpose, (False, False, True, True), _lowering.sddmm
)
_register(spmm_fused_p, _fused_jvp, _batch_fused, _lowering.spmm_fused)
ad.primitive_transposes[spmm_fused_p] = _fused_transpose
