"""`jax_nm.linen.NMDense`: construction, numerics, transforms, training, checkpoints."""

from __future__ import annotations

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn

import jax_nm
from jax_nm.linen import NMDense, compress_dense

PATTERN = jax_nm.Pattern(2, 4, vector_length=3)
# The last window of 10 holds two rows, the last group of 7 columns holds one.
DEPTH, COLS = 10, 7
NAME = f"indices_2_4_3_{DEPTH}"
KEY = jax.random.key(7)


def integers(*shape, seed=0, dtype=np.float32):
    """Small integers: sums of their products are exact in every dtype and order."""
    return jnp.asarray(np.random.default_rng(seed).integers(-4, 5, shape), dtype)


def dense_params(use_bias=True, stack=(), depth=DEPTH, cols=COLS):
    params = {"kernel": integers(*stack, depth, cols, seed=1)}
    if use_bias:
        params["bias"] = integers(*stack, cols, seed=2)
    return params


def weight_of(variables, depth=DEPTH, cols=COLS):
    (indices,) = variables["nm_indices"].values()
    return jax_nm.NMArray(variables["params"]["values"], indices, PATTERN, depth, cols)


class MLP(nn.Module):
    pattern: jax_nm.Pattern = PATTERN

    @nn.compact
    def __call__(self, x):
        x = NMDense(12, self.pattern, activation="relu")(x)
        return NMDense(COLS, self.pattern)(x)


def test_a_fresh_layer_is_the_scaled_pruning_of_the_dense_draw(strict):
    x = integers(3, DEPTH)
    variables = NMDense(COLS, PATTERN).init(KEY, x)
    drawn = nn.Dense(COLS).init(KEY, x)["params"]
    w = jax_nm.compress(drawn["kernel"], PATTERN)
    assert set(variables) == {"params", "nm_indices"}
    assert set(variables["nm_indices"]) == {NAME}
    assert jnp.array_equal(variables["params"]["values"], w.values * math.sqrt(4 / 2))
    assert jnp.array_equal(variables["nm_indices"][NAME], w.indices)
    assert jnp.array_equal(variables["params"]["bias"], drawn["bias"])
    jax_nm.validate(weight_of(variables))


def test_implementation_is_passed_on():
    x, variables = integers(5, DEPTH, seed=3), compress_dense(dense_params(), PATTERN)
    layer = NMDense(COLS, PATTERN, implementation="dense")
    plain = NMDense(COLS, PATTERN).apply(variables, x)
    assert jnp.array_equal(layer.apply(variables, x), plain)
    call = jax.jit(layer.apply).trace(variables, x)
    assert "dot_general" in call.lower(lowering_platforms=("cpu",)).as_text()


def test_init_is_the_same_under_jit_and_eval_shape():
    layer, x = NMDense(COLS, PATTERN), integers(3, DEPTH)
    variables = layer.init(KEY, x)
    abstract = jax.eval_shape(layer.init, KEY, x)
    jitted = jax.jit(layer.init)(KEY, x)
    assert abstract == jax.eval_shape(lambda: variables)
    assert jnp.array_equal(jitted["nm_indices"][NAME], variables["nm_indices"][NAME])


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_compressed_dense_is_the_masked_product(platform, strict, highest, use_bias):
    params, x = dense_params(use_bias), integers(2, 5, DEPTH, seed=3)
    variables = compress_dense(params, PATTERN)
    y = NMDense(COLS, PATTERN, use_bias=use_bias).apply(variables, x)
    mask = jax_nm.prune_mask(jnp.abs(params["kernel"]), PATTERN)
    masked = {**params, "kernel": jnp.where(mask, params["kernel"], 0)}
    expected = nn.Dense(COLS, use_bias=use_bias).apply({"params": masked}, x)
    assert jnp.array_equal(y, expected)


def test_compress_dense_takes_mask_and_gram():
    params, x = dense_params(), integers(32, DEPTH, seed=5)
    mask = jax_nm.prune_mask(integers(DEPTH, COLS, seed=4), PATTERN)
    variables = compress_dense(params, PATTERN, mask, x.T @ x)
    w = jax_nm.compress(params["kernel"], PATTERN, mask, x.T @ x)
    assert jnp.array_equal(variables["params"]["values"], w.values)
    assert jnp.array_equal(variables["nm_indices"][NAME], w.indices)
    assert variables["params"]["bias"] is params["bias"]


@pytest.mark.parametrize(
    ("x", "param", "dtype"),
    [
        ("float32", "float32", None),
        ("bfloat16", "float32", None),
        ("float16", "bfloat16", None),
        ("float32", "float32", "bfloat16"),
        ("int32", "float32", None),
        ("int32", "float16", "bfloat16"),
    ],
)
def test_dtypes_are_those_of_dense(x, param, dtype):
    x = integers(3, DEPTH, dtype=x)
    ours, variables = NMDense(
        COLS, PATTERN, param_dtype=param, dtype=dtype
    ).init_with_output(KEY, x)
    theirs, dense = nn.Dense(COLS, param_dtype=param, dtype=dtype).init_with_output(
        KEY, x
    )
    assert variables["params"]["values"].dtype == dense["params"]["kernel"].dtype
    assert ours.dtype == theirs.dtype


