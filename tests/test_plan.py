"""`explain`: the plan that it prints is that of the call which is lowered."""

from __future__ import annotations

import itertools
import types

import jax
import jax.numpy as jnp
import pytest
from problems import cuda_stub

import jax_nm
from jax_nm import Pattern, Plan, _cpu, _lowering, _tuning

OPS = ("spmm", "spmm_t", "sddmm")
DEPTH, COLS = 96, 64
PATTERN = Pattern(8, 32, vector_length=32)
SHAPE = jax.ShapeDtypeStruct


def weight(dtype="float32", *batch):
    kernel = SHAPE((*batch, DEPTH, COLS), jnp.dtype(dtype))
    return jax.eval_shape(lambda kernel: jax_nm.compress(kernel, PATTERN), kernel)


def x_like(*shape, dtype="float32"):
    return SHAPE((*shape, DEPTH), jnp.dtype(dtype))


def lowered_problems(monkeypatch, x, w, **options) -> dict:
    """What the lowering for CUDA says of the product and its gradient, by operation.

    The product is lowered alone: differentiated, a fused one has another result.
    """
    monkeypatch.setattr(_lowering, "cuda_module", cuda_stub)
    monkeypatch.setattr(_lowering, "dense_pays", lambda *_: False)
    seen = {}

    def workspace_bytes(op, *arguments):
        seen[op] = arguments
        return 0

    monkeypatch.setattr(_tuning, "workspace_bytes", workspace_bytes)

    def product(x, values, indices):
        traced = jax_nm.NMArray(values, indices, w.pattern, w.depth, w.cols)
        return jax_nm.spmm(x, traced, **options)

    def gradients(x, values, indices):
        y, vjp = jax.vjp(lambda x, values: product(x, values, indices), x, values)
        return vjp(y)

    for function in (gradients, product):
        traced = jax.jit(function).trace(x, w.values, w.indices)
        traced.lower(lowering_platforms=("cuda",))
    return seen


ARCH = -5  # in the arguments of the tuning functions

CALLS = {
    "plain": {},
    "wide_result": {"preferred_element_type": jnp.float32},
    "activation": {"activation": "gelu"},
    "bias": {"bias": jnp.ones(COLS)},
    "bias_and_activation": {"bias": jnp.ones(COLS), "activation": "silu"},
    "wide_fused": {"activation": "relu", "preferred_element_type": jnp.float32},
    "unfused": {"bias": jnp.ones(COLS), "activation": jnp.tanh},
    "result_layout": {"result_layout": "row"},
}


@pytest.mark.parametrize("precision", ["default", "highest"])
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "batch"),
    [((7,), ()), ((65,), ()), ((3, 43), ()), ((2, 70), (2,)), ((3, 2, 70), (2,))],
    ids=str,
)
def test_explain_plans_the_call_that_is_lowered(
    monkeypatch, shape, batch, dtype, options, precision
):
    x, w = x_like(*shape, dtype=dtype), weight(dtype, *batch)
    options = {**options, "precision": precision}
    expected = lowered_problems(monkeypatch, x, w, **options)
    assert set(expected) == set(OPS)
    for op in OPS:
        planned = []

        def choose(op, *arguments, planned=planned):
            *arguments, wgmma = arguments
            assert wgmma
            planned.append(tuple(arguments))
            return {"kernel": "k", "config": {}, "why": "because"}

        monkeypatch.setattr(_tuning, "choose", choose)
        jax_nm.explain(x, w, op=op, arch=90, **options)
        # The architecture, in front of the epilogue and of how values lie, is left to
        # the device.
        assert planned == [(*expected[op][:ARCH], 90, *expected[op][ARCH + 1 :])]
        assert expected[op][ARCH] == 0


def test_the_plan_of_a_product_with_transposed_values():
    pattern = jax_nm.Pattern(8, 32, vector_length=128)
    x = SHAPE((1024, 4096), jnp.float32)
    w = jax.eval_shape(
        lambda kernel: jax_nm.compress(kernel, pattern), SHAPE((4096, 4096), x.dtype)
    )
    plan = jax_nm.explain(x, w, arch=90, precision="default")
    assert plan.kernel == "spmm_tf32_256x128"
    assert "transposed values" in plan.problem
    name = "spmm_tf32_128x128"
    plan = jax_nm.explain(x, w, arch=90, precision="default", implementation=name)
    assert plan.kernel == name
    assert "transposed values" in plan.problem
    for options in ({"precision": "highest"}, {"arch": 100}):
        plan = jax_nm.explain(x, w, **{"arch": 90, "precision": "default"} | options)
        assert "transposed values" not in plan.problem


@pytest.mark.parametrize("op", OPS)
def test_the_plan_of_the_cpu(op):
    plan = jax_nm.explain(x_like(20), weight(), op=op, arch="cpu")
    arguments = (op, "float32", "float32", 1, 20, DEPTH, COLS, 8, 32, 32, False, False)
    choice = _cpu.plan(*arguments)
    assert (plan.op, plan.platform, plan.arch) == (op, "cpu", _cpu.isa())
    assert (plan.kernel, dict(plan.config)) == (choice["kernel"], choice["config"])
    first, *rest = repr(plan).splitlines()
    assert first == f"Plan: {op} on cpu ({_cpu.isa()})"
    for text in ("rows 20, depth 96, cols 64, pattern 8:32:32", plan.kernel, plan.why):
        assert any(text in line for line in rest)


