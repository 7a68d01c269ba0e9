"""`jax_nm.nnx.NMLinear`: construction, numerics, transforms, training, checkpoints."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jax_nm
from jax_nm.nnx import NMIndices, NMLinear

PATTERN = jax_nm.Pattern(2, 4, vector_length=3)
# The last window of 10 holds two rows, the last group of 7 columns holds one.
DEPTH, COLS = 10, 7


def integers(*shape, seed=0, dtype=np.float32):
    """Small integers: sums of their products are exact in every dtype and order."""
    return jnp.asarray(np.random.default_rng(seed).integers(-4, 5, shape), dtype)


def dense(depth=DEPTH, cols=COLS, *, use_bias=True, stack=(), **options):
    layer = nnx.Linear(depth, cols, use_bias=use_bias, rngs=nnx.Rngs(0), **options)
    layer.kernel.set_value(integers(*stack, depth, cols, seed=1))
    if use_bias:
        layer.bias.set_value(integers(*stack, cols, seed=2))
    return layer


class MLP(nnx.Module):
    def __init__(self, pattern=PATTERN, depth=DEPTH, *, rngs):
        self.up = NMLinear(depth, 12, pattern=pattern, activation="relu", rngs=rngs)
        self.down = NMLinear(12, COLS, pattern=pattern, rngs=rngs)

    def __call__(self, x):
        return self.down(self.up(x))


def test_a_fresh_layer_is_the_scaled_pruning_of_the_dense_draw(strict):
    layer = NMLinear(DEPTH, COLS, pattern=PATTERN, rngs=nnx.Rngs(7))
    drawn = nnx.Linear(DEPTH, COLS, rngs=nnx.Rngs(7))
    w = jax_nm.compress(drawn.kernel[...], PATTERN)
    assert jnp.array_equal(layer.values[...], w.values * math.sqrt(4 / 2))
    assert jnp.array_equal(layer.indices[...], w.indices)
    assert jnp.array_equal(layer.bias[...], drawn.bias[...])
    jax_nm.validate(layer.weight)
    assert layer.weight.shape == (DEPTH, COLS)


def test_values_are_parameters_and_indices_are_not():
    layer = NMLinear(DEPTH, COLS, pattern=PATTERN, rngs=nnx.Rngs(0))
    assert isinstance(layer.values, nnx.Param)
    assert isinstance(layer.indices, NMIndices)
    assert not isinstance(layer.indices, nnx.Param)
    assert set(nnx.state(layer, nnx.Param)) == {"values", "bias"}
    assert set(nnx.state(layer, NMIndices)) == {f"indices_2_4_3_{DEPTH}"}
    assert (layer.pattern, layer.in_features, layer.out_features) == (
        PATTERN,
        DEPTH,
        COLS,
    )


@pytest.mark.parametrize("use_bias", [True, False])
def test_from_linear_is_the_masked_product(platform, strict, highest, use_bias):
    linear = dense(use_bias=use_bias)
    layer = NMLinear.from_linear(linear, PATTERN)
    x = integers(2, 5, DEPTH, seed=3)
    mask = jax_nm.prune_mask(jnp.abs(linear.kernel[...]), PATTERN)
    linear.kernel.set_value(jnp.where(mask, linear.kernel[...], 0))
    assert jnp.array_equal(layer(x), linear(x))
    assert jnp.array_equal(layer.weight.mask(), mask)
    assert layer.use_bias == use_bias


def test_from_linear_takes_mask_gram_and_options():
    linear = dense(dtype=jnp.bfloat16, precision="highest")
    mask = jax_nm.prune_mask(integers(DEPTH, COLS, seed=4), PATTERN)
    x = integers(32, DEPTH, seed=5)
    gram = x.T @ x
    layer = NMLinear.from_linear(linear, PATTERN, mask, gram, activation="gelu")
    w = jax_nm.compress(linear.kernel[...], PATTERN, mask, gram)
    assert jnp.array_equal(layer.values[...], w.values)
    assert jnp.array_equal(layer.indices[...], w.indices)
    assert jnp.array_equal(layer.bias[...], linear.bias[...])
    assert layer.bias is not linear.bias
    for name in ("dtype", "param_dtype", "precision", "promote_dtype"):
        assert getattr(layer, name) == getattr(linear, name)
    assert layer.activation == "gelu"


@pytest.mark.parametrize(
    ("x", "param", "dtype"),
    [
        ("float32", "float32", None),
        ("bfloat16", "float32", None),
        ("bfloat16", "bfloat16", None),
        ("float16", "bfloat16", None),
        ("float32", "float32", "bfloat16"),
        ("bfloat16", "bfloat16", "float32"),
        ("int32", "float32", None),
        ("int32", "float16", "bfloat16"),
    ],
)
def test_dtypes_are_those_of_linear(x, param, dtype):
    options = {"param_dtype": param, "dtype": dtype}
    linear = nnx.Linear(DEPTH, COLS, rngs=nnx.Rngs(0), **options)
    layer = NMLinear(DEPTH, COLS, pattern=PATTERN, rngs=nnx.Rngs(0), **options)
    x = integers(3, DEPTH, dtype=x)
    assert layer.values.dtype == linear.kernel.dtype
    assert layer(x).dtype == linear(x).dtype


def test_preferred_element_type_is_the_result_dtype():
    layer = NMLinear(
        DEPTH,
        COLS,
        pattern=PATTERN,
        dtype=jnp.bfloat16,
        preferred_element_type=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    assert layer(integers(3, DEPTH)).dtype == jnp.float32


def test_the_activation_acts_on_the_biased_sum(strict):
    linear, x = dense(), integers(6, DEPTH, seed=3)
    plain = NMLinear.from_linear(linear, PATTERN)
    fused = NMLinear.from_linear(linear, PATTERN, activation=jnp.tanh)
    assert jnp.array_equal(fused(x), jnp.tanh(plain(x)))


def test_implementation_is_passed_on():
    """A kernel's name is refused by the CPU: the layer hands it to the product."""
    layer = NMLinear.from_linear(dense(), PATTERN, implementation="dense")
    x = integers(5, DEPTH, seed=3)
    plain = NMLinear.from_linear(dense(), PATTERN)
    assert jnp.array_equal(layer(x), plain(x))
    call = jax.jit(lambda x: layer(x)).trace(x)
    assert "dot_general" in call.lower(lowering_platforms=("cpu",)).as_text()
    options = {"pattern": PATTERN, "rngs": nnx.Rngs(0)}
    layer = NMLinear(DEPTH, COLS, implementation="spmm_128x128_window", **options)
    call = jax.jit(lambda x: layer(x)).trace(x)
    with pytest.raises(ValueError, match="is a CUDA kernel"):
        call.lower(lowering_platforms=("cpu",))


