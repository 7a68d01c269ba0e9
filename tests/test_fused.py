"""The fused product, y = activation(x @ w + bias) in one primitive.

As `test_ops` for the linear ones: exact on integers, bounded on reals, on every problem
and platform. Then its derivatives, its batching, and which calls it takes over.
"""

from __future__ import annotations

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from problems import (
    FEW,
    PROBLEMS,
    Problem,
    cuda_kernels,
    gaussians,
    integers,
    on_tensor_cores,
)
from scipy.special import erf

import jax_nm
from jax_nm import NMArray, Pattern, _lowering, _primitives, _tuning

pytestmark = pytest.mark.usefixtures("strict")

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
few_problems = pytest.mark.parametrize("problem", FEW, ids=str)
kernel_problems = pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.dtype != "float64"], ids=str
)
HALF = ("bfloat16", "float16")


def gelu(s):
    return s / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (s + 0.044715 * s**3)))


def gelu_exact(s):
    return s / 2 * (1 + erf(s.astype(np.float64) / math.sqrt(2)))


# The function, and bounds of its first and second derivatives.
SMOOTH = {
    "gelu": (gelu, 1.13, 0.8),
    "gelu_exact": (gelu_exact, 1.13, 0.8),
    "silu": (lambda s: s / (1 + np.exp(-s)), 1.1, 0.5),
}


def wide(problem: Problem) -> np.dtype:
    return np.dtype("float64" if problem.dtype == "float64" else "float32")


def integer_bias(problem: Problem) -> np.ndarray:
    shape = (*problem.batch, problem.cols)
    return problem.rng("bias").integers(-9, 10, shape).astype(wide(problem))


def gaussian_bias(problem: Problem) -> np.ndarray:
    shape = (*problem.batch, problem.cols)
    return problem.rng("bias").standard_normal(shape).astype(wide(problem))


def spread(problem: Problem, bias: np.ndarray) -> np.ndarray:
    """The bias with axes of length 1 where the result has rows."""
    rows = range(len(problem.batch), len(problem.batch) + len(problem.lead))
    return np.expand_dims(bias, tuple(rows))


def rounded(exact: np.ndarray, dtype) -> np.ndarray:
    return exact.astype(jnp.dtype(dtype))


def unit_roundoff(dtype) -> float:
    return float(jnp.finfo(dtype).eps) / 2


def run(problem, operands, bias, activation, emit_sum=True, out_dtype=None, **options):
    out_dtype = jnp.dtype(out_dtype or problem.dtype)
    with problem.precision():
        results = _primitives.spmm_fused(
            *map(jnp.asarray, operands),
            None if bias is None else jnp.asarray(bias),
            spec=problem.spec(**options),
            out_dtype=out_dtype,
            activation=activation,
            emit_sum=emit_sum,
        )
        assert len(results) == 1 + emit_sum
        assert {result.dtype for result in results} == {out_dtype}
        return [np.asarray(result) for result in results]


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


# Tier (i): exact.


def exact_results(problem: Problem, operands, bias, dtype=None):
    """y under relu, and the sum before it."""
    sums = oracle.compute("spmm", problem, *operands) + spread(problem, bias)
    dtype = dtype or problem.dtype
    return [rounded(np.maximum(sums, 0), dtype), rounded(sums, dtype)]


@every_problem
def test_integers_are_exact(platform, problem):
    operands, bias = integers(problem).of("spmm"), integer_bias(problem)
    results = run(problem, operands, bias, "relu")
    assert_equal(results, exact_results(problem, operands, bias))


