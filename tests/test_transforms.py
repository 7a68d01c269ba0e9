"""Every JAX transform of a sparse product, against the same transform of a dense one.

Functions are polynomials of small integers, so that all their derivatives are exact in
float32 and results are compared for equality. The weight has padding slots that hold
NaN: no transform may read one.
"""

from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from problems import OPS, Problem, integers

import jax_nm
from jax_nm import NMArray, Pattern, _primitives

pytestmark = pytest.mark.usefixtures("strict", "highest")

ROWS, DEPTH, COLS = 5, 18, 10
PATTERN = Pattern(4, 8, vector_length=4)  # the last window has 2 rows: 2 padding slots
STACK = 3


def problem(**sizes) -> Problem:
    sizes = {"lead": (ROWS,), "depth": DEPTH, "cols": COLS, **sizes}
    return Problem("transforms", pattern=PATTERN, **sizes)


@pytest.fixture(autouse=True)
def _on_every_platform(platform):
    pass


def operands(**sizes):
    return integers(problem(**sizes))


def weight(values, indices) -> NMArray:
    return NMArray(values, indices, PATTERN, DEPTH, values.shape[-1])


def sparse_product(x, values, indices):
    return jax_nm.spmm(x, weight(values, indices))


def dense_product(x, values, indices):
    return jnp.matmul(x, densify(values, indices))


def fused_product(x, values, indices):
    """With a bias that depends on x, so that its own derivatives are seen too."""
    return jax_nm.spmm(x, weight(values, indices), x[0, :COLS], "relu")


def dense_fused_product(x, values, indices):
    return jax.nn.relu(dense_product(x, values, indices) + x[:1, :COLS])


