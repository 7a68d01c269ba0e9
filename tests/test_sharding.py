"""Sharded products on four host devices, against the same product on one.

Integers again, so that sharded sums are equal bit for bit.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import Problem, integers

import jax_nm
from jax_nm import NMArray, Pattern

pytestmark = pytest.mark.usefixtures("strict", "highest")

DEVICES = 4
PATTERN = Pattern(3, 8, vector_length=16)
PROBLEM = Problem("sharding", (8,), 64, 128, PATTERN)
EXPERTS = Problem("experts", (8,), 20, 24, PATTERN, batch=(DEVICES,))

# How x, values, indices and y are sharded, and whether y is a sum over the devices.
SHARDINGS = {
    "rows": (P("d"), P(), P(), P("d"), False),
    "cols": (P(), P(None, "d"), P("d"), P(None, "d"), False),
    "depth": (P(None, "d"), P("d"), P(None, "d"), P(), True),
}
MODES = {"vma": True, "no_vma": False}


def mesh(axis_type, shape=(DEVICES,), names=("d",)):
    devices = np.array(jax.devices("cpu")[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, names, axis_types=(axis_type,) * len(names))


@pytest.fixture(autouse=True)
def _on_the_host():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def weight(problem: Problem, values, indices) -> NMArray:
    return NMArray(values, indices, problem.pattern, problem.depth, problem.cols)


def check(problem: Problem, product):
    """`product(x, values, indices)` and both of its gradients, against the oracle."""
    operands = integers(problem)
    x, values, indices = map(np.asarray, operands.of("spmm"))
    y, vjp = jax.vjp(lambda x, v: product(x, v, indices), x, values)
    exact = oracle.compute("spmm", problem, *operands.of("spmm"))
    np.testing.assert_array_equal(y, exact.astype(np.float32), strict=True)
    for op, gradient in zip(
        ("spmm_t", "sddmm"), vjp(jnp.asarray(operands.dy)), strict=True
    ):
        exact = oracle.compute(op, problem, *operands.of(op))
        np.testing.assert_array_equal(gradient, exact.astype(np.float32), strict=True)


# shard_map.


def sharded(problem: Problem, case, check_vma, **options):
    x_spec, values_spec, indices_spec, y_spec, summed = case

    def local(x, w):
        y = jax_nm.spmm(x, w, **options)
        return jax.lax.psum(y, "d") if summed else y

    product = jax.shard_map(
        local,
        mesh=mesh(AxisType.Auto),
        in_specs=(x_spec, weight(problem, values_spec, indices_spec)),
        out_specs=y_spec,
        check_vma=check_vma,
    )
    return lambda x, values, indices: product(x, weight(problem, values, indices))


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("check_vma", MODES.values(), ids=MODES)
@pytest.mark.parametrize("case", SHARDINGS.values(), ids=SHARDINGS)
def test_shard_map(case, check_vma, jit):
    product = sharded(PROBLEM, case, check_vma)
    check(PROBLEM, jax.jit(product) if jit else product)


@pytest.mark.parametrize("check_vma", MODES.values(), ids=MODES)
def test_shard_map_over_experts(check_vma):
    """One weight per device: the batch axis of w is what is sharded."""
    check(EXPERTS, sharded(EXPERTS, (P("d"),) * 4 + (False,), check_vma))


@pytest.mark.parametrize("check_vma", MODES.values(), ids=MODES)
def test_shard_map_with_rows_and_cols_sharded(check_vma):
    product = jax.shard_map(
        jax_nm.spmm,
        mesh=mesh(AxisType.Auto, (2, 2), ("r", "c")),
        in_specs=(P("r"), weight(PROBLEM, P(None, "c"), P("c"))),
        out_specs=P("r", "c"),
        check_vma=check_vma,
    )
    check(PROBLEM, lambda x, v, i: product(x, weight(PROBLEM, v, i)))


def check_fused(problem: Problem, product, bias):
    """`product(x, values, indices, bias)` under relu, and its gradients."""
    operands = integers(problem)
    x, values, indices = map(np.asarray, operands.of("spmm"))
    lead = range(len(problem.batch), operands.dy.ndim - 1)
    sums = oracle.compute("spmm", problem, *operands.of("spmm"))
    sums += np.expand_dims(bias, tuple(lead))
    y, vjp = jax.vjp(lambda x, v, b: product(x, v, indices, b), x, values, bias)
    expected = np.maximum(sums, 0).astype(np.float32)
    np.testing.assert_array_equal(y, expected, strict=True)
    dx, dvalues, dbias = vjp(jnp.asarray(operands.dy))
    dy = np.where(sums > 0, operands.dy, 0)
    exact = {
        "spmm_t": oracle.compute("spmm_t", problem, dy, values, indices),
        "sddmm": oracle.compute("sddmm", problem, x, dy, indices),
        "bias": dy.sum(tuple(lead)),
    }
    for name, out in zip(exact, (dx, dvalues, dbias), strict=True):
        expected = exact[name].astype(np.float32)
        np.testing.assert_array_equal(out, expected, strict=True, err_msg=name)


FUSED = {
    "rows": (PROBLEM, SHARDINGS["rows"], P()),
    "cols": (PROBLEM, SHARDINGS["cols"], P("d")),
    "experts": (EXPERTS, (P("d"),) * 4, P("d")),
}


@pytest.mark.parametrize("check_vma", MODES.values(), ids=MODES)
@pytest.mark.parametrize(("problem", "specs", "bias_spec"), FUSED.values(), ids=FUSED)
def test_shard_map_of_a_fused_product(problem, specs, bias_spec, check_vma):
    x_spec, values_spec, indices_spec, y_spec, *_ = specs
    product = jax.shard_map(
        lambda x, w, bias: jax_nm.spmm(x, w, bias, "relu"),
        mesh=mesh(AxisType.Auto),
        in_specs=(x_spec, weight(problem, values_spec, indices_spec), bias_spec),
        out_specs=y_spec,
        check_vma=check_vma,
    )
    shape = (*problem.batch, problem.cols)
    bias = problem.rng("bias").integers(-9, 10, shape).astype(np.float32)
    check_fused(problem, lambda x, v, i, b: product(x, weight(problem, v, i), b), bias)


def test_the_bias_alone_may_vary_over_the_devices():
    """Each device adds its own bias to the same product."""
    operands = integers(PROBLEM)
    x, values, indices = map(jnp.asarray, operands.of("spmm"))
    biases = jnp.arange(float(DEVICES * PROBLEM.cols)).reshape(DEVICES, PROBLEM.cols)
    biases = biases - biases.mean()

    def each(x, values, bias):
        w = weight(PROBLEM, values, indices)
        return jax_nm.spmm(x, w, bias[0], "relu")[None]

    product = jax.shard_map(
        each,
        mesh=mesh(AxisType.Auto),
        in_specs=(P(), P(), P("d")),
        out_specs=P("d"),
    )

    def expected(x, values, biases):
        sums = jax_nm.spmm(x, weight(PROBLEM, values, indices))
        return jax.nn.relu(sums[None] + biases[:, None])

    dot = jnp.ones((DEVICES, *operands.dy.shape))
    results = []
    for function in (product, expected):
        y, vjp = jax.vjp(function, x, values, biases)
        with_bias = functools.partial(function, x, values)
        _, tangent = jax.jvp(with_bias, (biases,), (-biases,))
        results.append((y, tangent, *vjp(dot)))
    for out, exact in zip(*results, strict=True):
        np.testing.assert_array_equal(out, exact, strict=True)


def test_gradient_inside_shard_map():
    """The gradient of a replicated weight is summed over the devices' rows."""
    operands = integers(PROBLEM)

    def local(x, dy, w):
        loss = jax_nm.grad(lambda w: jnp.sum(jax_nm.spmm(x, w) * dy))
        return loss(w).values

    gradient = jax.shard_map(
        local,
        mesh=mesh(AxisType.Auto),
        in_specs=(P("d"), P("d"), P()),
        out_specs=P(),
    )(operands.x, operands.dy, operands.weight(PROBLEM))
    exact = oracle.compute("sddmm", PROBLEM, *operands.of("sddmm"))
    np.testing.assert_array_equal(gradient, exact.astype(np.float32))