def test_no_bias_draws_no_key():
    rngs = nnx.Rngs(0)
    layer = NMLinear(DEPTH, COLS, pattern=PATTERN, use_bias=False, rngs=rngs)
    assert layer.bias is None
    assert rngs.params.count[...] == 1


def test_metadata_of_the_kernel_goes_to_the_values():
    init = nnx.with_metadata(nnx.initializers.lecun_normal(), role="kernel")
    layer = NMLinear(
        DEPTH,
        COLS,
        pattern=PATTERN,
        kernel_init=init,
        kernel_metadata={"note": "first"},
        bias_metadata={"note": "second"},
        rngs=nnx.Rngs(0),
    )
    assert layer.values.get_metadata("role") == "kernel"
    assert layer.values.get_metadata("note") == "first"
    assert layer.bias.get_metadata("note") == "second"
    linear = nnx.Linear(DEPTH, COLS, kernel_init=init, rngs=nnx.Rngs(0))
    layer = NMLinear.from_linear(linear, PATTERN)
    assert layer.values.get_metadata("role") == "kernel"


def test_gradients_are_the_dense_ones_at_the_kept_places(platform, strict, highest):
    linear = dense()
    layer = NMLinear.from_linear(linear, PATTERN)
    x, dy = integers(6, DEPTH, seed=3), integers(6, COLS, seed=4)

    @nnx.jit
    def step(layer, x):
        return nnx.value_and_grad(lambda layer: jnp.sum(layer(x) * dy))(layer)

    value, grads = step(layer, x)
    assert value == jnp.sum(layer(x) * dy)
    assert set(grads) == {"values", "bias"}
    w = layer.weight
    sparse = jax_nm.NMArray(
        grads["values"][...], w.indices, w.pattern, w.depth, w.cols
    ).todense()
    assert jnp.array_equal(sparse, jnp.where(w.mask(), x.T @ dy, 0))
    assert jnp.array_equal(grads["bias"][...], dy.sum(0))


def stack_of(layers=3, features=8):
    linear = dense(features, features, stack=(layers,))
    return NMLinear.from_linear(linear, PATTERN, activation="relu")


def layer_of(stack, i):
    return jax.tree.map(lambda leaf: leaf[i], stack)


def test_vmap_over_stacked_layers(highest):
    stack, x = stack_of(), integers(3, 5, 8, seed=3)
    assert stack.weight.shape == (3, 8, 8)
    y = nnx.vmap(lambda layer, x: layer(x))(stack, x)
    expected = [layer_of(stack, i)(x[i]) for i in range(3)]
    assert jnp.array_equal(y, jnp.stack(expected))
    # A stack is a batched weight, so it also applies to a batch as it is.
    assert jnp.array_equal(stack(x), y)


