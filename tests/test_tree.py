"""Training trees that hold `NMArray` beside everything else that a model holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_nm
from jax_nm import Pattern


def integers(*shape):
    return np.random.default_rng(shape).integers(-3, 4, shape).astype(np.float32)


@pytest.fixture
def params():
    return {
        "layers": [
            {
                "w": jax_nm.compress(integers(32, 24), Pattern(2, 8, 8)),
                "b": jnp.ones(24),
            },
            {"w": jax_nm.compress(integers(24, 5), Pattern(1, 4, 2)), "b": None},
        ],
        "scale": 0.5,
        "step": jnp.int32(7),
        "count": 3,
        "training": True,
        "mask": np.array([True, False]),
        "key": jax.random.key(0),
        "host": np.ones(24, np.float32),
        "half": jnp.ones(3, jnp.bfloat16),
        "float0": np.zeros(2, jax.dtypes.float0),
    }


X = integers(4, 32)


def forward(params, x):
    first, second = params["layers"]
    hidden = jax.nn.relu(x @ first["w"] + first["b"]) * params["scale"] + params["host"]
    return hidden @ second["w"]


def loss(params, x=X):
    return jnp.mean(forward(params, x) ** 2) + jnp.sum(params["half"]) * 1.0


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left is right or np.array_equal(left, right)


# Splitting and joining.


def test_partition(params):
    train, static = jax_nm.partition(params)
    first = train["layers"][0]
    assert first["w"].values is params["layers"][0]["w"].values
    assert first["w"].indices is None
    assert static["layers"][0]["w"].values is None
    assert static["layers"][0]["w"].indices is params["layers"][0]["w"].indices
    floats = {"scale", "host", "half"}
    others = {"step", "count", "training", "mask", "key", "float0"}
    for name in floats:
        assert train[name] is params[name] and static[name] is None
    for name in others:
        assert static[name] is params[name] and train[name] is None
    assert all(
        jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        for leaf in jax.tree.leaves(train)
    )


def test_combine_undoes_partition(params):
    train, static = jax_nm.partition(params)
    assert_same(jax_nm.combine(train, static), params)
    assert_same(jax_nm.combine(static, train), params)


def test_halves_of_a_bare_weight():
    w = jax_nm.compress(integers(32, 24), Pattern(2, 8, 8))
    train, static = jax_nm.partition(w)
    assert (train.pattern, train.depth, train.cols) == (w.pattern, 32, 24)
    again = jax_nm.combine(train, static)
    assert again.values is w.values
    assert again.indices is w.indices


@pytest.mark.parametrize("tree", [None, (), {}, [None, {"a": None}]], ids=str)
def test_trees_without_leaves(tree):
    train, static = jax_nm.partition(tree)
    assert train == static == tree
    assert jax_nm.combine(train, static) == tree


def test_under_eval_shape(params):
    """Abstract leaves are split by their dtype as well."""
    w = jax.eval_shape(lambda: params["layers"][0]["w"])
    train, static = jax_nm.partition(w)
    assert train.values is w.values and train.indices is None
    assert jax_nm.combine(train, static).indices is w.indices


# Differentiation.


def test_value_and_grad(params):
    """The gradient of the float leaves alone, in the structure of the train half."""
    value, grads = jax_nm.value_and_grad(loss)(params)
    train, static = jax_nm.partition(params)
    expected = jax.value_and_grad(lambda train: loss(jax_nm.combine(train, static)))(
        train
    )
    assert value == expected[0]
    assert_same(grads, expected[1])
    assert jax.tree.structure(grads) == jax.tree.structure(train)
    assert grads["layers"][0]["w"].indices is None
    assert grads["key"] is None and grads["count"] is None
    assert grads["half"].dtype == jnp.bfloat16


def test_gradient_is_that_of_the_dense_weight(params):
    w = params["layers"][0]["w"]
    ct = integers(4, 24)
    grads = jax_nm.grad(lambda w: jnp.sum((X @ w) * ct))(w)
    dense = jax.grad(lambda kernel: jnp.sum((X @ kernel) * ct))(w.todense())
    kept = jax_nm.combine(grads, jax_nm.partition(w)[1])
    np.testing.assert_array_equal(kept.todense(), np.where(w.mask(), dense, 0))


def test_grad_is_half_of_value_and_grad(params):
    assert_same(jax_nm.grad(loss)(params), jax_nm.value_and_grad(loss)(params)[1])


def test_argnums(params):
    w = params["layers"][0]["w"]

    def product(x, w, n, scale):
        return jnp.sum((x @ w) ** n) * scale

    arguments = (X, w, 2, 0.5)
    dx = jax_nm.grad(product)(*arguments)
    dw = jax_nm.grad(product, argnums=1)(*arguments)
    assert dx.shape == X.shape and dw.values.shape == w.values.shape
    for argnums in [(1, 0), [1, 0], (-3, 0), (1, -4)]:
        value, both = jax_nm.value_and_grad(product, argnums=argnums)(*arguments)
        assert value == product(*arguments)
        assert type(both) is tuple
        assert_same(both, (dw, dx))
    assert_same(jax_nm.grad(product, argnums=-3)(*arguments), dw)
    (alone,) = jax_nm.grad(product, argnums=(1,))(*arguments)
    assert_same(alone, dw)
    assert_same(jax_nm.grad(product, np.int64(1))(*arguments), dw)
    assert jax_nm.grad(product, argnums=3)(*arguments) == product(X, w, 2, 1.0)


def test_keywords_and_aux(params):
    def with_aux(params, *, x):
        return loss(params, x), {"step": params["step"], "y": forward(params, x)}

    (value, aux), grads = jax_nm.value_and_grad(with_aux, has_aux=True)(params, x=X)
    assert value == loss(params)
    assert aux["step"] == 7
    np.testing.assert_array_equal(aux["y"], forward(params, X))
    again, aux = jax_nm.grad(with_aux, has_aux=True)(params, x=X)
    assert_same(again, grads)
    assert aux["step"] == 7


def test_wrapped_function_keeps_its_name():
    for transform in (jax_nm.grad, jax_nm.value_and_grad):
        assert transform(loss).__name__ == "loss"


def test_under_transforms(params):
    """jit of grad, grad of grad, and vmap over a batch of inputs."""
    w = params["layers"][0]["w"]

    def product(w, x):
        return jnp.sum(jnp.square(x @ w))

    eager = jax_nm.grad(product)(w, X)
    assert_same(jax.jit(jax_nm.grad(product))(w, X), eager)
    each = jax.vmap(jax_nm.grad(product), in_axes=(None, 0))(w, X)
    np.testing.assert_array_equal(each.values.sum(0), eager.values)

    def slope(w):
        return jnp.sum(jax_nm.grad(product)(w, X).values)

    assert jax_nm.grad(slope)(w).values.shape == w.values.shape


# Training.


def test_adamw_with_weight_decay_trains_the_tree(params):
    target = integers(4, 5)

    def objective(params):
        return jnp.mean((forward(params, X) - target) ** 2)

    optimizer = optax.adamw(1e-2, weight_decay=1e-2)
    state = optimizer.init(jax_nm.partition(params)[0])

    @jax.jit
    def step(train, static, state):
        value, grads = jax_nm.value_and_grad(objective)(jax_nm.combine(train, static))
        updates, state = optimizer.update(grads, state, train)
        return optax.apply_updates(train, updates), state, value

    train, static = jax_nm.partition(params)
    values = []
    for _ in range(60):
        train, state, value = step(train, static, state)
        values.append(float(value))
    assert values[-1] < values[0] / 2
    trained = jax_nm.combine(train, static)
    for before, after in zip(params["layers"], trained["layers"], strict=True):
        jax_nm.validate(after["w"])
        np.testing.assert_array_equal(after["w"].indices, before["w"].indices)
        np.testing.assert_array_equal(after["w"].mask(), before["w"].mask())
        assert not np.array_equal(after["w"].values, before["w"].values)
    assert trained["step"] == 7


def test_weight_decay_reaches_the_values_and_nothing_else(params):
    """With a zero gradient, adamw shrinks every float leaf by the same factor."""
    train, static = jax_nm.partition(params)
    optimizer = optax.adamw(0.5, weight_decay=0.5)
    grads = jax.tree.map(jnp.zeros_like, train)
    updates, _ = optimizer.update(grads, optimizer.init(train), train)
    after = jax_nm.combine(optax.apply_updates(train, updates), static)
    for old, new in zip(params["layers"], after["layers"], strict=True):
        np.testing.assert_array_equal(new["w"].values, old["w"].values * 0.75)
        assert new["w"].indices is old["w"].indices
    assert after["key"] is params["key"]