def test_preferred_element_type_is_the_result_dtype():
    layer = NMDense(COLS, PATTERN, dtype="bfloat16", preferred_element_type="float32")
    assert layer.init_with_output(KEY, integers(3, DEPTH))[0].dtype == jnp.float32


def test_the_activation_acts_on_the_biased_sum(strict):
    variables, x = compress_dense(dense_params(), PATTERN), integers(6, DEPTH, seed=3)
    plain = NMDense(COLS, PATTERN).apply(variables, x)
    fused = NMDense(COLS, PATTERN, activation=jnp.tanh).apply(variables, x)
    assert jnp.array_equal(fused, jnp.tanh(plain))


def test_partitioning_of_the_kernel_goes_to_the_values():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    layer = NMDense(COLS, PATTERN, kernel_init=init)
    x = integers(3, DEPTH)
    variables = layer.init(KEY, x)
    assert variables["params"]["values"].names == ("in", "out")
    y = layer.apply(variables, x)
    assert jnp.array_equal(y, layer.apply(nn.unbox(variables), x))
    params = nn.Dense(COLS, kernel_init=init).init(KEY, x)["params"]
    assert compress_dense(params, PATTERN)["params"]["values"].names == ("in", "out")


def test_gradients_are_the_dense_ones_at_the_kept_places(platform, strict, highest):
    variables = compress_dense(dense_params(), PATTERN)
    x, dy = integers(6, DEPTH, seed=3), integers(6, COLS, seed=4)
    layer = NMDense(COLS, PATTERN)

    @jax.jit
    @jax.grad
    def gradient(params):
        y = layer.apply({**variables, "params": params}, x)
        return jnp.sum(y * dy)

    grads = gradient(variables["params"])
    w = weight_of(variables)
    sparse = weight_of({**variables, "params": grads}).todense()
    assert jnp.array_equal(sparse, jnp.where(w.mask(), x.T @ dy, 0))
    assert jnp.array_equal(grads["bias"], dy.sum(0))


class Block(nn.Module):
    """One layer as the body of a scan: ``(x, None) -> (y, None)``."""

    @nn.compact
    def __call__(self, x, _):
        return NMDense(8, PATTERN, activation="relu", name="dense")(x), None


LIFTED = {
    "variable_axes": {"params": 0, "nm_indices": 0},
    "split_rngs": {"params": True},
}


def layer_of(stack, i):
    return jax.tree.map(lambda leaf: leaf[i], stack)


def nested(variables):
    return {collection: {"dense": leaf} for collection, leaf in variables.items()}


def test_scan_and_remat_over_stacked_layers(highest):
    stack = compress_dense(dense_params(stack=(3,), depth=8, cols=8), PATTERN)
    x = integers(5, 8, seed=3)
    model = nn.scan(nn.remat(Block), length=3, **LIFTED)()

    def scanned(params):
        return model.apply(nested({**stack, "params": params}), x, None)[0]

    def looped(params):
        y = x
        for i in range(3):
            layer = layer_of({**stack, "params": params}, i)
            y = NMDense(8, PATTERN, activation="relu").apply(layer, y)
        return y

    params = stack["params"]
    assert jnp.array_equal(jax.jit(scanned)(params), looped(params))
    ours, theirs = (
        jax.grad(lambda params, f=f: jnp.sum(f(params)))(params)
        for f in (scanned, looped)
    )
    assert jax.tree.all(jax.tree.map(jnp.array_equal, ours, theirs))


def test_scan_draws_stacked_layers():
    variables = nn.scan(Block, length=3, **LIFTED)().init(KEY, integers(5, 8), None)
    stack = weight_of({name: leaf["dense"] for name, leaf in variables.items()}, 8, 8)
    jax_nm.validate(stack)
    assert stack.shape == (3, 8, 8)
    assert not jnp.array_equal(stack.indices[0], stack.indices[1])


def test_vmap_over_stacked_layers(highest):
    stack = compress_dense(dense_params(stack=(3,)), PATTERN)
    x = integers(3, 5, DEPTH, seed=3)
    layer = NMDense(COLS, PATTERN)
    expected = [layer.apply(layer_of(stack, i), x[i]) for i in range(3)]
    lifted = nn.vmap(NMDense, **LIFTED)(COLS, PATTERN)
    for y in (lifted.apply(stack, x), jax.vmap(layer.apply)(stack, x)):
        assert jnp.array_equal(y, jnp.stack(expected))


