"""`spmm` as users call it: dtypes, precision, leading axes, bias, activations."""

from __future__ import annotations

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from problems import Problem, gaussians, integers
from scipy.special import erf

import jax_nm
from jax_nm import NMArray, Pattern, _spmm

pytestmark = pytest.mark.usefixtures("strict")

PATTERN = Pattern(4, 8, vector_length=4)
DEPTH, COLS = 18, 10  # the last window has 2 rows, the last group 2 columns
HALF = ("bfloat16", "float16")


@pytest.fixture(autouse=True)
def _on_every_platform(platform):
    pass


def make(lead=(5,), batch=(), dtype="float32", draw=integers):
    problem = Problem("product", lead, DEPTH, COLS, PATTERN, dtype, batch)
    operands = draw(problem)
    return problem, operands, jax.tree.map(jnp.asarray, operands.weight(problem))


def dense(problem, operands):
    return oracle.dense(problem, operands.values, operands.indices)


def with_values(w, values):
    return NMArray(values, w.indices, w.pattern, w.depth, w.cols)


def rounded(exact, dtype):
    return exact.astype(jnp.dtype(dtype))


# dtypes.


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("preferred", [None, "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"),
    list(itertools.product(("float32", "bfloat16", "float16"), repeat=2)),
)
def test_dtypes_of_results_and_gradients(x_dtype, w_dtype, preferred):
    problem, operands, w = make()
    x = jnp.asarray(operands.x, x_dtype)
    w = w.astype(w_dtype)
    promoted = jnp.promote_types(x_dtype, w_dtype)
    result_dtype = jnp.dtype(preferred or promoted)

    def product(x, values):
        return jax_nm.spmm(x, with_values(w, values), preferred_element_type=preferred)

    y, vjp = jax.vjp(product, x, w.values)
    exact = oracle.compute("spmm", problem, *operands.of("spmm"))
    np.testing.assert_array_equal(y, rounded(exact, result_dtype), strict=True)
    dx, dvalues = vjp(jnp.asarray(operands.dy, result_dtype))
    exact = oracle.compute("spmm_t", problem, *operands.of("spmm_t"))
    np.testing.assert_array_equal(dx, rounded(exact, x_dtype), strict=True)
    exact = oracle.compute("sddmm", problem, *operands.of("sddmm"))
    np.testing.assert_array_equal(dvalues, rounded(exact, w_dtype), strict=True)


def test_float64_leaves_of_numpy_are_taken_as_jax_takes_them():
    """Without x64 they are float32, here as in every JAX function, and no warning."""
    problem, operands, w = make()
    wide = with_values(w, np.asarray(w.values, np.float64))
    y = jax_nm.spmm(operands.x.astype(np.float64), wide)
    exact = oracle.compute("spmm", problem, *operands.of("spmm"))
    np.testing.assert_array_equal(y, rounded(exact, "float32"), strict=True)
    assert "float32 -> float32" in jax_nm.explain(operands.x, wide, arch="cpu").problem


def test_mixed_dtypes_obey_strict_promotion():
    _, operands, w = make()
    with pytest.raises(jax.dtypes.TypePromotionError):
        jax_nm.spmm(jnp.asarray(operands.x, "bfloat16"), w)


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_wide_cotangents_are_narrowed_except_under_highest(precision):
    problem, operands, w = make(dtype="bfloat16")
    rng = problem.rng("cotangent")
    dy = rng.integers(-511, 512, operands.dy.shape).astype(np.float32)

    def product(x, values):
        return jax_nm.spmm(
            x,
            with_values(w, values),
            precision=precision,
            preferred_element_type=jnp.float32,
        )

    _, vjp = jax.vjp(product, jnp.asarray(operands.x), w.values)
    results = vjp(jnp.asarray(dy))

    def expected(dy):
        x, values, indices = operands.of("spmm")
        dx = oracle.compute("spmm_t", problem, dy, values, indices)
        dvalues = oracle.compute("sddmm", problem, x, dy, indices)
        return rounded(dx, "bfloat16"), rounded(dvalues, "bfloat16")

    wide, narrow = expected(dy), expected(dy.astype(jnp.bfloat16))
    assert not all(np.array_equal(a, b) for a, b in zip(wide, narrow, strict=True))
    chosen = wide if precision == "highest" else narrow
    for out, exact in zip(results, chosen, strict=True):
        np.testing.assert_array_equal(out, exact, strict=True)