def test_second_order_in_shard_map():
    product = sharded(PROBLEM, SHARDINGS["cols"], True)
    operands = integers(PROBLEM)
    x, values, indices = map(jnp.asarray, operands.of("spmm"))

    def hessian_product(f):
        gradient = jax.grad(lambda x, v: jnp.sum(f(x, v) ** 2), (0, 1))
        return jax.jvp(gradient, (x, values), (x[::-1], values[:, ::-1]))[1]

    single = hessian_product(lambda x, v: jax_nm.spmm(x, weight(PROBLEM, v, indices)))
    split = hessian_product(lambda x, v: product(x, v, indices))
    for a, b in zip(split, single, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cols", "holds 7 of 28 columns, which cuts a group of vector_length 8"),
        ("depth", "holds 7 of depth 28, which cuts a window of 8"),
    ],
)
def test_a_shard_that_cuts_the_pattern_is_refused(case, message):
    """Four groups and four windows divide among the devices; their elements do not."""
    problem = Problem("cut", (8,), 28, 28, Pattern(3, 8, vector_length=8))
    with pytest.raises(ValueError, match=re.escape(message)):
        sharded(problem, SHARDINGS[case], True)(*integers(problem).of("spmm"))


# jit over automatic and explicit meshes.


@pytest.mark.parametrize("case", SHARDINGS.values(), ids=SHARDINGS)
def test_automatic_sharding(case):
    """The operands are gathered in front of the call; the result is right."""
    auto = mesh(AxisType.Auto)
    shardings = [NamedSharding(auto, spec) for spec in case[:4]]

    def product(x, values, indices):
        return jax_nm.spmm(x, weight(PROBLEM, values, indices))

    *in_shardings, out_sharding = shardings
    jitted = jax.jit(product, in_shardings=in_shardings, out_shardings=out_sharding)
    check(PROBLEM, jitted)
    operands = [
        jax.device_put(a, sharding)
        for a, sharding in zip(integers(PROBLEM).of("spmm"), in_shardings, strict=True)
    ]
    assert jitted(*operands).sharding.is_equivalent_to(out_sharding, 2)