def test_adamw_trains_the_values_and_leaves_the_indices():
    model, x, target = MLP(), integers(64, DEPTH), integers(64, COLS, seed=1)
    variables = model.init(KEY, x)
    params, indices = variables["params"], variables["nm_indices"]
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            y = model.apply({"params": params, "nm_indices": indices}, x)
            return jnp.mean((y - target) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return value, optax.apply_updates(params, updates), state

    losses = []
    for _ in range(20):
        value, params, state = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), params, variables["params"]
    )
    assert all(jax.tree.leaves(changed))


def test_a_mutable_collection_keeps_its_indices():
    layer, x = NMDense(COLS, PATTERN), integers(3, DEPTH)
    variables = layer.init(KEY, x)
    y, updated = layer.apply(variables, x, mutable=["nm_indices"])
    assert jnp.array_equal(y, layer.apply(variables, x))
    assert jnp.array_equal(updated["nm_indices"][NAME], variables["nm_indices"][NAME])


def test_a_checkpoint_restores_the_variables(tmp_path):
    model, x = MLP(), integers(5, DEPTH)
    variables = model.init(KEY, x)
    abstract = jax.eval_shape(model.init, KEY, x)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", variables)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "model", abstract)
    assert jnp.array_equal(model.apply(restored, x), model.apply(variables, x))
    data = flax.serialization.to_bytes(variables)
    restored = flax.serialization.from_bytes(variables, data)
    assert jnp.array_equal(model.apply(restored, x), model.apply(variables, x))


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    # Of equal shapes throughout.
    model, x = MLP(), integers(5, 12)
    other = MLP(jax_nm.Pattern(1, 2, vector_length=3))
    variables = model.init(KEY, x)
    abstract = jax.eval_shape(other.init, KEY, x)
    ours, theirs = (
        sorted(leaf.shape for leaf in jax.tree.leaves(tree))
        for tree in (variables, abstract)
    )
    assert ours == theirs
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", variables)
        checkpointer.wait_until_finished()
        with pytest.raises(ValueError, match="indices_1_2_3_12"):
            checkpointer.restore(tmp_path / "model", abstract)
    with pytest.raises(
        ValueError,
        match=r"reads nm_indices/indices_1_2_3_12 .* got \['indices_2_4_3_12'\]",
    ):
        jax.jit(other.apply)(variables, x)


X = np.ones((3, DEPTH), np.float32)


def apply(variables=None, x=X, **options):
    layer = NMDense(COLS, **{"pattern": PATTERN, **options})
    if variables is None:
        return layer.init(KEY, x)
    return layer.apply(variables, x)


COMPRESSED = compress_dense(dense_params(), PATTERN)
ERRORS = {
    "pattern": (lambda: apply(pattern=(2, 4)), TypeError, "NMDense: pattern must be a"),
    "module activation": (
        lambda: apply(activation=nn.PReLU()),
        TypeError,
        "NMDense: activation must be .* got the module PReLU",
    ),
    "unknown activation": (
        lambda: apply(activation="swish"),
        ValueError,
        "activation must be one of 'relu'",
    ),
    "unknown precision": (
        lambda: apply(precision="fastest"),
        ValueError,
        "precision must be",
    ),
    "param_dtype": (lambda: apply(param_dtype=jnp.complex64), TypeError, "float32"),
    "scalar x": (lambda: apply(x=1.0), ValueError, r"x must have shape \[..., depth\]"),
    "depth of x": (
        lambda: apply(COMPRESSED, X[:, :-1]),
        ValueError,
        "depth 9 reads nm_indices/indices_2_4_3_9",
    ),
    "no indices": (
        lambda: apply({"params": COMPRESSED["params"]}),
        ValueError,
        f"reads nm_indices/{NAME} beside its values, got nothing",
    ),
    "no values": (
        lambda: apply({"nm_indices": COMPRESSED["nm_indices"]}),
        flax.errors.ScopeCollectionNotFound,
        "values",
    ),
    "features": (
        lambda: NMDense(COLS + 1, PATTERN).apply(COMPRESSED, X),
        flax.errors.ScopeParamShapeError,
        "values",
    ),
    "not a mapping": (
        lambda: compress_dense(jnp.ones((DEPTH, COLS)), PATTERN),
        TypeError,
        "compress_dense: params must be a mapping with 'kernel', got ArrayImpl",
    ),
    "whole variables": (
        lambda: compress_dense({"params": dense_params()}, PATTERN),
        ValueError,
        r"params must hold 'kernel' and at most 'bias', got \['params'\]",
    ),
    "pattern of compress_dense": (
        lambda: compress_dense(dense_params(), "2:4"),
        TypeError,
        "pattern must be a jax_nm.Pattern",
    ),
    "shape of mask": (
        lambda: compress_dense(dense_params(), PATTERN, jnp.ones((COLS, DEPTH), bool)),
        ValueError,
        r"mask must have the kernel's shape \(10, 7\), got \(7, 10\)",
    ),
    "shape of gram": (
        lambda: compress_dense(dense_params(), PATTERN, gram=jnp.ones((COLS, COLS))),
        ValueError,
        r"gram must have shape \(10, 10\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_arguments_are_refused(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call()