def densify(values, indices):
    """Linear in values, which ``todense`` is only up to its scatter's semantics."""
    slot = np.arange(values.shape[-2])
    n, m, length = PATTERN.n, PATTERN.m, PATTERN.vector_length
    base = np.broadcast_to(slot // n * m, indices.shape)
    padding = np.broadcast_to(base[0] + slot % n >= DEPTH, indices.shape)
    source = jnp.where(padding, DEPTH, base + indices.astype(jnp.int32))
    cols = np.arange(values.shape[-1])
    kernel = jnp.zeros((DEPTH, len(cols)), values.dtype)
    rows = source[cols // length].T
    return kernel.at[rows, np.broadcast_to(cols, rows.shape)].add(values, mode="drop")


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def square(product):
    return lambda *operands: jnp.sum(product(*operands) ** 2)


def dot(a, b):
    return sum(
        jnp.sum(u * v)
        for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# Each entry takes a product f(x, values), primals (x, values), and their tangents.

TRANSFORMS = {
    "eager": lambda f, p, t: f(*p),
    "jit": lambda f, p, t: jax.jit(f)(*p),
    "grad_x": lambda f, p, t: jax.grad(square(f), 0)(*p),
    "grad_values": lambda f, p, t: jax.grad(square(f), 1)(*p),
    "jit_grad": lambda f, p, t: jax.jit(jax.grad(square(f), (0, 1)))(*p),
    "vjp": lambda f, p, t: jax.vjp(f, *p)[1](f(*t)),
    "jvp": lambda f, p, t: jax.jvp(f, p, t),
    "jvp_x": lambda f, p, t: jax.jvp(lambda x: f(x, p[1]), p[:1], t[:1]),
    "jvp_values": lambda f, p, t: jax.jvp(lambda v: f(p[0], v), p[1:], t[1:]),
    "fwd_over_rev": lambda f, p, t: jax.jvp(jax.grad(square(f), (0, 1)), p, t),
    "rev_over_rev": lambda f, p, t: rev_over_rev(f, t)(*p),
    "rev_over_fwd": lambda f, p, t: jax.grad(
        lambda *p: jax.jvp(square(f), p, t)[1], (0, 1)
    )(*p),
    "fwd_over_rev_over_rev": lambda f, p, t: jax.jvp(rev_over_rev(f, t), p, t),
    "jacfwd": lambda f, p, t: jax.jacfwd(f, (0, 1))(*p),
    "jacrev": lambda f, p, t: jax.jacrev(f, (0, 1))(*p),
    "linearize": lambda f, p, t: jax.linearize(f, *p)[1](*t),
    "linear_transpose_x": lambda f, p, t: jax.linear_transpose(
        lambda x: f(x, p[1]), p[0]
    )(f(*t)),
    "linear_transpose_values": lambda f, p, t: jax.linear_transpose(
        lambda v: f(p[0], v), p[1]
    )(f(*t)),
    "checkpoint": lambda f, p, t: jax.grad(jax.checkpoint(square(f)), (0, 1))(*p),
    "checkpoint_policy": lambda f, p, t: jax.grad(
        jax.checkpoint(square(f), policy=jax_nm.spmm_saveable), (0, 1)
    )(*p),
    "cond": lambda f, p, t: jax.grad(
        lambda *p: jax.lax.cond(p[0][0, 0] > 9, lambda *p: 0.0, square(f), *p), (0, 1)
    )(*p),
    "no_tracer_leaks": lambda f, p, t: without_leaks(jax.grad(square(f), (0, 1)), *p),
}


def rev_over_rev(f, t):
    return jax.grad(lambda *p: dot(jax.grad(square(f), (0, 1))(*p), t), (0, 1))


def without_leaks(f, *operands):
    with jax.checking_leaks():
        return jax.jit(f)(*operands)


def finite(values):
    """NaN has no place in a dot product of gradients: padding values become 0."""
    return np.where(np.isnan(values), 0, values).astype(values.dtype)


PRODUCTS = {
    "plain": (sparse_product, dense_product),
    "fused": (fused_product, dense_fused_product),
}
CASES = [
    pytest.param(transform, products, id=f"{name}-{kind}")
    for (name, transform), (kind, products) in itertools.product(
        TRANSFORMS.items(), PRODUCTS.items()
    )
    if not (kind == "fused" and name.startswith("linear_transpose"))
]


@pytest.mark.parametrize(("transform", "products"), CASES)
def test_transform(transform, products):
    a = operands()
    x_dot, values_dot = np.roll(a.x, 1), finite(a.values)[::-1]
    results = []
    for product in products:
        f = functools.partial(lambda g, x, v: g(x, v, a.indices), product)
        primals = (jnp.asarray(a.x), jnp.asarray(a.values))
        tangents = (jnp.asarray(x_dot), jnp.asarray(values_dot))
        results.append(transform(f, primals, tangents))
    assert_equal(*results)


# vmap of the public product.


def stacked():
    """x, values and indices with one mapped axis in front."""
    return operands(batch=(STACK,))


def map_over(product, in_axes, out_axes=0):
    return jax.vmap(product, in_axes=in_axes, out_axes=out_axes)


VMAPS = {
    "x": ((0, None, None), 0),
    "x_at_1": ((1, None, None), 1),
    "x_at_2": ((2, None, None), 2),
    "weight": ((None, 0, 0), 0),
    "weight_at_1": ((None, 1, 2), 1),
    "both": ((0, 0, 0), 0),
    "both_at_others": ((2, 1, 1), -1),
    "values": ((None, 0, None), 0),
    "indices": ((None, None, 0), 0),
}


def place(operands, in_axes):
    """Moves the leading axis of each operand to its mapped place, or takes its head."""
    return tuple(
        jnp.asarray(a[0] if axis is None else np.moveaxis(a, 0, axis))
        for a, axis in zip(operands, in_axes, strict=True)
    )


@pytest.mark.parametrize("axes", VMAPS.values(), ids=VMAPS)
def test_vmap(axes):
    in_axes, out_axes = axes
    a = stacked()
    args = place((a.x, a.values, a.indices), in_axes)
    assert_equal(
        map_over(sparse_product, in_axes, out_axes)(*args),
        map_over(dense_product, in_axes, out_axes)(*args),
    )


@pytest.mark.parametrize("axes", VMAPS.values(), ids=VMAPS)
def test_vmap_of_grad_and_grad_of_vmap(axes):
    in_axes, _ = axes
    a = stacked()
    args = place((a.x, a.values, a.indices), in_axes)
    results = []
    for product in (sparse_product, dense_product):
        inner = map_over(jax.grad(square(product), (0, 1)), in_axes)
        outer = jax.grad(square(map_over(product, in_axes)), (0, 1))
        results.append((jax.jit(inner)(*args), jax.jit(outer)(*args)))
    assert_equal(*results)


def test_nested_vmap():
    a = operands(batch=(2, STACK))
    results = []
    for product in (sparse_product, dense_product):
        both = jax.vmap(jax.vmap(product))(a.x, a.values, a.indices)
        inner = jax.vmap(product, in_axes=(None, 0, 0))
        cross = jax.vmap(inner, in_axes=(0, None, None))(
            a.x[0], a.values[0], a.indices[0]
        )
        outer = jax.vmap(jax.vmap(product, in_axes=(0, None, None)))
        shared = outer(a.x[:, :2], a.values[:, 0], a.indices[:, 0])
        results.append((both, cross, shared))
    assert_equal(*results)


# vmap of each primitive, for every mapped and unmapped combination of its operands.

COMBINATIONS = [c for c in itertools.product((False, True), repeat=3) if any(c)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("mapped", COMBINATIONS, ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["plain", "batched"])
def test_vmap_of_primitive(op, mapped, batch):
    single = problem(batch=batch)
    full = integers(problem(batch=(STACK, *batch))).of(op)
    axes = (1, -1, 1)  # where a mapped axis stands
    in_axes = tuple(a if m else None for a, m in zip(axes, mapped, strict=True))
    bind = functools.partial(
        getattr(_primitives, op), spec=single.spec(), out_dtype=jnp.dtype("float32")
    )
    out = jax.vmap(bind, in_axes=in_axes, out_axes=1)(*place(full, in_axes))
    for i in range(STACK):
        picked = [a[i if m else 0] for a, m in zip(full, mapped, strict=True)]
        expected = oracle.compute(op, single, *picked).astype("float32")
        np.testing.assert_array_equal(np.moveaxis(out, 1, 0)[i], expected)


# Loops over stacked weights.

SQUARE = 16  # depth = cols, so that layers chain


def layers(product, body_transform=lambda body: body):
    """Sums the squares of a chain of products, weights stacked along a leading axis."""

    def run(x, values, indices):
        @body_transform
        def body(x, layer):
            values, indices = layer
            y = product(x, values, indices)
            return jnp.clip(y, -3, 3), jnp.sum(y**2)

        x, sums = jax.lax.scan(body, x, (values, indices))
        return jnp.sum(x) + jnp.sum(sums)

    return run


@pytest.mark.parametrize("fused", [False, True], ids=["product", "fused"])
@pytest.mark.parametrize("remat", ["plain", "remat", "remat_policy"])
def test_scan_over_stacked_weights(remat, fused):
    a = operands(depth=SQUARE, cols=SQUARE, batch=(STACK,))
    body_transform = {
        "plain": lambda body: body,
        "remat": jax.checkpoint,
        "remat_policy": functools.partial(
            jax.checkpoint, policy=jax_nm.spmm_saveable, prevent_cse=False
        ),
    }[remat]

    def product(dense, x, values, indices):
        w = NMArray(values, indices, PATTERN, SQUARE, SQUARE)
        bias = values[0] - 1
        if dense:
            y = jnp.matmul(x, w.todense())
            return jax.nn.relu(y + bias[None]) if fused else y
        return jax_nm.spmm(x, w, bias, "relu") if fused else jax_nm.spmm(x, w)

    results = []
    for dense in (False, True):
        f = layers(functools.partial(product, dense), body_transform)
        results.append(
            jax.jit(jax.value_and_grad(f, (0, 1)))(a.x[0], a.values, a.indices)
        )
    assert_equal(*results)


def test_scan_over_stacked_nmarrays():
    """An NMArray is a pytree whose batch axis scan takes apart."""
    a = operands(batch=(STACK,))
    stack = weight(jnp.asarray(a.values), jnp.asarray(a.indices))
    x = jnp.asarray(a.x[0])
    _, ys = jax.lax.scan(lambda carry, w: (carry, jax_nm.spmm(x, w)), None, stack)
    assert_equal(ys, jax.vmap(dense_product, (None, 0, 0))(x, a.values, a.indices))


# Rematerialisation: what the policy saves is not computed again.


def count(jaxpr, primitive: str) -> int:
    return len(re.findall(rf"= {primitive}\b", str(jaxpr)))


def test_spmm_saveable_saves_products():
    a = operands()

    def loss(x, values):
        return jnp.sum(jnp.sin(sparse_product(jnp.cos(x), values, a.indices)))

    def backward(**options):
        return jax.make_jaxpr(jax.grad(jax.checkpoint(loss, **options), (0, 1)))(
            a.x, a.values
        )

    both = jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, jax_nm.spmm_saveable
    )
    assert count(backward(), "nm_spmm") == 2
    dots = backward(policy=jax.checkpoint_policies.dots_saveable)
    assert count(dots, "nm_spmm") == 2
    for policy in (jax_nm.spmm_saveable, both):
        jaxpr = backward(policy=policy)
        assert count(jaxpr, "nm_spmm") == 1
        assert count(jaxpr, "nm_spmm_t") == 1
        assert count(jaxpr, "nm_sddmm") == 1
        assert count(jaxpr, "cos") > count(jax.make_jaxpr(loss)(a.x, a.values), "cos")


def test_spmm_saveable_saves_fused_products():
    a = operands()
    bias = jnp.ones(COLS)

    def loss(x, bias):
        w = weight(a.values, a.indices)
        return jnp.sum(jnp.sin(jax_nm.spmm(jnp.cos(x), w, bias, "gelu")))

    def backward(**options):
        gradient = jax.grad(jax.checkpoint(loss, **options), (0, 1))
        return jax.make_jaxpr(gradient)(a.x, bias)

    assert count(backward(), "nm_spmm_fused") == 2
    jaxpr = backward(policy=jax_nm.spmm_saveable)
    assert count(jaxpr, "nm_spmm_fused") == 1
    assert count(jaxpr, "nm_spmm_t") == 1