@few_problems
@pytest.mark.parametrize("emit_sum", [False, True], ids=["plain", "emit_sum"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
def test_every_part_may_be_absent(platform, problem, with_bias, activation, emit_sum):
    operands, bias = integers(problem).of("spmm"), integer_bias(problem)
    bias = bias if with_bias else 0 * bias
    y, sums = exact_results(problem, operands, bias)
    expected = [y if activation else sums, sums]
    bias = bias if with_bias else None
    results = run(problem, operands, bias, activation, emit_sum)
    assert_equal(results, expected[: 1 + emit_sum])


@few_problems
def test_both_results_have_the_dtype_that_is_asked_for(platform, problem):
    operands, bias = integers(problem).of("spmm"), integer_bias(problem)
    for dtype in {"float32", "bfloat16", "float16"} - {problem.dtype}:
        results = run(problem, operands, bias, "relu", out_dtype=dtype)
        assert_equal(results, exact_results(problem, operands, bias, dtype))


@kernel_problems
def test_every_cuda_kernel_is_exact(cuda, problem):
    operands, bias = integers(problem).of("spmm"), integer_bias(problem)
    expected = exact_results(problem, operands, bias)
    forced = [{"kernel": k} for k in cuda_kernels("spmm", problem, "relu", True)]
    forced += [{"arch": arch} for arch in (80, 86, 89, 90, 100, 120)]

    @jax.jit
    def call(*operands):
        return [
            _primitives.spmm_fused(
                *operands,
                spec=problem.spec(**options),
                out_dtype=jnp.dtype(problem.dtype),
                activation="relu",
                emit_sum=True,
            )
            for options in forced
        ]

    for results in call(*map(jnp.asarray, (*operands, bias))):
        assert_equal(results, expected)


def call_kernel(
    problem: Problem, operands, bias, *, layout, workspace, emit_sum, kernel=0
):
    """The bare custom call, on matrices of rank 3 that lie as the layout code says."""
    batch, pattern = math.prod(problem.batch), problem.pattern
    x, values, indices = operands
    y = jax.ShapeDtypeStruct((batch, problem.rows, problem.cols), x.dtype)
    row_major, order = (0, 1, 2), {True: (0, 2, 1), False: (0, 1, 2)}
    x_order, y_order = order[bool(layout & 1)], order[bool(layout & 2)]
    outputs = jax.ffi.ffi_call(
        _lowering.target_name("spmm_fused"),
        [
            y,
            y if emit_sum else jax.ShapeDtypeStruct((0,), x.dtype),
            jax.ShapeDtypeStruct((workspace,), jnp.uint8),
        ],
        input_layouts=[x_order, row_major, row_major, (0, 1)],
        output_layouts=[y_order, y_order if emit_sum else (0,), (0,)],
    )(
        x.reshape(batch, problem.rows, problem.depth),
        values.reshape(batch, problem.kept, problem.cols),
        indices.reshape(batch, problem.groups, problem.kept),
        bias.reshape(batch, problem.cols),
        n=np.int32(pattern.n),
        m=np.int32(pattern.m),
        vector_length=np.int32(pattern.vector_length),
        layout=np.int32(layout),
        flags=np.int32(0),
        kernel=np.int32(kernel),
        arch=np.int32(0),
        activation=np.int32(1),
    )
    return outputs[: 1 + emit_sum]


@kernel_problems
def test_every_layout_and_any_workspace(cuda, problem):
    """Rows are not padded here, and reductions are split where there is workspace."""
    operands, bias = integers(problem).of("spmm"), integer_bias(problem)
    expected = exact_results(problem, operands, bias)
    # XLA cannot always copy an empty array into another layout.
    layouts = range(4) if all(a.size for a in operands) else (0,)

    @jax.jit
    def call(operands, bias):
        return [
            call_kernel(
                problem,
                operands,
                bias,
                layout=layout,
                workspace=workspace,
                emit_sum=emit_sum,
            )
            for layout in layouts
            for workspace in (0, 1000, 1 << 22, 1 << 25)
            for emit_sum in (False, True)
        ]

    for results in call(list(map(jnp.asarray, operands)), jnp.asarray(bias)):
        results = [np.asarray(y).reshape(expected[0].shape) for y in results]
        assert_equal(results, expected[: len(results)])


BULK = {k for name, k in _tuning.kernels().items() if "skinny_bulk" in name}


@pytest.mark.parametrize(
    "problem",
    [p for p in PROBLEMS if p.name.startswith("skinny_") and p.dtype in HALF],
    ids=str,
)
def test_few_rows_lie_either_way(cuda, problem):
    """A feature-major x goes to these kernels only where they are asked for."""
    kernels = BULK & set(cuda_kernels("spmm", problem, "relu", True))
    if not kernels:
        pytest.skip("needs a device of compute capability 9.0")
    operands, bias = integers(problem).of("spmm"), integer_bias(problem)
    expected = exact_results(problem, operands, bias)
    for kernel, layout in itertools.product(kernels, range(4)):
        call = functools.partial(
            call_kernel,
            problem,
            layout=layout,
            workspace=1 << 22,
            emit_sum=True,
            kernel=kernel,
        )
        results = jax.jit(call)(list(map(jnp.asarray, operands)), jnp.asarray(bias))
        results = [np.asarray(y).reshape(expected[0].shape) for y in results]
        assert_equal(results, expected)


# Tier (ii): random reals against the bound.


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize(
    "problem",
    [
        p
        for p in PROBLEMS
        if p.name in ("one_row", "rows_65", "tail_below_n", "hopper_128", "batched")
    ],
    ids=str,
)
def test_rounding_errors_are_bounded(platform, problem, activation):
    operands, bias = gaussians(problem).of("spmm"), gaussian_bias(problem)
    y, sums = run(problem, operands, bias, activation, highest=True)
    added = spread(problem, bias)
    exact = oracle.compute("spmm", problem, *operands) + added
    scale = oracle.magnitude("spmm", problem, *operands) + np.abs(added)
    function, lipschitz, _ = SMOOTH[activation]
    dtype = problem.dtype
    u_acc = unit_roundoff(wide(problem))
    if on_tensor_cores(platform, "spmm", problem, highest=True):
        u_acc *= 2
    # Another term for the bias, and another rounding for the activation.
    bound = (unit_roundoff(dtype) + (problem.kept + 4) * u_acc) * scale
    bound += float(jnp.finfo(dtype).smallest_subnormal) / 2
    assert (np.abs(sums.astype(exact.dtype) - exact) <= bound).all()
    assert (np.abs(y.astype(exact.dtype) - function(exact)) <= lipschitz * bound).all()


@few_problems
@pytest.mark.parametrize("activation", [None, "relu", *SMOOTH])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_non_finite_values_reach_their_readers_only(
    platform, problem, special, activation
):
    """And give what they give in jax.nn."""
    (x, values, indices), bias = integers(problem).of("spmm"), integer_bias(problem)
    batch, lead = (tuple(s // 2 for s in a) for a in (problem.batch, problem.lead))
    x[(*batch, *lead, indices[(*batch, 0, 0)])] = special  # read by the first slot
    with np.errstate(invalid="ignore"):
        exact = oracle.compute("spmm", problem, x, values, indices)
    exact += spread(problem, bias)
    # By way of a dense matrix, they reach their whole row.
    y, sums = run(
        problem, (x, values, indices), bias, activation, implementation="sparse"
    )
    np.testing.assert_array_equal(np.isnan(sums), np.isnan(exact))
    np.testing.assert_array_equal(np.isposinf(sums), np.isposinf(exact))
    np.testing.assert_array_equal(np.isneginf(sums), np.isneginf(exact))
    broken = ~np.isfinite(exact)
    assert broken.any() and not broken.all()
    assert np.isfinite(y[~broken]).all()
    function = {
        None: lambda s: s,
        "relu": jax.nn.relu,
        "gelu": jax.nn.gelu,
        "gelu_exact": lambda s: jax.nn.gelu(s, approximate=False),
        "silu": jax.nn.silu,
    }[activation]
    expected = np.asarray(function(jnp.asarray(exact[broken].astype("float32"))))
    np.testing.assert_array_equal(y[broken].astype("float32"), expected)


@few_problems
def test_repeated_calls_are_bit_equal(platform, problem):
    operands, bias = gaussians(problem).of("spmm"), gaussian_bias(problem)
    first = run(problem, operands, bias, "gelu")
    for _ in range(3):
        assert_equal(run(problem, operands, bias, "gelu"), first)


# What the public product makes of it.

PATTERN = Pattern(4, 8, vector_length=4)
DEPTH, COLS = 18, 10  # the last window has 2 rows, the last group 2 columns


def make(lead=(5,), batch=(), dtype="float32", draw=integers):
    problem = Problem("fused", lead, DEPTH, COLS, PATTERN, dtype, batch)
    operands = draw(problem)
    return problem, operands, jax.tree.map(jnp.asarray, operands.weight(problem))


def with_values(w, values):
    return NMArray(values, w.indices, w.pattern, w.depth, w.cols)


def binds(function, *operands) -> dict[str, int]:
    """How often each primitive is bound."""
    jaxpr = str(jax.make_jaxpr(function)(*operands))
    names = re.findall(r"= nm_(\w+)\[", jaxpr)
    return {name: names.count(name) for name in sorted(set(names))}


def test_bias_and_named_activations_are_fused():
    _, operands, w = make()
    x, bias = operands.x, jnp.ones(COLS)

    def of(**options):
        return binds(lambda x: jax_nm.spmm(x, w, **options), x)

    assert of() == {"spmm": 1}
    for options in (
        {"bias": bias},
        {"activation": "silu"},
        {"activation": jax.nn.gelu},
        {"bias": bias, "activation": "gelu_exact"},
    ):
        assert of(**options) == {"spmm_fused": 1}
    assert of(bias=bias, activation=jnp.tanh) == {"spmm": 1}


BROADCASTS = [  # leading axes of x, of w and of the bias, and whether it is fused
    ((), (), (), True),
    ((4,), (), (), True),
    ((3,), (3,), (), True),
    ((3,), (3,), (3,), True),
    ((), (3,), (3,), True),
    ((2, 3), (3,), (3,), True),
    ((2, 3), (2, 3), (2, 3), True),
    ((2, 3), (2, 1), (2, 1), True),
    ((2, 3), (1, 3), (1, 3), True),
    ((2, 3), (1, 1), (1, 1), True),
    ((2, 3), (3,), (2, 3), False),
    ((2, 3), (2, 1), (2, 3), False),
    ((2, 3), (1, 1), (2, 3), False),
    ((2, 1), (1, 3), (2, 3), False),
]


@pytest.mark.usefixtures("highest")
@pytest.mark.parametrize(("x_lead", "w_lead", "bias_lead", "fused"), BROADCASTS)
def test_leading_axes_of_the_bias(platform, x_lead, w_lead, bias_lead, fused):
    problem, operands, w = make((5,), w_lead)
    rng = problem.rng(x_lead, bias_lead)
    x = rng.integers(-3, 4, (*x_lead, 5, DEPTH)).astype(np.float32)
    bias = rng.integers(-9, 10, (*bias_lead, COLS)).astype(np.float32)
    kernel = oracle.dense(problem, operands.values, operands.indices)

    def sparse(x, values, bias):
        return jax_nm.spmm(x, with_values(w, values), bias, "relu")

    def dense(x, kernel, bias):
        sums = jnp.matmul(x, kernel)
        bias = bias[..., None, :]
        return jax.nn.relu(sums + jnp.expand_dims(bias, range(sums.ndim - bias.ndim)))

    y, vjp = jax.vjp(sparse, *map(jnp.asarray, (x, w.values, bias)))
    y_dense, vjp_dense = jax.vjp(dense, *map(jnp.asarray, (x, kernel, bias)))
    dy = jnp.asarray(rng.integers(-3, 4, y.shape).astype(np.float32))
    dx, dvalues, dbias = vjp(dy)
    dx_dense, dkernel, dbias_dense = vjp_dense(dy)
    dvalues_dense = oracle.sample(problem, np.asarray(dkernel), operands.indices)
    assert_equal(
        (y, dx, dvalues, dbias), (y_dense, dx_dense, dvalues_dense, dbias_dense)
    )
    assert ("spmm_fused" in binds(sparse, x, w.values, bias)) == fused


@pytest.mark.usefixtures("platform")
def test_an_empty_reduction_leaves_the_bias():
    w = jax_nm.compress(jnp.zeros((0, COLS)), PATTERN)
    bias = jnp.arange(-4.0, COLS - 4.0)
    y = jax_nm.spmm(jnp.zeros((3, 0)), w, bias, "relu")
    expected = np.maximum(np.asarray(bias), 0)
    np.testing.assert_array_equal(y, np.broadcast_to(expected, (3, COLS)))


# Derivatives.


@pytest.mark.parametrize("precision", ["default", "highest"])
@pytest.mark.parametrize("dtype", ["float32", *HALF])
@pytest.mark.parametrize("activation", SMOOTH)
def test_gradients_are_those_of_the_unfused_composition(
    platform, activation, dtype, precision
):
    """They differ by what rounding the sum does to the slope, and by cast cotangents.

    Under HIGHEST the sum is not rounded, nor are the cotangents.
    """
    problem, operands, w = make((70,), dtype=dtype, draw=gaussians)
    bias = jnp.asarray(gaussian_bias(problem))
    function = {
        "gelu": jax.nn.gelu,
        "gelu_exact": lambda s: jax.nn.gelu(s, approximate=False),
        "silu": jax.nn.silu,
    }[activation]

    def gradients(activation):
        def product(x, values, bias):
            return jax_nm.spmm(
                x, with_values(w, values), bias, activation, precision=precision
            )

        x = jnp.asarray(operands.x)
        _, vjp = jax.vjp(product, x, w.values, bias)
        results = vjp(jnp.asarray(operands.dy))
        return [np.asarray(a, np.float64) for a in results]

    fused, unfused = gradients(activation), gradients(lambda s: function(s))
    _, slope, curvature = SMOOTH[activation]
    u_out, u_acc = unit_roundoff(dtype), 2 * unit_roundoff("float32")
    u = u_acc if precision == "highest" else max(u_out, u_acc)
    x, values, dy = (
        np.abs(a.astype(np.float64)) for a in (operands.x, operands.values, operands.dy)
    )
    # The sum, as far from 0 as its terms allow.
    sums = oracle.compute("spmm", problem, x, values, operands.indices)
    sums += np.abs(np.asarray(bias, np.float64))
    # Of the product's cotangent: the error, and the largest size.
    size = slope * dy
    error = dy * curvature * sums * ((problem.kept + 4) * u_acc + u) + 2 * u * size
    terms = {"spmm_t": COLS, "sddmm": 70}
    for op, a, b in zip(terms, fused, unfused, strict=False):
        first, second = (error, values) if op == "spmm_t" else (x, error)
        bound = oracle.compute(op, problem, first, second, operands.indices)
        first, second = (size, values) if op == "spmm_t" else (x, size)
        largest = oracle.compute(op, problem, first, second, operands.indices)
        bound += 2 * (u_out + (terms[op] + 2) * u_acc) * largest
        assert (np.abs(a - b) <= bound).all(), op
    bound = np.sum(error, 0) + 2 * (70 + 2) * u_acc * np.sum(size, 0)
    assert (np.abs(fused[2] - unfused[2]) <= bound).all()


def test_sums_beyond_float16_have_the_derivative_of_the_limit(platform):
    """The emitted sum is -inf, where the formulas of gelu and silu give NaN."""
    pattern = Pattern(2, 2, vector_length=1)
    w = jax_nm.compress(jnp.array([[-1024.0, 1.0], [0.0, 1.0]], jnp.float16), pattern)
    x = jnp.array([[1024.0, 0.0]], jnp.float16)
    for activation in ("relu", *SMOOTH):
        y, vjp = jax.vjp(
            lambda x, activation=activation: jax_nm.spmm(x, w, None, activation), x
        )
        assert (y[0, 0], y[0, 1]) == (0, 1024)
        (dx,) = vjp(jnp.ones_like(y))
        np.testing.assert_array_equal(dx, np.array([[1, 1]], np.float16))


def test_what_the_backward_pass_keeps(platform):
    """The sum in the dtype of the result, and nothing else of its size."""
    _, operands, w = make((70,), dtype="bfloat16")
    x, bias = jnp.asarray(operands.x), jnp.ones(COLS)

    def residuals(precision):
        def product(x, bias):
            return jax_nm.spmm(x, w, bias, "gelu", precision=precision)

        _, vjp = jax.vjp(product, x, bias)
        leaves = [a for a in jax.tree.leaves(vjp) if np.shape(a) == (70, COLS)]
        return [a.dtype.name for a in leaves]

    assert residuals("default") == ["bfloat16"]
    assert residuals("highest") == ["float32"]


LINEAR = (("x", "bias"), ("values", "bias"), ("bias",), ("x",))


@pytest.mark.usefixtures("highest")
@pytest.mark.parametrize("linear", LINEAR, ids="_".join)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["plain", "batched"])
def test_linear_transpose(platform, batch, linear):
    """Without an activation, and of the bias together with x or values."""
    problem, operands, w = make(batch=batch)
    bias = jnp.asarray(integer_bias(problem))
    full = {"x": jnp.asarray(operands.x), "values": w.values, "bias": bias}

    def product(activation, x, values, bias):
        return jax_nm.spmm(x, with_values(w, values), bias, activation)

    def transpose(activation):
        def partial(*primals):
            return product(activation, **full | dict(zip(linear, primals, strict=True)))

        return jax.linear_transpose(partial, *(full[name] for name in linear))

    dy = jnp.asarray(operands.dy)
    _, vjp = jax.vjp(functools.partial(product, None), *full.values())
    expected = dict(zip(full, vjp(dy), strict=True))
    assert_equal(transpose(None)(dy), [expected[name] for name in linear])
    with pytest.raises(NotImplementedError, match="'relu' is not linear"):
        transpose("relu")(dy)


# Batching, for every mapped and unmapped combination of the operands.

STACK = 3
COMBINATIONS = [c for c in itertools.product((False, True), repeat=4) if any(c)]


def stack_of(batch):
    """Operands and bias with a mapped axis in front."""
    problem, operands, _ = make(batch=(STACK, *batch))
    return *operands.of("spmm"), integer_bias(problem)


def place(operands, axes):
    """Moves the leading axis of each operand to its mapped place, or takes its head."""
    return tuple(
        jnp.asarray(a[0] if axis is None else np.moveaxis(a, 0, axis))
        for a, axis in zip(operands, axes, strict=True)
    )


@pytest.mark.parametrize("mapped", COMBINATIONS, ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["plain", "batched"])
def test_vmap_of_primitive(platform, mapped, batch):
    single, _, _ = make(batch=batch)
    full = stack_of(batch)
    axes = tuple(a if m else None for a, m in zip((1, -1, 1, -1), mapped, strict=True))

    def bind(*operands):
        return _primitives.spmm_fused(
            *operands,
            spec=single.spec(highest=True),
            out_dtype=jnp.dtype("float32"),
            activation="relu",
            emit_sum=True,
        )

    results = jax.vmap(bind, in_axes=axes, out_axes=1)(*place(full, axes))
    for i in range(STACK):
        *picked, bias = (a[i if m else 0] for a, m in zip(full, mapped, strict=True))
        expected = exact_results(single, picked, bias)
        assert_equal([np.moveaxis(out, 1, 0)[i] for out in results], expected)


@pytest.mark.parametrize("mapped", COMBINATIONS, ids=str)
def test_vmap_of_grad_and_grad_of_vmap(platform, mapped):
    """Against a loop over the mapped axis."""
    full = stack_of(())
    axes = tuple(0 if m else None for m in mapped)
    x, values, indices, bias = place(full, axes)

    def loss(x, values, indices, bias):
        w = NMArray(values, indices, PATTERN, DEPTH, COLS)
        y = jax_nm.spmm(x, w, bias, "relu", precision="highest")
        return jnp.sum(y**2)

    def grad(f):
        return jax.grad(f, (0, 1, 3))

    def total(x, values, indices, bias):
        return jnp.sum(jax.vmap(loss, axes)(x, values, indices, bias))

    inner = jax.jit(jax.vmap(grad(loss), axes))(x, values, indices, bias)
    outer = jax.jit(grad(total))(x, values, indices, bias)
    each = []
    for i in range(STACK):
        picked = (a[i if m else 0] for a, m in zip(full, mapped, strict=True))
        each.append(grad(loss)(*map(jnp.asarray, picked)))
    stacked = [np.stack(gradients) for gradients in zip(*each, strict=True)]
    assert_equal(inner, stacked)
    for out, parts, m in zip(outer, stacked, (*mapped[:2], mapped[3]), strict=True):
        np.testing.assert_array_equal(out, parts if m else parts.sum(0), strict=True)


def test_a_mapped_bias_repeats_no_weight():
    _, operands, w = make()
    biases = jnp.ones((STACK, COLS))

    def product(bias):
        return jax_nm.spmm(operands.x, w, bias, "gelu")

    jaxpr = str(jax.make_jaxpr(jax.vmap(product))(biases))
    kept, cols = w.values.shape
    assert f"{STACK},{kept},{cols}]" not in jaxpr


# What is lowered.


def lowered_calls(function, *operands, platform="cuda") -> list[dict[str, str]]:
    traced = jax.jit(function).trace(*operands)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    pattern = r"custom_call @jax_nm\.(\w+)\.v1\(.*backend_config = \{(.*?)\}.* : (\(.*)"
    calls = []
    for target, config, signature in re.findall(pattern, text):
        attributes = dict(re.findall(r"(\w+) = (-?\d+) : i32", config))
        tensors = re.findall(r"tensor<(.*?)>", signature)
        calls.append({"target": target, **attributes, "tensors": tensors})
    return calls


CODES = {None: "0", "relu": "1", "gelu": "2", "gelu_exact": "3", "silu": "4"}


@pytest.mark.parametrize(
    ("with_bias", "activation"), [*itertools.product((False, True), CODES)][1:]
)
def test_the_call_on_cuda(with_cuda, with_bias, activation):
    _, operands, w = make((6,), dtype="bfloat16")
    bias = jnp.ones(COLS) if with_bias else None
    (call,) = lowered_calls(lambda x: jax_nm.spmm(x, w, bias, activation), operands.x)
    assert call["target"] == "spmm_fused"
    assert call["activation"] == CODES[activation]
    kept = w.values.shape[0]
    assert call["tensors"][:6] == [
        f"1x6x{DEPTH}xbf16",
        f"1x{kept}x{COLS}xbf16",
        f"1x3x{kept}xui8",
        f"1x{COLS}xf32" if with_bias else "1x0xf32",
        f"1x6x{COLS}xbf16",  # the result is rounded in the kernel
        "0xbf16",  # no sum is asked for
    ]


@pytest.mark.parametrize(
    ("precision", "element"), [("default", "bf16"), ("highest", "f32")]
)
def test_differentiation_emits_the_sum(with_cuda, precision, element):
    _, operands, w = make((66,), dtype="bfloat16")

    def loss(x):
        y = jax_nm.spmm(x, w, None, "gelu", precision=precision)
        return jnp.sum(y.astype(jnp.float32))

    calls = lowered_calls(jax.grad(loss), operands.x)
    assert [call["target"] for call in calls] == ["spmm_fused", "spmm_t"]
    assert calls[0]["tensors"][4:6] == [f"1x128x{COLS}x{element}"] * 2


def test_what_is_differentiated_in_the_bias_alone_emits_nothing(with_cuda):
    _, operands, w = make((6,))

    def loss(bias):
        return jnp.sum(jax_nm.spmm(operands.x, w, bias))

    (call,) = lowered_calls(jax.value_and_grad(loss), jnp.ones(COLS))
    assert (call["target"], call["tensors"][5]) == ("spmm_fused", "0xf32")


@pytest.mark.parametrize("platform_name", ["cpu", "tpu"])
def test_other_platforms_compose_it(platform_name):
    _, operands, w = make((6,), dtype="bfloat16")

    def product(x):
        return jax_nm.spmm(x, w, None, "gelu")

    calls = lowered_calls(product, operands.x, platform=platform_name)
    assert [c["target"] for c in calls] == ["spmm"] * (platform_name == "cpu")


def test_a_wrong_bias_is_refused_when_it_is_bound():
    problem, operands, _ = make()
    for bias in (jnp.ones(COLS + 1), jnp.ones(COLS, jnp.bfloat16)):
        with pytest.raises(TypeError, match="spmm_fused: expected bias of shape"):
            run(problem, operands.of("spmm"), bias, None)