def test_scan_and_remat_over_stacked_layers(highest):
    stack, x = stack_of(), integers(5, 8, seed=3)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    @nnx.remat
    def scanned(x, layer):
        return layer(x)

    def looped(x, stack):
        for i in range(3):
            x = layer_of(stack, i)(x)
        return x

    assert jnp.array_equal(nnx.jit(scanned)(x, stack), looped(x, stack))
    ours, theirs = (
        nnx.grad(lambda stack, f=f: jnp.sum(f(x, stack)))(stack)
        for f in (scanned, looped)
    )
    assert jnp.array_equal(ours["values"][...], theirs["values"][...])
    assert jnp.array_equal(ours["bias"][...], theirs["bias"][...])


def test_vmap_draws_stacked_layers():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def draw(rngs):
        return NMLinear(DEPTH, COLS, pattern=PATTERN, rngs=rngs)

    stack = draw(nnx.Rngs(0))
    jax_nm.validate(stack.weight)
    assert stack.weight.shape == (3, DEPTH, COLS)
    assert not jnp.array_equal(stack.indices[0], stack.indices[1])


def test_adamw_trains_the_values_and_leaves_the_indices():
    model = MLP(rngs=nnx.Rngs(0))
    before = nnx.state(nnx.clone(model))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2, weight_decay=0.1), wrt=nnx.Param)
    x, target = integers(64, DEPTH), integers(64, COLS, seed=1)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean((model(x) - target) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < losses[0]
    for name in ("up", "down"):
        layer, old = getattr(model, name), before[name]
        indices = f"indices_2_4_3_{layer.in_features}"
        assert jnp.array_equal(layer.indices[...], old[indices][...])
        assert not jnp.array_equal(layer.values[...], old["values"][...])
        jax_nm.validate(layer.weight)


def test_weight_decay_alone_shrinks_the_values():
    layer = NMLinear(DEPTH, COLS, pattern=PATTERN, rngs=nnx.Rngs(0))
    tx = optax.adamw(1e-2, weight_decay=0.5)
    old = layer.values[...]
    grads = jax.tree.map(jnp.zeros_like, nnx.state(layer, nnx.Param))
    nnx.Optimizer(layer, tx, wrt=nnx.Param).update(layer, grads)
    updates, _ = tx.update(jnp.zeros_like(old), tx.init(old), old)
    assert jnp.array_equal(layer.values[...], optax.apply_updates(old, updates))
    assert not jnp.array_equal(layer.values[...], old)


@pytest.fixture
def checkpointer():
    with ocp.StandardCheckpointer() as checkpointer:
        yield checkpointer


def save(checkpointer, path, tree):
    checkpointer.save(path, tree)
    checkpointer.wait_until_finished()
    return path


def abstract_mlp(*args):
    return nnx.split(nnx.eval_shape(lambda: MLP(*args, rngs=nnx.Rngs(1))))


def test_a_checkpoint_restores_the_model(checkpointer, tmp_path):
    model = MLP(rngs=nnx.Rngs(0))
    path = save(checkpointer, tmp_path / "model", nnx.state(model))
    graphdef, abstract = abstract_mlp()
    restored = nnx.merge(graphdef, checkpointer.restore(path, abstract))
    x = integers(5, DEPTH)
    assert jnp.array_equal(restored(x), model(x))
    for name in ("up", "down"):
        ours, theirs = getattr(restored, name).weight, getattr(model, name).weight
        assert (ours.pattern, ours.depth, ours.cols) == (
            theirs.pattern,
            theirs.depth,
            theirs.cols,
        )
        assert jnp.array_equal(ours.values, theirs.values)
        assert jnp.array_equal(ours.indices, theirs.indices)
        assert ours.indices.dtype == jnp.uint8


# Of equal shapes throughout: 1:2 for 2:4, and a depth that fills as many windows.
ALIKE = [
    pytest.param(jax_nm.Pattern(1, 2, vector_length=3), 12, id="pattern"),
    pytest.param(PATTERN, 11, id="depth"),
]


@pytest.mark.parametrize(("pattern", "depth"), ALIKE)
def test_a_checkpoint_of_another_format_is_refused(
    checkpointer, tmp_path, pattern, depth
):
    model = MLP(depth=12, rngs=nnx.Rngs(0))
    graphdef, abstract = abstract_mlp(pattern, depth)
    state = nnx.state(model)
    ours = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert sorted(ours) == sorted(leaf.shape for leaf in jax.tree.leaves(abstract))

    path = save(checkpointer, tmp_path / "model", state)
    with pytest.raises(ValueError, match=r"indices_\d_\d_3_\d+"):
        checkpointer.restore(path, abstract)

    updated = MLP(pattern, depth, rngs=nnx.Rngs(1))
    nnx.update(updated, state)
    x = integers(5, depth)
    for broken in (nnx.merge(graphdef, state), updated):
        with pytest.raises(ValueError, match=r"must hold indices_\d_\d_3_\d+ alone"):
            nnx.jit(lambda model, x: model(x))(broken, x)


def test_a_checkpoint_restores_a_plain_nmarray(checkpointer, tmp_path):
    tree = {
        "w": jax_nm.compress(integers(DEPTH, COLS), PATTERN),
        "stack": jax_nm.compress(integers(3, DEPTH, COLS), PATTERN),
        "scale": integers(COLS),
    }
    path = save(checkpointer, tmp_path / "tree", tree)
    abstract = jax.eval_shape(lambda: tree)
    restored = checkpointer.restore(path, abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert restored["w"].pattern == PATTERN
    assert (restored["w"].depth, restored["w"].cols) == (DEPTH, COLS)
    jax_nm.validate(restored["stack"])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, restored, tree))