HIGHEST = {
    None: False,
    "default": False,
    "high": False,
    "tensorfloat32": False,
    "highest": True,
    "float32": True,
    jax.lax.Precision.DEFAULT: False,
    jax.lax.Precision.HIGH: False,
    jax.lax.Precision.HIGHEST: True,
}


def is_highest(x, w, **options) -> bool:
    jaxpr = jax.make_jaxpr(lambda x: jax_nm.spmm(x, w, **options))(x)
    (flag,) = set(re.findall(r"highest=(True|False)", str(jaxpr)))
    return flag == "True"


@pytest.mark.parametrize("precision", HIGHEST, ids=str)
def test_precision(precision):
    _, operands, w = make()
    x = operands.x
    assert is_highest(x, w, precision=precision) == HIGHEST[precision]
    opposite = "default" if HIGHEST[precision] else "highest"
    with jax.default_matmul_precision(opposite):
        if precision is None:
            assert is_highest(x, w, precision=precision)
        else:
            assert is_highest(x, w, precision=precision) == HIGHEST[precision]


def test_precision_reaches_the_gradient():
    _, operands, w = make()
    loss = jax.grad(lambda x: jax_nm.spmm(x, w, precision="highest").sum())
    flags = re.findall(r"highest=(True|False)", str(jax.make_jaxpr(loss)(operands.x)))
    assert set(flags) == {"True"}


# Leading axes.

BROADCASTS = [  # leading axes of x, of w
    ((), ()),
    ((4,), ()),
    ((2, 3), ()),
    ((3,), (3,)),
    ((), (3,)),
    ((1,), (3,)),
    ((3,), (1,)),
    ((2, 3), (3,)),
    ((2, 1), (3,)),
    ((3,), (2, 3)),
    ((2, 3), (2, 3)),
    ((2, 3), (1, 3)),
    ((2, 3), (2, 1)),
    ((2, 3), (1, 1)),
    ((2, 1), (1, 3)),
    ((2, 4, 3), (2, 1, 3)),
    ((0,), ()),
    ((0,), (1,)),
]


@pytest.mark.usefixtures("highest")
@pytest.mark.parametrize(("x_lead", "w_lead"), BROADCASTS)
def test_leading_axes_broadcast_as_in_matmul(x_lead, w_lead):
    rows = 5
    problem, operands, w = make((rows,), w_lead)
    rng = problem.rng(x_lead)
    x = rng.integers(-3, 4, (*x_lead, rows, DEPTH)).astype(np.float32)
    kernel = dense(problem, operands)

    dy = rng.integers(-3, 4, np.matmul(x, kernel).shape).astype(np.float32)

    def gradients(product, *operands):
        y, vjp = jax.vjp(product, *map(jnp.asarray, operands))
        return y, vjp(jnp.asarray(dy))

    y, (dx, dvalues) = gradients(
        lambda x, v: jax_nm.spmm(x, with_values(w, v)), x, w.values
    )
    y_dense, (dx_dense, dkernel) = gradients(jnp.matmul, x, kernel)
    np.testing.assert_array_equal(y, y_dense, strict=True)
    np.testing.assert_array_equal(dx, dx_dense, strict=True)
    expected = oracle.sample(problem, np.asarray(dkernel), operands.indices)
    np.testing.assert_array_equal(dvalues, expected, strict=True)


def test_a_single_row_needs_no_leading_axis():
    problem, operands, w = make((1,))
    y = jax_nm.spmm(operands.x[0], w)
    assert y.shape == (COLS,)
    exact = oracle.compute("spmm", problem, *operands.of("spmm"))[0]
    np.testing.assert_array_equal(y, exact)


# Bias and activations.


@pytest.mark.parametrize(
    ("lead", "batch", "bias_shape"),
    [
        ((5,), (), (COLS,)),
        ((2, 3), (), (COLS,)),
        ((5,), (3,), (COLS,)),
        ((5,), (3,), (3, COLS)),
        ((5,), (2, 3), (2, 3, COLS)),
        ((5,), (2, 3), (COLS,)),
    ],
)
def test_bias(lead, batch, bias_shape):
    problem, operands, w = make(lead, batch)
    rng = problem.rng("bias")
    bias = rng.integers(-3, 4, bias_shape).astype(np.float32)
    dy = jnp.asarray(operands.dy)

    def product(x, values, bias):
        return jax_nm.spmm(x, with_values(w, values), bias)

    y, vjp = jax.vjp(product, jnp.asarray(operands.x), w.values, jnp.asarray(bias))
    exact = oracle.compute("spmm", problem, *operands.of("spmm"))
    rows_axes = tuple(range(len(batch), len(batch) + len(lead)))
    spread = bias if bias.ndim == 1 else np.expand_dims(bias, rows_axes)
    np.testing.assert_array_equal(y, (exact + spread).astype(np.float32), strict=True)
    dx, dvalues, dbias = vjp(dy)
    for op, out in (("spmm_t", dx), ("sddmm", dvalues)):
        exact = oracle.compute(op, problem, *operands.of(op)).astype(np.float32)
        np.testing.assert_array_equal(out, exact, strict=True)
    summed = tuple(i for i in range(dy.ndim - 1) if bias.ndim == 1 or i in rows_axes)
    np.testing.assert_array_equal(dbias, operands.dy.sum(summed), strict=True)


