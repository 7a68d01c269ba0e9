"""How operands cross the custom calls: layouts, padding, and what XLA makes of them."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from problems import Problem, integers

import jax_nm
from jax_nm import Pattern, _lowering, _tuning

pytestmark = pytest.mark.usefixtures("strict", "highest")

PATTERN = Pattern(2, 8, vector_length=8)
ROW_MAJOR, FEATURE_MAJOR = "[2, 1, 0]", "[1, 2, 0]"  # minor to major
X, Y, TRANSPOSED = 1, 2, 4  # bits of the layout code


def make(rows=6, dtype="float32", depth=24, cols=40):
    return Problem("layouts", (rows,), depth, cols, PATTERN, dtype)


class Call:
    """One custom call in a lowered program."""

    def __init__(self, text: str, op: str) -> None:
        (line,) = re.findall(rf"custom_call @jax_nm\.{op}\.v1\(.*", text)
        self.layout = int(re.search(r"layout = (\d+) : i32", line)[1])
        attributes, types = line.rsplit(" : (", 1)
        _, operands, results = re.split("operand_layouts|result_layouts", attributes)
        # With symbolic sizes, vectors that hold the results' shapes follow.
        self.operand_layouts = re.findall(r"dense<(.*?)>", operands)[:3]
        self.result_layouts = re.findall(r"dense<(.*?)>", results)
        operands, results = types.split("->")
        self.operands = re.findall(r"tensor<(.*?)>", operands)
        self.results = re.findall(r"tensor<(.*?)>", results)


def lowered(problem: Problem, platform: str, rows=None, **options) -> dict[str, Call]:
    """The calls of the product and of its gradient."""
    dtype = jnp.dtype(problem.dtype)
    rows = problem.rows if rows is None else rows
    w = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
        integers(problem).weight(problem),
    )

    def products(x, values, indices, dy):
        def product(x, values):
            traced = jax_nm.NMArray(values, indices, w.pattern, w.depth, w.cols)
            return jax_nm.spmm(x, traced, **options)

        y, vjp = jax.vjp(product, x, values)
        return y, vjp(dy)

    x = jax.ShapeDtypeStruct((rows, problem.depth), dtype)
    dy = jax.ShapeDtypeStruct((rows, problem.cols), dtype)
    traced = jax.jit(products).trace(x, w.values, w.indices, dy)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return {op: Call(text, op) for op in ("spmm", "spmm_t", "sddmm")}


@pytest.mark.parametrize("rows", [1, 64])
def test_few_rows_cross_row_major(with_cuda, rows):
    for call in lowered(make(rows), "cuda").values():
        assert call.layout == 0
        assert set(call.operand_layouts) == {ROW_MAJOR}
        assert call.result_layouts[0] == ROW_MAJOR


def check_feature_major(calls):
    for call in calls.values():
        assert call.layout == X | Y
    # Values-like operands and indices are always row-major.
    product = [FEATURE_MAJOR, ROW_MAJOR, ROW_MAJOR]
    for op in ("spmm", "spmm_t"):
        assert calls[op].operand_layouts == product
        assert calls[op].result_layouts == [FEATURE_MAJOR, "0"]
    assert calls["sddmm"].operand_layouts == [FEATURE_MAJOR, FEATURE_MAJOR, ROW_MAJOR]
    assert calls["sddmm"].result_layouts == [ROW_MAJOR, "0"]


@pytest.mark.parametrize("rows", [65, 4096])
def test_many_rows_cross_feature_major(with_cuda, rows):
    check_feature_major(lowered(make(rows), "cuda"))


def test_symbolic_rows_cross_feature_major(with_cuda):
    (rows,) = jax.export.symbolic_shape("rows")
    calls = lowered(make(), "cuda", rows)
    check_feature_major(calls)
    for call in calls.values():
        # Nothing is padded, and the workspace, whose size must be known, is empty.
        assert "x?x" in call.operands[0]
        assert call.results[1] == "0xui8"


@pytest.mark.parametrize(
    ("dtype", "vector_length", "result_layout", "values_cols"),
    [
        ("bfloat16", 128, None, 400),
        ("float16", 512, None, 400),
        ("bfloat16", 128, "row", 400),
        ("bfloat16", 8, None, 400),
        ("bfloat16", 12, None, 393),
        ("float32", 128, None, 393),
    ],
)
def test_values_of_odd_columns_are_padded_for_tensor_cores(
    monkeypatch, with_cuda, dtype, vector_length, result_layout, values_cols
):
    monkeypatch.setattr(_lowering, "local_arch", lambda: 80)
    pattern = Pattern(8, 32, vector_length=vector_length)
    problem = Problem("layouts", (128,), 96, 393, pattern, dtype)
    call = lowered(problem, "cuda", result_layout=result_layout)["spmm"]
    assert f"24x{values_cols}x" in call.operands[1]
    assert "128x393x" in call.results[0]


def test_values_of_odd_columns_are_padded_for_float32_on_hopper(monkeypatch, with_cuda):
    monkeypatch.setattr(_lowering, "local_arch", lambda: 90)
    problem = Problem("layouts", (128,), 96, 393, Pattern(8, 32), "float32")
    call = lowered(problem, "cuda")["spmm"]  # at HIGHEST, as everything here
    assert "24x400x" in call.operands[1]
    assert "128x393x" in call.results[0]


@pytest.fixture
def on_hopper(monkeypatch, with_cuda):
    monkeypatch.setattr(_lowering, "local_gpu", lambda: "NVIDIA H200")
    monkeypatch.setattr(_lowering, "local_arch", lambda: 90)


def in_tf32(vector_length=128, rows=4096, dtype="float32"):
    """Of 774 slots, which is no multiple of 4."""
    pattern = Pattern(6, 32, vector_length=vector_length)
    return Problem("layouts", (rows,), 4110, 1000, pattern, dtype)


def check_transposed(call: Call, rows="4096"):
    assert call.layout == X | Y | TRANSPOSED
    assert call.operands[:2] == [f"1x{rows}x4110xf32", "1x1000x776xf32"]
    assert call.operand_layouts == [FEATURE_MAJOR, ROW_MAJOR, ROW_MAJOR]
    assert call.results[0] == f"1x{rows}x1000xf32"


def test_values_are_transposed_for_tf32_on_hopper(on_hopper):
    calls = lowered(in_tf32(), "cuda", precision="default")
    check_transposed(calls["spmm"])
    for op in ("spmm_t", "sddmm"):
        assert calls[op].layout == X | Y
    assert calls["spmm_t"].operands[1] == "1x774x1000xf32"
    assert calls["sddmm"].results[0] == "1x774x1000xf32"


@pytest.mark.parametrize(
    "problem, precision",
    [
        (in_tf32(), "highest"),
        (in_tf32(dtype="bfloat16"), "default"),
        (in_tf32(vector_length=32), "default"),
        (in_tf32(rows=65), "default"),
        (in_tf32(rows=64), "default"),
    ],
)
def test_values_are_not_transposed_for_other_kernels(on_hopper, problem, precision):
    call = lowered(problem, "cuda", precision=precision)["spmm"]
    assert call.layout & TRANSPOSED == 0
    assert call.operands[1].startswith("1x774x1000x")


@pytest.mark.parametrize(
    "name, value",
    [
        ("local_gpu", None),  # there are none, or several kinds
        ("local_arch", 80),
        ("local_arch", 100),
        ("has_wgmma", False),
    ],
)
def test_values_are_not_transposed_for_other_gpus(on_hopper, monkeypatch, name, value):
    monkeypatch.setattr(_lowering, name, lambda: value)
    call = lowered(in_tf32(), "cuda", precision="default")["spmm"]
    assert call.layout == X | Y


def test_values_are_not_transposed_for_unknown_rows(on_hopper):
    (rows,) = jax.export.symbolic_shape("rows")
    call = lowered(in_tf32(), "cuda", rows, precision="default")["spmm"]
    assert call.layout == X | Y


def test_values_are_not_transposed_for_unknown_gpus(on_hopper):
    problem = in_tf32()
    w = integers(problem).weight(problem)

    @jax.jit
    def product(x):
        return jax_nm.spmm(x, w, precision="default")

    x = jax.ShapeDtypeStruct((problem.rows, problem.depth), jnp.float32)
    traced = product.trace(x).lower(lowering_platforms=("cuda",))
    check_transposed(Call(traced.as_text(), "spmm"))
    export = jax.export.export(
        product,
        platforms=("cuda",),
        disabled_checks=jax_nm.export_disabled_checks(),
    )
    assert Call(export(x).mlir_module(), "spmm").layout == X | Y


@pytest.mark.parametrize("rows", [68, 4096, None])
def test_a_kernel_that_is_asked_for_has_its_values_transposed(with_cuda, rows):
    """Whatever the GPU, which need not be there, and the number of rows."""
    options = dict(precision="default", implementation="spmm_tf32_128x128")
    if rows is None:
        (symbol,) = jax.export.symbolic_shape("rows")
        calls = lowered(in_tf32(), "cuda", symbol, **options)
        check_transposed(calls["spmm"], "?")
    else:
        calls = lowered(in_tf32(rows=rows), "cuda", **options)
        check_transposed(calls["spmm"], str(rows))
    assert calls["spmm_t"].layout == X | Y


@pytest.mark.parametrize("rows", [1, 65, 4096])
def test_the_cpu_takes_row_major(rows):
    for call in lowered(make(rows), "cpu").values():
        assert call.layout == 0
        assert set(call.operand_layouts) == {ROW_MAJOR}
        assert call.result_layouts == [ROW_MAJOR]


@pytest.mark.parametrize(
    ("platform_name", "rows", "result_layout", "code"),
    [
        ("cuda", 65, "row", X),
        ("cuda", 65, "feature", X | Y),
        ("cuda", 64, "row", 0),
        ("cuda", 64, "feature", Y),
        ("cpu", 65, "row", 0),
        ("cpu", 65, "feature", Y),
    ],
)
def test_result_layout(with_cuda, platform_name, rows, result_layout, code):
    calls = lowered(make(rows), platform_name, result_layout=result_layout)
    call = calls["spmm"]
    assert call.layout == code
    assert call.operand_layouts[0] == (FEATURE_MAJOR if code & X else ROW_MAJOR)
    assert call.result_layouts[0] == (FEATURE_MAJOR if code & Y else ROW_MAJOR)


@pytest.mark.parametrize(
    ("rows", "dtype", "padded"),
    [
        (64, "float32", 64),
        (65, "float32", 96),
        (68, "float32", 68),
        (65, "bfloat16", 128),
        (66, "float16", 128),
        (72, "bfloat16", 72),
        (7, "float32", 7),  # row-major: rows are not contiguous
        (7, "bfloat16", 7),
    ],
)
def test_rows_that_are_not_aligned_are_padded_to_128_bytes(
    with_cuda, rows, dtype, padded
):
    problem = make(rows, dtype)
    calls = lowered(problem, "cuda")
    element = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
    x = f"1x{padded}x{problem.depth}x{element}"
    y = f"1x{padded}x{problem.cols}x{element}"
    assert (calls["spmm"].operands[0], calls["spmm"].results[0]) == (x, y)
    assert (calls["spmm_t"].operands[0], calls["spmm_t"].results[0]) == (y, x)
    assert calls["sddmm"].operands[:2] == [x, y]


def test_the_cpu_is_given_no_padding_and_no_workspace():
    for call in lowered(make(65), "cpu").values():
        assert call.operands[0].startswith("1x65x")
        assert len(call.results) == 1


def test_the_workspace_is_what_the_tuning_function_asks_for(with_cuda):
    problem = make(128, depth=4096)
    spec = problem.spec(highest=True)
    f32 = np.dtype("float32")
    for op, call in lowered(problem, "cuda").items():
        size = _tuning.workspace_bytes(
            *_lowering.problem_arguments(
                op, f32, f32, 1, problem.rows, problem.cols, spec, True, True
            )
        )
        assert call.results[1] == f"{size}xui8"


# What XLA compiles.


def chain(count: int, between):
    """Square layers with a function between them, their weights, and an input."""
    rng = np.random.default_rng(count)
    pattern = Pattern(8, 32, vector_length=32)
    x, *kernels = rng.integers(-3, 4, (1 + count, 256, 256)).astype(np.float32)
    weights = [jax_nm.compress(kernel, pattern) for kernel in kernels]

    def run(x, weights):
        for i, w in enumerate(weights):
            x = jax_nm.spmm(x if i == 0 else between(x), w)
        return x

    return run, weights, x


def test_nothing_is_transposed_between_two_calls(platform):
    """At the boundary of the program lie the layouts that the calls themselves want."""
    run, weights, x = chain(2, jax.nn.gelu)
    order = (1, 0) if platform == "cuda" else (0, 1)
    device = jax.sharding.SingleDeviceSharding(jax.devices(platform)[0])
    layout = Format(Layout(order), device)
    jitted = jax.jit(run, in_shardings=(layout, device), out_shardings=layout)
    x = jax.ShapeDtypeStruct(x.shape, x.dtype)
    text = jitted.lower(x, weights).compile().as_text()
    targets = re.findall(r'custom_call_target="([^"]*)"', text)
    assert targets == [_lowering.target_name("spmm")] * 2
    assert not re.findall(r"= \S+ (?:transpose|copy)\(.*", text)


def test_a_chain_of_calls_is_right_whenever_it_is_run(platform):
    """On a GPU six calls are captured in a command buffer and replayed on new data."""
    run, weights, x = chain(6, lambda y: jnp.clip(y, -3, 3))
    kernels = [np.asarray(w.todense()) for w in weights]
    jitted = jax.jit(run)
    for _ in range(4):
        x = np.roll(x, 1, axis=0)
        y = x @ kernels[0]
        for kernel in kernels[1:]:
            y = np.clip(y, -3, 3) @ kernel
        np.testing.assert_array_equal(jitted(x, weights), y)
