"""The keyword `implementation`: numerics by way of a dense matrix, and what is lowered.

Which way the dispatcher goes by itself is tested in test_dense.py and test_tuning.py.
"""

from __future__ import annotations

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from problems import FEW, OPS, PROBLEMS, Problem, gaussians, integers

import jax_nm
from jax_nm import NMArray, Pattern, _lowering, _primitives, _tuning

pytestmark = pytest.mark.usefixtures("strict", "highest")

SHAPE = jax.ShapeDtypeStruct
KERNELS = _tuning.kernels("spmm")
NAME = "spmm_128x128_window"
SMALL = Problem("implementation", (6,), 18, 10, Pattern(4, 8, vector_length=4))


def product(problem: Problem, indices, implementation="dense", **options):
    """x, values -> y through the public function."""

    def call(x, values):
        w = NMArray(values, indices, problem.pattern, problem.depth, problem.cols)
        return jax_nm.spmm(x, w, implementation=implementation, **options)

    return call


def three_products(problem: Problem, operands, *, fused=True, **options):
    """y, dx and dvalues as NumPy arrays."""
    x, dy, values, indices = map(jnp.asarray, operands)

    @jax.jit
    def run(x, dy, values):
        y, pull = jax.vjp(product(problem, indices, **options), x, values)
        return y, *pull(dy)

    return [np.asarray(a) for a in run(x, dy, values)]


def unit_roundoff(dtype) -> float:
    return float(jnp.finfo(dtype).eps) / 2


# Numerics by way of a dense matrix.


@pytest.mark.parametrize(
    "problem",
    [
        p
        for p in PROBLEMS
        if not p.name.startswith("hopper_shared") and p.name != "batched_lead"
    ],
    ids=str,
)
def test_integers_are_exact(platform, problem):
    operands = integers(problem)
    with problem.precision():
        results = three_products(problem, operands)
    for op, out in zip(OPS, results, strict=True):
        exact = oracle.compute(op, problem, *operands.of(op))
        rounded = exact.astype(jnp.dtype(problem.dtype))
        np.testing.assert_array_equal(out, rounded, strict=True, err_msg=op)


@pytest.mark.parametrize("problem", FEW, ids=str)
def test_rounding_errors_are_bounded(platform, problem):
    operands = gaussians(problem)
    with problem.precision():
        results = three_products(problem, operands)
    dtype = jnp.dtype(problem.dtype)
    u_acc = 2.0**-53 if dtype == np.float64 else 2.0**-23
    lengths = {"spmm": problem.depth, "spmm_t": problem.cols, "sddmm": problem.rows}
    for op, out in zip(OPS, results, strict=True):
        exact = oracle.compute(op, problem, *operands.of(op))
        scale = oracle.magnitude(op, problem, *operands.of(op))
        bound = (unit_roundoff(dtype) + (lengths[op] + 2) * u_acc) * scale
        bound += float(jnp.finfo(dtype).smallest_subnormal) / 2
        assert (np.abs(out.astype(exact.dtype) - exact) <= bound).all(), op