def gelu_tanh(y):
    return y / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


# The function in float64, and its Lipschitz constant.
ACTIVATIONS = {
    "relu": (lambda y: np.maximum(y, 0), 1.0),
    "gelu": (gelu_tanh, 1.13),
    "gelu_exact": (lambda y: y / 2 * (1 + erf(y / math.sqrt(2))), 1.13),
    "silu": (lambda y: y / (1 + np.exp(-y)), 1.1),
}


@pytest.mark.parametrize("dtype", ["float32", *HALF])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_bound(activation, with_bias, dtype):
    problem, operands, w = make((70,), dtype=dtype, draw=gaussians)
    bias = problem.rng("bias").standard_normal(COLS).astype(w.dtype)
    options = {"bias": jnp.asarray(bias)} if with_bias else {}
    out = jax_nm.spmm(
        operands.x, w, activation=activation, precision="highest", **options
    )
    assert out.dtype == w.dtype
    exact = oracle.compute("spmm", problem, *operands.of("spmm"))
    scale = oracle.magnitude("spmm", problem, *operands.of("spmm"))
    if with_bias:
        exact, scale = exact + bias.astype(float), scale + np.abs(bias.astype(float))
    function, lipschitz = ACTIVATIONS[activation]
    error = np.abs(np.asarray(out, np.float64) - function(exact))
    unit = float(jnp.finfo(dtype).eps) / 2
    bound = unit + (problem.kept + 2) * 2.0**-23
    underflow = float(jnp.finfo(dtype).smallest_subnormal) / 2
    assert (error <= lipschitz * bound * scale + underflow).all()


@pytest.mark.parametrize("dtype", HALF)
def test_bias_and_activation_act_on_the_unrounded_sum(dtype):
    """x @ w is 4097 and the bias -4096: with a rounded sum the result would be 0."""
    pattern = Pattern(2, 2, vector_length=1)
    w = jax_nm.compress(jnp.array([[64.0], [1.0]], dtype), pattern)
    x = jnp.array([[64.0, 1.0]], dtype)
    bias = jnp.array([-4096.0], dtype)
    for activation in (None, "relu", lambda y: y):
        y = jax_nm.spmm(x, w, bias, activation)
        np.testing.assert_array_equal(y, np.array([[1]], y.dtype))
        assert y.dtype == jnp.dtype(dtype)


@pytest.mark.usefixtures("highest")
def test_activation_gradient_is_that_of_the_dense_expression():
    """Tier (iii) against float64: at most twice the error of dense, plus a rounding."""
    problem, operands, w = make((9,), draw=gaussians)
    kernel = dense(problem, operands)
    bias = problem.rng("bias").standard_normal(COLS).astype(np.float32)
    functions = {
        "relu": jax.nn.relu,
        "gelu": jax.nn.gelu,
        "gelu_exact": lambda y: jax.nn.gelu(y, approximate=False),
        "silu": jax.nn.silu,
    }
    for name, function in functions.items():

        def sparse_loss(x, values, bias, name=name):
            return jax_nm.spmm(x, with_values(w, values), bias, name).sum()

        def dense_loss(x, kernel, bias, function=function):
            return function(jnp.matmul(x, kernel) + bias[None]).sum()

        def grad(loss, *operands):
            operands = tuple(map(jnp.asarray, operands))
            return list(map(np.asarray, jax.jit(jax.grad(loss, (0, 1, 2)))(*operands)))

        sparse = grad(sparse_loss, operands.x, operands.values, bias)
        single = grad(dense_loss, operands.x, kernel, bias)
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            wide = [a.astype(np.float64) for a in (operands.x, kernel, bias)]
            exact = grad(dense_loss, *wide)
        for result in (single, exact):
            result[1] = oracle.sample(problem, result[1], operands.indices)
        for out, baseline, reference in zip(sparse, single, exact, strict=True):
            error, allowed = (np.linalg.norm(a - reference) for a in (out, baseline))
            assert error <= 2 * allowed + 2.0**-24 * np.linalg.norm(reference), name


