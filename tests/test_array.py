"""`NMArray`: an array to look at, a pytree to JAX, and the dense weight it means."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_nm
from jax_nm import NMArray, Pattern

SHAPE = jax.ShapeDtypeStruct

# depth, cols, pattern: whole, both edges ragged, padding slots, n = m, L = 1, L > cols.
CASES = [
    (32, 24, "2:8:8"),
    (45, 37, "4:16:8"),
    (34, 10, "5:8:4"),
    (12, 6, "4:4:2"),
    (9, 5, "2:4:1"),
    (40, 20, "3:8:128"),
    (40, 20, "3:8:1000000000"),
    (300, 9, "70:256:4"),
    (3, 7, "4:8:2"),
    (0, 4, "1:2:2"),
    (4, 0, "1:2:2"),
]


def random_weight(depth, cols, pattern, batch=(), dtype=np.float32) -> NMArray:
    """Random offsets, ascending; padding slots hold NaN and any byte."""
    rng = np.random.default_rng([depth, cols, len(batch)])
    pattern = Pattern.parse(pattern)
    slots = pattern.is_slot(depth)
    kept, groups = pattern.kept(depth), pattern.groups(cols)
    values = rng.integers(-9, 10, (*batch, kept, cols)).astype(dtype)
    values[..., ~slots, :] = np.nan
    indices = rng.integers(0, 256, (*batch, groups, kept)).astype(np.uint8)
    for place in np.ndindex(*batch, groups):
        for window, held in enumerate(pattern.kept_per_window(depth)):
            rows = min(pattern.m, depth - window * pattern.m)
            first = window * pattern.n
            offsets = np.sort(rng.choice(rows, held, replace=False))
            indices[place][first : first + held] = offsets
    return NMArray(jnp.asarray(values), jnp.asarray(indices), pattern, depth, cols)


def dense(w: NMArray) -> np.ndarray:
    """The dense weight, element by element from the definition."""
    values, indices = np.asarray(w.values), np.asarray(w.indices)
    n, m, length = dataclasses.astuple(w.pattern)
    out = np.zeros(w.shape, values.dtype)
    for *batch, j, c in np.ndindex(values.shape):
        row = (j // n) * m + int(indices[*batch, c // length, j])
        if j % n < w.depth - (j // n) * m:
            out[*batch, row, c] = values[*batch, j, c]
    return out


@pytest.fixture
def w():
    return random_weight(32, 24, "2:8:8")


# An array.


@pytest.mark.parametrize(
    ("case", "batch"),
    [(case, ()) for case in CASES] + [(CASES[2], (3,)), (CASES[2], (2, 1))],
    ids=str,
)
@pytest.mark.usefixtures("strict")
def test_todense_and_mask(case, batch):
    w = random_weight(*case, batch)
    expected = dense(w)
    assert w.shape == expected.shape == (*batch, *case[:2])
    np.testing.assert_array_equal(w.todense(), expected)
    ones = dataclasses.replace(w, values=jnp.ones_like(w.values))
    mask = w.mask()
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, dense(ones) == 1)
    assert jax_nm.validate(w) is w


def test_mask_and_todense_agree_on_any_byte():
    w = random_weight(45, 37, "4:16:8")
    noise = np.random.default_rng(0).integers(0, 256, w.indices.shape)
    w = dataclasses.replace(
        w, values=jnp.ones_like(w.values), indices=jnp.asarray(noise, jnp.uint8)
    )
    np.testing.assert_array_equal(w.mask(), w.todense() == 1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 4)], ids=str)
def test_attributes(batch):
    w = random_weight(45, 37, "4:16:8", batch)
    assert w.shape == (*batch, 45, 37)
    assert w.batch_shape == batch
    assert w.ndim == len(batch) + 2
    assert w.dtype == jnp.float32
    assert w.nbytes == w.values.nbytes + w.indices.nbytes
    assert w.indices.shape == (*batch, 5, 12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_astype(w, dtype):
    cast = w.astype(dtype)
    assert cast.dtype == cast.todense().dtype == cast.values.dtype == jnp.dtype(dtype)
    assert cast.indices is w.indices
    assert cast.nbytes == cast.values.nbytes + w.indices.nbytes
    np.testing.assert_array_equal(cast.todense().astype(jnp.float32), w.todense())


def test_negative_zero_is_kept(w):
    w = dataclasses.replace(w, values=jnp.full_like(w.values, -0.0))
    np.testing.assert_array_equal(np.signbit(w.todense()), w.mask())


def test_repr(w):
    text = (
        "NMArray(2:8:8, depth=32, cols=24, values=float32[8, 24], indices=uint8[3, 8])"
    )
    assert repr(w) == text
    assert repr(jax.eval_shape(lambda: w)) == text
    assert "values=None, indices=uint8[3, 8]" in repr(jax_nm.partition(w)[1])
    seen = []
    jax.jit(lambda w: seen.append(repr(w)))(w)
    assert seen == [text]


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_matmul_operator(w, convert):
    x = np.random.default_rng(0).integers(-9, 10, (2, 5, 32)).astype(np.float32)
    y = convert(x) @ w
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(y, x @ dense(w))


def test_matmul_operator_with_a_numpy_matrix_of_float64(w):
    """NumPy's default dtype becomes JAX's, as for any array that enters JAX."""
    y = np.ones((5, 32)) @ w
    assert y.dtype == jnp.float32


def test_copies(w):
    for again in (copy.copy(w), copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert again.pattern == w.pattern
        np.testing.assert_array_equal(again.todense(), w.todense())


# A pytree.


def test_leaves_and_paths(w):
    leaves, structure = jax.tree.flatten(w)
    assert leaves == [w.values, w.indices]
    again = jax.tree.unflatten(structure, leaves)
    assert (again.pattern, again.depth, again.cols) == (w.pattern, 32, 24)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path({"w": w})]
    assert paths == ["['w'].values", "['w'].indices"]


def test_statics_are_part_of_the_structure(w):
    for change in ({"depth": 31}, {"cols": 23}, {"pattern": Pattern(2, 8, 16)}):
        other = dataclasses.replace(w, **change)
        assert jax.tree.structure(other) != jax.tree.structure(w)


@pytest.mark.parametrize(
    "leaf",
    [None, object(), 3, "text", np.zeros(2, jax.dtypes.float0), SHAPE((2, 3), "int8")],
    ids=["none", "object", "int", "text", "float0", "abstract"],
)
def test_any_leaf_is_accepted(w, leaf):
    again = jax.tree.unflatten(jax.tree.structure(w), [leaf, leaf])
    assert again.values is leaf
    assert again.indices is leaf
    assert repr(again).startswith("NMArray(2:8:8, depth=32, cols=24, values=")
    whole = jax.tree.map(lambda _: leaf, w)
    assert whole.values is leaf


def test_float0_tangents(w):
    """`jax.jvp` and `jax.vjp` build a tree with float0 in the place of the indices."""
    zeros = np.zeros(w.indices.shape, jax.dtypes.float0)
    tangent = dataclasses.replace(w, indices=zeros)
    out, dot = jax.jvp(NMArray.todense, (w,), (tangent,))
    np.testing.assert_array_equal(out, dot)
    (ct,) = jax.vjp(NMArray.todense, w)[1](out)
    assert isinstance(ct, NMArray)
    assert ct.indices.dtype == jax.dtypes.float0
    np.testing.assert_array_equal(ct.values, w.values)


def test_eval_shape():
    def model(kernel, x):
        w = jax_nm.compress(kernel, Pattern(2, 8, 8))
        return w, x @ w, w.todense()

    w, y, kernel = jax.eval_shape(
        model, SHAPE((45, 24), "bfloat16"), SHAPE((5, 45), "float32")
    )
    assert w.shape == kernel.shape == (45, 24)
    assert w.dtype == kernel.dtype == jnp.bfloat16
    assert w.nbytes == 12 * 24 * 2 + 3 * 12
    assert (y.shape, y.dtype) == ((5, 24), jnp.float32)


def test_traced_leaves(w):
    @jax.jit
    def inside(w):
        assert (w.shape, w.dtype, w.ndim) == ((32, 24), jnp.float32, 2)
        return w, w.astype(jnp.bfloat16), w.mask()

    again, half, mask = inside(w)
    np.testing.assert_array_equal(again.todense(), w.todense())
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mask, w.mask())


def test_jit_does_not_retrace(w):
    traces = []

    @jax.jit
    def norm(w):
        traces.append(w)
        return jnp.sum(w.values**2)

    norm(w)
    norm(jax.tree.map(jnp.copy, w))
    assert len(traces) == 1


@pytest.mark.usefixtures("highest")
def test_stack_scan_and_vmap():
    """A stack of layers is an NMArray whose leaves have one more axis in front."""
    layers = [random_weight(32, 32, "2:8:8") for _ in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    assert stack.shape == (3, 32, 32)
    x = jnp.ones((4, 32))

    def layer(x, w):
        assert w.shape == (32, 32)
        return x @ w / 256, w.todense()

    y, kernels = jax.lax.scan(layer, x, stack)
    np.testing.assert_array_equal(kernels, stack.todense())
    each = jax.vmap(lambda w: w.todense())(stack)
    np.testing.assert_array_equal(each, stack.todense())
    expected = np.asarray(x)
    for w in layers:
        expected = expected @ dense(w) / 256
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_through_todense(case):
    """The cotangent of a slot is that of the element it names, of padding nothing."""
    w = random_weight(*case)
    ct = np.random.default_rng(1).integers(-9, 10, w.shape).astype(np.float32)

    def loss(values):
        return jnp.sum(dataclasses.replace(w, values=values).todense() * ct)

    got = np.asarray(jax.grad(loss)(w.values))
    assert np.all(got[~w.pattern.is_slot(w.depth)] == 0)
    again = dataclasses.replace(w, values=got)
    np.testing.assert_array_equal(dense(again), np.where(w.mask(), ct, 0))


def test_device_put_and_block_until_ready(w):
    moved = jax.block_until_ready(jax.device_put(w, jax.devices()[0]))
    assert isinstance(moved, NMArray)
    np.testing.assert_array_equal(moved.indices, w.indices)


def test_validate_takes_numpy_leaves(w):
    host = jax.tree.map(np.asarray, w)
    assert jax_nm.validate(host) is host
    np.testing.assert_array_equal(host.todense(), w.todense())