@pytest.mark.parametrize("preferred", ["float32", "bfloat16"])
def test_the_result_is_rounded_once(platform, preferred):
    problem = Problem("once", (7,), 600, 20, Pattern(8, 16, 4), "bfloat16")
    operands = integers(problem)
    call = product(problem, operands.indices, preferred_element_type=preferred)
    y = call(jnp.asarray(operands.x), jnp.asarray(operands.values))
    exact = oracle.compute("spmm", problem, *operands.of("spmm"))
    assert np.abs(exact).max() > 256  # more than bfloat16 holds
    np.testing.assert_array_equal(y, exact.astype(jnp.dtype(preferred)), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu", jnp.abs])
@pytest.mark.parametrize("bias", [False, True])
def test_bias_and_activation(platform, dtype, activation, bias):
    """The same contract as the fused kernels: float32 throughout, rounded once."""
    problem = Problem("fused", (7,), 40, 20, Pattern(4, 16, 8), dtype)
    operands = integers(problem)
    options = {"activation": activation}
    if bias:
        drawn = problem.rng("bias").integers(-300, 300, problem.cols)
        options["bias"] = drawn.astype(np.float32)
    dense, sparse = (
        three_products(problem, operands, implementation=way, **options)
        for way in ("dense", "sparse")
    )
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("emit_sum", [False, True])
def test_the_fused_primitive_emits_its_sums(platform, emit_sum):
    x, _, values, indices = map(jnp.asarray, integers(SMALL))
    bias = jnp.arange(SMALL.cols, dtype=jnp.float32)
    dense, sparse = (
        _primitives.spmm_fused(
            *(x, values, indices, bias),
            spec=SMALL.spec(highest=True, implementation=way),
            out_dtype=jnp.bfloat16,
            activation="relu",
            emit_sum=emit_sum,
        )
        for way in ("dense", "sparse")
    )
    assert len(dense) == 1 + emit_sum
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_empty_operands(platform):
    for problem in PROBLEMS:
        if problem.name in ("no_rows", "no_depth", "no_cols", "no_batch"):
            operands = integers(problem)
            for bias in (None, jnp.zeros(problem.cols)):
                y, *_ = three_products(problem, operands, bias=bias)
                assert y.shape == problem.shapes["dy"]
                assert not y.any()


# Transforms: what is asked for survives them.


def transforms():
    """Functions of (x, values) made of a product, by name."""

    def loss(f):
        return lambda x, values: jnp.sum(f(x, values) ** 2)

    def grad(f):
        return jax.grad(loss(f), (0, 1))

    def second(f):
        def inner(x, values):
            return sum(jnp.sum(g**2) for g in grad(f)(x, values))

        return jax.grad(inner, (0, 1))

    def jvp(f):
        return lambda x, values: jax.jvp(f, (x, values), (x, values))

    def transposed(f):
        def run(x, values):
            (dx,) = jax.linear_transpose(lambda x: f(x, values), x)(f(x, values))
            return dx

        return run

    return {
        "jit": jax.jit,
        "grad": grad,
        "jvp": jvp,
        "second": second,
        "forward over reverse": lambda f: jvp(grad(f)),
        "reverse over forward": lambda f: grad(lambda x, v: jvp(f)(x, v)[1]),
        "vmap of x": lambda f: jax.vmap(f, (0, None)),
        "vmap of w": lambda f: jax.vmap(f, (None, 0)),
        "vmap of both": lambda f: jax.vmap(f),
        "vmap of grad": lambda f: jax.vmap(grad(f)),
        "checkpoint": lambda f: grad(jax.checkpoint(f)),
        "linear_transpose": transposed,
        "scan": lambda f: (
            lambda x, v: jax.lax.scan(lambda c, v: (c, f(x[0], v)), 0, v)[1]
        ),
    }


MAPPED = {"vmap of x": (0,), "vmap of w": (1,), "vmap of both": (0, 1)}
MAPPED |= {"vmap of grad": (0, 1), "scan": (0, 1)}


def arguments(name):
    operands = integers(SMALL, 2)
    both = [jnp.asarray(operands.x), jnp.asarray(operands.values)]
    for i in MAPPED.get(name, ()):
        both[i] = jnp.stack([both[i], -both[i], 2 * both[i]])
    return both


@pytest.mark.parametrize("name", transforms())
def test_transforms_agree_and_stay_dense(platform, name):
    results = []
    for way in ("dense", "sparse"):
        function = transforms()[name](product(SMALL, integers(SMALL).indices, way))
        results.append(jax.tree.leaves(jax.jit(function)(*arguments(name))))
        text = jax.jit(function).lower(*arguments(name)).as_text()
        calls = set(re.findall(r"custom_call @jax_nm\.(\w+)\.v1", text))
        assert bool(calls - {_lowering.EXPAND}) == (way == "sparse")
        assert ("dot_general" in text) == (way == "dense")
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_a_batch_of_weights(platform):
    """With axes that broadcast, and in the transposed form."""
    problem = Problem("batch", (5,), 18, 10, SMALL.pattern, batch=(3,))
    operands = integers(problem)
    w = jax.tree.map(jnp.asarray, operands.weight(problem))
    x = jnp.stack([operands.x, -operands.x])
    xT = jnp.swapaxes(x, -1, -2)
    dense, sparse = (
        (
            jax_nm.spmm(x, w, implementation=way),
            jax_nm.spmm_fm(xT, w, implementation=way),
        )
        for way in ("dense", "sparse")
    )
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("target_platform", ["cpu", "cuda"])
def test_a_symbolic_batch_is_expanded_one_by_one(with_cuda, target_platform):
    """Dense weights of an unknown number never lie in memory together."""
    batch, rows = jax.export.symbolic_shape("batch, rows")
    problem = Problem("batch", (5,), 18, 10, SMALL.pattern, batch=(3,))
    operands = integers(problem)
    exported = jax.export.export(
        jax.jit(
            lambda x, values, indices: product(problem, indices)(x, values),
        ),
        platforms=(target_platform,),
        disabled_checks=jax_nm.export_disabled_checks(),
    )(
        SHAPE((batch, rows, problem.depth), jnp.float32),
        SHAPE((batch, problem.kept, problem.cols), jnp.float32),
        SHAPE((batch, problem.groups, problem.kept), jnp.uint8),
    )
    text = exported.mlir_module()
    assert "stablehlo.while" in text
    assert f"tensor<?x{problem.depth}x{problem.cols}xf32>" not in text
    assert f"tensor<{problem.depth}x{problem.cols}xf32>" in text
    if target_platform == "cpu":
        with jax.default_device(jax.devices("cpu")[0]):
            y = jax.jit(exported.call)(*operands.of("spmm"))
        exact = oracle.compute("spmm", problem, *operands.of("spmm"))
        np.testing.assert_array_equal(y, exact.astype(np.float32), strict=True)


def test_export_for_several_platforms(monkeypatch):
    """Without the CUDA kernels no custom call, so none to be excused."""
    monkeypatch.setattr(_lowering, "cuda_module", lambda: None)
    (rows,) = jax.export.symbolic_shape("rows")
    operands = integers(SMALL)
    exported = jax.export.export(
        jax.jit(product(SMALL, operands.indices)), platforms=("cpu", "cuda", "tpu")
    )(SHAPE((rows, SMALL.depth), jnp.float32), jnp.asarray(operands.values))
    assert "jax_nm." not in exported.mlir_module()
    with jax.default_device(jax.devices("cpu")[0]):
        y = exported.call(operands.x, operands.values)
    exact = oracle.compute("spmm", SMALL, *operands.of("spmm"))
    np.testing.assert_array_equal(y, exact.astype(np.float32), strict=True)


def test_no_dense_weight_waits_for_the_backward_pass():
    """XLA finds no subexpression that the two expansions have in common."""
    operands = integers(SMALL)

    def run(x, values, dy):
        y, pull = jax.vjp(product(SMALL, operands.indices), x, values)
        return y, pull(dy)

    with jax.default_device(jax.devices("cpu")[0]):
        x, values, dy = map(jnp.asarray, (operands.x, operands.values, operands.dy))
        text = jax.jit(run).lower(x, values, dy).compile().as_text()
    # Of the weight twice, and of its gradient.
    assert len(re.findall(r" gather\(", text)) == 3


# The name of a kernel.


def bound_implementations(function, *operands) -> dict[str, list]:
    """What each bind of a primitive asks for, by the primitive."""
    found = {}

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive in _primitives.PRIMITIVES:
                asked = eqn.params["spec"].implementation
                found.setdefault(eqn.primitive.name, []).append(asked)
            for parameter in jax.tree.leaves(
                eqn.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
            ):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    visit(inner)

    visit(jax.make_jaxpr(function)(*operands).jaxpr)
    return found


@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}], ids=str)
@pytest.mark.parametrize("name", [n for n in transforms() if n != "linear_transpose"])
def test_a_name_holds_for_the_product_alone(name, options):
    call = product(SMALL, integers(SMALL).indices, NAME, **options)
    found = bound_implementations(transforms()[name](call), *arguments(name))
    forward = "nm_spmm_fused" if options else "nm_spmm"
    asked = [each for bound in found.values() for each in bound]
    assert NAME in found[forward]
    assert set(asked) <= {NAME, None}
    for primitive in set(found) - {forward}:
        assert set(found[primitive]) == {None}
    if name in ("jit", "vmap of x", "vmap of w", "vmap of both", "scan"):
        assert asked == [NAME]
    else:
        # A checkpoint computes the sums again. Whatever else there is, it is not the
        # product: forward mode and second derivatives bind `spmm` too.
        again = name == "checkpoint" and "activation" in options
        assert asked.count(NAME) == 1 + again