@pytest.mark.parametrize(
    "create",
    [
        lambda: NMLinear(DEPTH, COLS, pattern=PATTERN, rngs=nnx.Rngs(0)),
        lambda: NMLinear.from_linear(dense(), PATTERN),
    ],
    ids=["fresh", "from_linear"],
)
def test_an_abstract_layer_knows_its_weight(create):
    layer, abstract = create(), nnx.eval_shape(create)
    assert abstract.weight.shape == (DEPTH, COLS)
    assert isinstance(abstract.weight.values, jax.ShapeDtypeStruct)
    assert nnx.graphdef(abstract) == nnx.graphdef(layer)


def make(**options):
    return NMLinear(DEPTH, COLS, **{"pattern": PATTERN, "rngs": nnx.Rngs(0), **options})


def convert(linear=None, pattern=PATTERN, **options):
    return NMLinear.from_linear(
        dense() if linear is None else linear, pattern, **options
    )


X = np.ones((3, DEPTH), np.float32)
ERRORS = {
    "pattern": (lambda: make(pattern="2:4"), TypeError, r"NMLinear: pattern must be a"),
    "param_dtype": (lambda: make(param_dtype=jnp.complex64), TypeError, "float32"),
    "module activation": (
        lambda: make(activation=nnx.PReLU()),
        TypeError,
        "NMLinear: activation must be .* got the module PReLU",
    ),
    "unknown activation": (
        lambda: make(activation="swish")(X),
        ValueError,
        "activation must be one of 'relu'",
    ),
    "unknown precision": (
        lambda: make(precision="fastest")(X),
        ValueError,
        "precision must be",
    ),
    "depth of x": (
        lambda: make()(X[:, :-1]),
        ValueError,
        "x has depth 9 but w was compressed from depth 10",
    ),
    "no rngs": (lambda: NMLinear(DEPTH, COLS, pattern=PATTERN), TypeError, "rngs"),
    "not a linear": (
        lambda: convert(jnp.ones((DEPTH, COLS))),
        TypeError,
        "from_linear: linear must be a flax.nnx.Linear, got ArrayImpl",
    ),
    "own dot_general": (
        lambda: convert(dense(dot_general=lambda *a, **k: None)),
        ValueError,
        "from_linear: linear must use jax.lax.dot_general",
    ),
    "pattern of from_linear": (
        lambda: convert(pattern=(2, 4)),
        TypeError,
        "pattern must be a jax_nm.Pattern",
    ),
    "shape of mask": (
        lambda: convert(mask=jnp.ones((COLS, DEPTH), bool)),
        ValueError,
        r"mask must have the kernel's shape \(10, 7\), got \(7, 10\)",
    ),
    "counts of mask": (
        lambda: convert(mask=jnp.ones((DEPTH, COLS), bool)),
        ValueError,
        "mask must keep exactly 2 of every 4",
    ),
    "shape of gram": (
        lambda: convert(gram=jnp.ones((COLS, COLS))),
        ValueError,
        r"gram must have shape \(10, 10\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_arguments_are_refused(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("module", ["nnx", "linen"])
def test_without_flax_the_error_names_the_extra(monkeypatch, module):
    for name in ("_flax", "nnx", "linen"):
        monkeypatch.delitem(sys.modules, f"jax_nm.{name}", raising=False)
        monkeypatch.delattr(jax_nm, name, raising=False)
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match=r"pip install 'jax_nm\[flax\]'"):
        importlib.import_module(f"jax_nm.{module}")


def test_jax_nm_does_not_import_flax():
    code = "import sys, jax_nm; sys.exit('flax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
    )