EXPLICIT = {  # x, values, and the type of y
    "rows": (P("d", None), P(None, None), P("d", None)),
    "cols": (P(None, None), P(None, "d"), P(None, "d")),
    "depth": (P(None, "d"), P("d", None), P(None, None)),
    "rows_and_cols": (P("d", None), P(None, "d"), P("d", None)),
    "rows_and_depth": (P("d", None), P("d", None), P("d", None)),
}


@pytest.mark.parametrize("case", EXPLICIT.values(), ids=EXPLICIT)
def test_explicit_sharding(case):
    x_spec, values_spec, y_spec = case
    operands = integers(PROBLEM)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        x = jax.device_put(operands.x, x_spec)
        values = jax.device_put(operands.values, values_spec)
        indices = jax.device_put(operands.indices, P(None, None))

        def product(x, values):
            return jax_nm.spmm(x, weight(PROBLEM, values, indices))

        y, vjp = jax.vjp(jax.jit(product), x, values)
        assert jax.typeof(y).sharding.spec == y_spec
        dx, dvalues = vjp(jax.device_put(operands.dy, y_spec))
        assert jax.typeof(dx).sharding.spec == x_spec
        assert jax.typeof(dvalues).sharding.spec == values_spec
    for op, out in (("spmm", y), ("spmm_t", dx), ("sddmm", dvalues)):
        exact = oracle.compute(op, PROBLEM, *operands.of(op))
        np.testing.assert_array_equal(out, exact.astype(np.float32), strict=True)


FUSED_EXPLICIT = {  # the sharding of x, values and y, and that of the bias
    "rows": ("rows", P(None)),
    "cols": ("cols", P("d")),
    "cols_of_a_replicated_bias": ("cols", P(None)),
    "depth": ("depth", P(None)),
}


@pytest.mark.parametrize(
    ("case", "bias_spec"), FUSED_EXPLICIT.values(), ids=FUSED_EXPLICIT
)
def test_explicit_sharding_of_a_fused_product(case, bias_spec):
    x_spec, values_spec, y_spec = EXPLICIT[case]
    operands = integers(PROBLEM)
    bias = PROBLEM.rng("bias").integers(-9, 10, PROBLEM.cols).astype(np.float32)
    sums = oracle.compute("spmm", PROBLEM, *operands.of("spmm")) + bias
    dy = np.where(sums > 0, operands.dy, 0)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        x = jax.device_put(operands.x, x_spec)
        values = jax.device_put(operands.values, values_spec)
        indices = jax.device_put(operands.indices, P(None, None))
        bias = jax.device_put(bias, bias_spec)

        def product(x, values, bias):
            return jax_nm.spmm(x, weight(PROBLEM, values, indices), bias, "relu")

        y, vjp = jax.vjp(jax.jit(product), x, values, bias)
        assert jax.typeof(y).sharding.spec == y_spec
        gradients = vjp(jax.device_put(operands.dy, y_spec))
        for out, like in zip(gradients, (x, values, bias), strict=True):
            assert jax.typeof(out).sharding.spec == jax.typeof(like).sharding.spec
    np.testing.assert_array_equal(y, np.maximum(sums, 0).astype(np.float32))
    exact = (
        oracle.compute("spmm_t", PROBLEM, dy, operands.values, operands.indices),
        oracle.compute("sddmm", PROBLEM, operands.x, dy, operands.indices),
        dy.sum(0),
    )
    for out, expected in zip(gradients, exact, strict=True):
        np.testing.assert_array_equal(out, expected.astype(np.float32), strict=True)