@pytest.mark.parametrize("asked", ["sparse", "dense"])
@pytest.mark.parametrize("name", transforms())
def test_what_is_no_name_holds_for_derivatives_too(name, asked):
    call = product(SMALL, integers(SMALL).indices, asked)
    found = bound_implementations(transforms()[name](call), *arguments(name))
    assert {each for bound in found.values() for each in bound} == {asked}


def test_a_transposed_product_has_no_name():
    call = product(SMALL, integers(SMALL).indices, NAME)
    x, values = arguments("jit")
    y = jax.eval_shape(call, x, values)
    transposed = jax.linear_transpose(lambda x: call(x, values), x)
    assert bound_implementations(transposed, y) == {"nm_spmm_t": [None]}


def test_the_straight_through_product_takes_it_too():
    kernel = jnp.ones((SMALL.depth, SMALL.cols))
    indices = jnp.asarray(integers(SMALL).indices)

    def call(implementation):
        return lambda x: jax_nm.spmm_ste(
            x, kernel, indices, SMALL.pattern, implementation=implementation
        )

    x = jnp.ones((5, SMALL.depth))
    for asked, of_x in ((NAME, None), ("sparse", "sparse"), ("dense", "dense")):
        jvp = bound_implementations(lambda x: jax.jvp(call(asked), (x,), (x,)), x)  # noqa: B023
        assert sorted(jvp["nm_spmm"], key=str) == sorted([asked, of_x], key=str)