@pytest.mark.parametrize(
    ("op", "arch"), list(itertools.product(OPS, (80, 90, "sm_100", "12.0")))
)
def test_the_plan_of_another_machine(op, arch):
    # So small a product may also go by way of a dense matrix.
    options = dict(op=op, arch=arch, implementation="sparse")
    plan = jax_nm.explain(x_like(256), weight(), **options)
    assert plan.platform == "cuda"
    assert plan.kernel in _tuning.kernels()
    assert plan.config
    assert plan.rejected
    for name, reason in plan.rejected:
        assert f"not      {name}: {reason}" in repr(plan)


def test_a_plan_is_a_value():
    plans = [jax_nm.explain(x_like(rows), weight(), arch=90) for rows in (8, 8, 9)]
    assert all(isinstance(plan, Plan) for plan in plans)
    assert plans[0] == plans[1] != plans[2]
    assert hash(plans[0]) == hash(plans[1])


def test_arrays_shapes_and_tracers_have_one_plan():
    x = jnp.ones((20, DEPTH))
    w = jax_nm.compress(jnp.ones((DEPTH, COLS)), PATTERN)
    plans = [jax_nm.explain(x, w), jax_nm.explain(x_like(20), weight())]
    jax.jit(lambda x, w: plans.append(jax_nm.explain(x, w))).trace(x, w)
    assert plans[0] == plans[1] == plans[2]


def test_the_default_device_decides():
    with jax.default_device(jax.devices("cpu")[0]):
        assert jax_nm.explain(x_like(20), weight()).platform == "cpu"


def test_a_gpu_without_kernels_runs_plain_operations(monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [gpu])
    monkeypatch.setattr(_lowering, "cuda_module", lambda: None)
    plan = jax_nm.explain(x_like(20), weight())
    assert (plan.platform, plan.kernel) == ("cuda", "xla_reference")
    assert "built without its CUDA kernels" in plan.why
    cuda = types.SimpleNamespace(has_wgmma=lambda: True)
    monkeypatch.setattr(_lowering, "cuda_module", lambda: cuda)
    plan = jax_nm.explain(x_like(20), weight())
    assert plan == jax_nm.explain(x_like(20), weight(), arch=90)


@pytest.mark.parametrize("arch", ["cpu", 90])
@pytest.mark.parametrize("shape", [(0,), (3, 0)], ids=str)
def test_an_empty_product_calls_no_kernel(shape, arch):
    plan = jax_nm.explain(x_like(*shape), weight(), arch=arch)
    assert plan.kernel == "zeros"
    assert "no kernel is called" in repr(plan)


def test_float64_has_no_cuda_kernels():
    with jax.enable_x64(True):
        x, w = x_like(20, dtype="float64"), weight("float64")
        assert jax_nm.explain(x, w, arch=90).kernel == "xla_reference"
        assert "float64 -> float64" in jax_nm.explain(x, w, arch="cpu").problem


def test_symbolic_rows():
    (rows,) = jax.export.symbolic_shape("rows")
    for arch in ("cpu", 90):
        plan = jax_nm.explain(x_like(rows), weight(), arch=arch)
        assert plan.kernel == "chosen at run time"
        assert "rows is symbolic" in plan.why


def test_a_fused_product_is_named():
    x, w = x_like(256, dtype="bfloat16"), weight("bfloat16")
    bias = SHAPE((COLS,), jnp.float32)

    def problem(**options):
        return jax_nm.explain(x, w, **options).problem

    layouts = ", feature-major x, feature-major y"
    fused = {"bias": bias, "activation": "gelu", "arch": 90}
    assert problem(**fused).endswith(f"bfloat16 -> bfloat16{layouts}, bias, gelu")
    assert problem(bias=bias, arch=80).endswith(f"bfloat16 -> bfloat16{layouts}, bias")
    named = problem(activation=jax.nn.silu, arch=80)
    assert named.endswith(f"bfloat16 -> bfloat16{layouts}, silu")
    # The rest is done by XLA, on the sum in float32.
    for options in (
        {"activation": jnp.tanh, "arch": 90},
        {"activation": "gelu", "op": "spmm_t", "arch": 90},
        {"bias": bias, "activation": "gelu", "arch": "cpu"},
    ):
        plan = problem(**options)
        assert "bias" not in plan and "gelu" not in plan
        assert ("-> float32" in plan) == (options.get("op") is None)


def test_a_bias_of_each_row_is_not_fused():
    w = weight("bfloat16", 1)
    x = x_like(2, 256, dtype="bfloat16")
    for shape, fused in (((COLS,), True), ((1, COLS), True), ((2, COLS), False)):
        plan = jax_nm.explain(x, w, bias=SHAPE(shape, jnp.float32), arch=90)
        assert (", bias" in plan.problem) == fused