@pytest.mark.parametrize("function", [jax.nn.relu, jax.nn.gelu, jax.nn.silu])
def test_activations_of_jax_nn_are_recognised(function):
    _, operands, w = make()

    def jaxpr(activation):
        return str(
            jax.make_jaxpr(lambda x: jax_nm.spmm(x, w, activation=activation))(
                operands.x
            )
        )

    assert jaxpr(function) == jaxpr(function.__name__)


def test_a_callable_sees_the_sum_in_float32():
    problem, operands, w = make(dtype="bfloat16")
    seen = []

    def twice(y):
        seen.append(y.dtype)
        return 2 * y

    y = jax_nm.spmm(operands.x, w, activation=twice)
    exact = 2 * oracle.compute("spmm", problem, *operands.of("spmm"))
    np.testing.assert_array_equal(y, rounded(exact, "bfloat16"), strict=True)
    assert set(seen) == {jnp.dtype("float32")}


# Other ways to call it.


def test_matmul_operator():
    problem, operands, w = make()
    exact = oracle.compute("spmm", problem, *operands.of("spmm")).astype("float32")
    for x in (operands.x, jnp.asarray(operands.x)):
        y = x @ w
        assert isinstance(y, jax.Array)
        np.testing.assert_array_equal(y, exact, strict=True)
    jitted = jax.jit(lambda x, w: x @ w)
    np.testing.assert_array_equal(jitted(operands.x, w), exact, strict=True)
    assert jax.eval_shape(jitted, operands.x, w).shape == exact.shape


@pytest.mark.parametrize("lead", [(5,), (3, 70)])
def test_feature_major_form(lead):
    problem, operands, w = make(lead)
    bias = jnp.asarray(problem.rng("bias").integers(-3, 4, COLS).astype(np.float32))
    exact = oracle.compute("spmm", problem, *operands.of("spmm"))
    expected = np.maximum(exact + np.asarray(bias), 0).astype("float32").mT
    for options in ({}, {"result_layout": "row"}, {"result_layout": "feature"}):
        y = jax_nm.spmm_fm(operands.x.mT, w, bias=bias, activation="relu", **options)
        np.testing.assert_array_equal(y, expected, strict=True)


@pytest.mark.parametrize("result_layout", ["row", "feature"])
@pytest.mark.parametrize("rows", [1, 5, 65])
def test_result_layout_changes_no_value(result_layout, rows):
    problem, operands, w = make((rows,))
    y = jax_nm.spmm(operands.x, w, result_layout=result_layout)
    exact = oracle.compute("spmm", problem, *operands.of("spmm")).astype("float32")
    np.testing.assert_array_equal(y, exact, strict=True)


# Eager calls.


def test_an_eager_call_is_checked_once_for_its_shapes_and_options(monkeypatch):
    calls = []

    def counted(*args, **keywords):
        calls.append(args)
        return check(*args, **keywords)

    check = _spmm.check
    monkeypatch.setattr(_spmm, "check", counted)
    x = jnp.ones((3, 44))
    w = jax_nm.compress(jnp.ones((44, 52)), jax_nm.Pattern(2, 4, vector_length=4))
    relu, high = {"activation": "relu"}, {"precision": "high"}
    for options, count in (({}, 1), ({}, 1), (relu, 2), (relu, 2), (high, 3)):
        jax_nm.spmm(x, w, **options)
        assert len(calls) == count
    x @ w
    assert len(calls) == 3
    # The precision that a context sets is an option too.
    with jax.default_matmul_precision("highest"):
        jax_nm.spmm(x, w)
    assert len(calls) == 4


def test_what_cannot_be_static_is_reported_as_ever():
    x = jnp.ones((3, 4))
    w = jax_nm.compress(jnp.ones((4, 4)), jax_nm.Pattern(2, 4, vector_length=4))
    with pytest.raises(TypeError, match="spmm: preferred_element_type must be"):
        jax_nm.spmm(x, w, preferred_element_type=["float32"])
    with pytest.raises(ValueError, match="spmm: result_layout must be None, 'row'"):
        jax_nm.spmm(x, w, result_layout=["row"])