def lowered(
    rows, implementation, *, dtype="bfloat16", length=128, cols=4096, **options
):
    """The custom calls of a product and its gradients for CUDA: (target, kernel id)."""
    problem = Problem("lowered", (rows,), 4096, cols, Pattern(8, 32, length), dtype)
    shapes = {name: SHAPE(shape, dtype) for name, shape in problem.shapes.items()}

    def run(x, values, indices, dy):
        call = product(problem, indices, implementation, **options)
        y, pull = jax.vjp(call, x, values)
        return y, pull(dy)

    operands = [
        shapes["x"],
        shapes["values"],
        SHAPE(problem.shapes["indices"], "uint8"),
    ]
    with jax.default_matmul_precision("default"):
        traced = jax.jit(run).trace(*operands, shapes["dy"])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return re.findall(r"custom_call @(jax_nm\.\w+)\.v1\(.*kernel = (\d+) : i32", text)


@pytest.mark.parametrize("arch", [0, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_is_an_attribute_of_the_call(monkeypatch, with_cuda, name, arch):
    monkeypatch.setattr(_lowering, "local_arch", lambda: arch)
    rows = 16 if "skinny" in name else 4096
    float32 = any(family in name for family in ("ffma", "split", "tf32"))
    dtype = "float32" if float32 else "bfloat16"
    calls = dict(lowered(rows, name, dtype=dtype))
    assert calls == {
        "jax_nm.spmm": str(KERNELS[name]),
        "jax_nm.spmm_t": "0",
        "jax_nm.sddmm": "0",
    }
    fused = dict(lowered(rows, name, dtype=dtype, activation="silu"))
    assert fused["jax_nm.spmm_fused"] == str(KERNELS[name])


HOPPER = "spmm_hopper_256x128"


@pytest.mark.parametrize(
    ("arch", "name", "options", "reason"),
    [
        (80, HOPPER, {}, r"needs a device of compute capability 9\.0 .* got sm_80"),
        (90, HOPPER, {"dtype": "float32"}, "needs bfloat16 or float16 operands"),
        (90, HOPPER, {"length": 32}, "needs a vector_length that is .* got 32"),
        (90, "spmm_128x128_gather", {"length": 5}, "gathering needs .* got 5"),
    ],
    ids=str,
)
def test_a_kernel_that_is_not_legal(
    monkeypatch, with_cuda, arch, name, options, reason
):
    monkeypatch.setattr(_lowering, "local_arch", lambda: arch)
    message = f"spmm: implementation='{name}' cannot compute this product: {reason}"
    with pytest.raises(ValueError, match=f"{message}.*; leave implementation at None"):
        lowered(**{"rows": 4096, "implementation": name} | options)
    options = {"rows": 4096, "dtype": "bfloat16", "length": 128} | options
    shape = (options["rows"], 4096)
    pattern = Pattern(8, 32, options["length"])
    w = jax.eval_shape(
        lambda kernel: jax_nm.compress(kernel, pattern),
        SHAPE((4096, 4096), options["dtype"]),
    )
    with pytest.raises(ValueError, match=message):
        jax_nm.explain(
            SHAPE(shape, options["dtype"]), w, arch=arch, implementation=name
        )


def test_of_symbolic_rows_the_handler_judges(with_cuda):
    (rows,) = jax.export.symbolic_shape("rows")
    operands = integers(SMALL)
    traced = jax.jit(product(SMALL, operands.indices, NAME)).trace(
        SHAPE((rows, SMALL.depth), jnp.float32), jnp.asarray(operands.values)
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert f"kernel = {KERNELS[NAME]} : i32" in text
    plan = jax_nm.explain(
        SHAPE((rows, SMALL.depth), jnp.float32),
        operands.weight(SMALL),
        arch=90,
        implementation=NAME,
    )
    assert plan.kernel == NAME


@pytest.mark.parametrize("target_platform", ["cpu", "tpu"])
def test_a_cuda_kernel_on_another_platform(with_cuda, target_platform):
    operands = integers(SMALL)
    call = jax.jit(product(SMALL, operands.indices, NAME))
    traced = call.trace(jnp.asarray(operands.x), jnp.asarray(operands.values))
    with pytest.raises(ValueError, match=f"'{NAME}' is a CUDA kernel, but .*; leave"):
        traced.lower(lowering_platforms=(target_platform,))


def test_a_cuda_kernel_without_cuda_kernels(monkeypatch):
    monkeypatch.setattr(_lowering, "_warn_no_cuda", lambda: None)
    monkeypatch.setattr(_lowering, "cuda_module", lambda: None)
    with pytest.raises(ValueError, match=r"needs the CUDA kernels, .* reinstall"):
        lowered(4096, NAME)


# The plan.


def plan(dtype="float32", length=32, **options):
    pattern = Pattern(8, 32, length)
    w = jax.eval_shape(
        lambda kernel: jax_nm.compress(kernel, pattern), SHAPE((4096, 4096), dtype)
    )
    options = {"arch": 90, "precision": "default"} | options
    return jax_nm.explain(SHAPE((4096, 4096), dtype), w, **options)


def test_the_plan_says_when_dense_would_be_faster(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_tuning, "dense_us", lambda *_: 1.0)
        patch.setattr(_tuning, "dense_pays", lambda *_: True)
        check_plans_beside_a_faster_dense_product()
    # Where a sparse kernel is faster, there is nothing to say.
    fast = plan("bfloat16", 128, implementation="sparse")
    assert fast == plan("bfloat16", 128)
    assert "rules out" not in fast.why
    assert fast.predicted_us < fast.dense_us


def check_plans_beside_a_faster_dense_product():
    chosen = plan()
    assert chosen.kernel == chosen.implementation == "dense"
    assert "pass over the dense weight" in chosen.why
    ((kernel, _),) = chosen.rejected
    for asked in ("sparse", kernel):
        sparse = plan(implementation=asked)
        assert (sparse.kernel, sparse.implementation) == (kernel, "sparse")
        assert f"faster, which implementation='{asked}' rules out" in sparse.why
        assert sparse.predicted_us > sparse.dense_us == chosen.predicted_us
        assert f"{sparse.dense_us:.0f} us by way of a dense matrix" in repr(sparse)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("arch", [90, 80, "cpu"])
def test_the_plan_of_what_is_asked_for(op, arch):
    dense = plan("bfloat16", 128, op=op, arch=arch, implementation="dense")
    assert (dense.kernel, dense.implementation) == ("dense", "dense")
    assert "asked for by implementation='dense'" in repr(dense)
    sparse = plan("bfloat16", 128, op=op, arch=arch, implementation="sparse")
    assert sparse.implementation == "sparse"
    if arch != "cpu":
        assert dense.rejected[0][0] == sparse.kernel
        assert "us by estimate" in repr(dense)
        named = plan("bfloat16", 128, op=op, arch=arch, implementation=NAME)
        if op == "spmm":
            assert named.kernel == NAME
        else:
            assert named == plan("bfloat16", 128, op=op, arch=arch)
