"""Export, ahead-of-time compilation, and what a lowered program holds."""

from __future__ import annotations

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from problems import Problem, integers

import jax_nm
from jax_nm import NMArray, Pattern, _cpu, _lowering

pytestmark = pytest.mark.usefixtures("strict", "highest")

PROBLEM = Problem("export", (6,), 18, 10, Pattern(4, 8, vector_length=4))
PLATFORMS = ("cpu", "cuda", "tpu")
OPERANDS = integers(PROBLEM)
W = OPERANDS.weight(PROBLEM)


def y_and_gradients(x, values, dy):
    """All three products in one program."""

    def product(x, values):
        return jax_nm.spmm(x, NMArray(values, W.indices, W.pattern, W.depth, W.cols))

    y, vjp = jax.vjp(product, x, values)
    return y, *vjp(dy)


def expected():
    return [
        oracle.compute(op, PROBLEM, *OPERANDS.of(op)).astype(np.float32)
        for op in ("spmm", "spmm_t", "sddmm")
    ]


def check(function):
    results = function(OPERANDS.x, OPERANDS.values, OPERANDS.dy)
    for out, exact in zip(results, expected(), strict=True):
        np.testing.assert_array_equal(out, exact, strict=True)


def export(**options):
    """The exported program, of any number of rows."""
    (rows,) = jax.export.symbolic_shape("rows")
    arguments = (
        jax.ShapeDtypeStruct((rows, PROBLEM.depth), jnp.float32),
        jax.ShapeDtypeStruct(PROBLEM.shapes["values"], jnp.float32),
        jax.ShapeDtypeStruct((rows, PROBLEM.cols), jnp.float32),
    )
    exporter = jax.export.export(
        jax.jit(y_and_gradients), platforms=PLATFORMS, **options
    )
    return exporter(*arguments)


def test_multi_platform_export_with_symbolic_rows(with_cuda):
    exported = export(disabled_checks=jax_nm.export_disabled_checks())
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    for op in ("spmm", "spmm_t", "sddmm"):
        # One call for the CPU and one for CUDA; TPU runs plain XLA operations.
        assert len(re.findall(rf"@jax_nm\.{op}\.v1\b", text)) == 2
    loaded = jax.export.deserialize(exported.serialize())
    with jax.default_device(jax.devices("cpu")[0]):
        check(jax.jit(loaded.call))


def test_symbolic_leading_axes_broadcast_against_a_batched_weight():
    problem = Problem("export", (6,), 18, 10, PROBLEM.pattern, batch=(3,))
    operands = integers(problem)
    w = operands.weight(problem)
    lead, rows = jax.export.symbolic_shape("lead, rows")
    exported = jax.export.export(
        jax.jit(lambda x: jax_nm.spmm(x, w)),
        platforms=("cpu",),
        disabled_checks=jax_nm.export_disabled_checks(),
    )(jax.ShapeDtypeStruct((lead, 3, rows, problem.depth), jnp.float32))
    exact = oracle.compute("spmm", problem, *operands.of("spmm")).astype(np.float32)
    with jax.default_device(jax.devices("cpu")[0]):
        y = exported.call(np.stack([operands.x, -operands.x]))
    np.testing.assert_array_equal(y, np.stack([exact, -exact]), strict=True)


def test_a_fused_product_with_symbolic_rows(with_cuda):
    bias = PROBLEM.rng("bias").integers(-9, 10, PROBLEM.cols).astype(np.float32)

    def y_and_gradient(x):
        return jax.value_and_grad(
            lambda x: jnp.sum(jax_nm.spmm(x, W, bias, "relu") ** 2)
        )(x)

    (rows,) = jax.export.symbolic_shape("rows")
    exported = jax.export.export(
        jax.jit(y_and_gradient),
        platforms=PLATFORMS,
        disabled_checks=jax_nm.export_disabled_checks(),
    )(jax.ShapeDtypeStruct((rows, PROBLEM.depth), jnp.float32))
    # One kernel on CUDA; on the CPU XLA does what follows the product.
    text = exported.mlir_module()
    for target, count in (("spmm_fused", 1), ("spmm", 1), ("spmm_t", 2)):
        assert len(re.findall(rf"@jax_nm\.{target}\.v1\b", text)) == count
    sums = oracle.compute("spmm", PROBLEM, *OPERANDS.of("spmm")) + bias
    y = np.maximum(sums, 0)
    dx = oracle.compute("spmm_t", PROBLEM, 2 * y, OPERANDS.values, OPERANDS.indices)
    loaded = jax.export.deserialize(exported.serialize())
    with jax.default_device(jax.devices("cpu")[0]):
        loss, gradient = jax.jit(loaded.call)(OPERANDS.x)
    assert loss == np.sum(y**2)
    np.testing.assert_array_equal(gradient, dx.astype(np.float32), strict=True)


def test_export_by_way_of_dense(with_cuda):
    """On every platform; on CUDA with the kernel that expands the weight."""
    exported = jax.export.export(
        jax.jit(lambda x: jax_nm.spmm(x, W, implementation="dense")),
        platforms=PLATFORMS,
        disabled_checks=jax_nm.export_disabled_checks(),
    )(jax.ShapeDtypeStruct((*jax.export.symbolic_shape("rows"), 18), jnp.float32))
    text = exported.mlir_module()
    assert re.findall(r"custom_call @jax_nm\.(\w+)\.v1", text) == ["expand"]
    loaded = jax.export.deserialize(exported.serialize())
    with jax.default_device(jax.devices("cpu")[0]):
        y = jax.jit(loaded.call)(OPERANDS.x)
    np.testing.assert_array_equal(y, expected()[0], strict=True)


def test_export_without_the_disabled_checks_is_refused(with_cuda):
    with pytest.raises(ValueError, match=r"jax_nm\.spmm"):
        export()


def test_ahead_of_time_compilation(platform):
    arguments = (OPERANDS.x, OPERANDS.values, OPERANDS.dy)
    check(jax.jit(y_and_gradients).lower(*arguments).compile())


def lowered_text(platform: str) -> str:
    # A new function each time: JAX caches what it has lowered.
    function = jax.jit(lambda *operands: y_and_gradients(*operands))
    traced = function.trace(OPERANDS.x, OPERANDS.values, OPERANDS.dy)
    return traced.lower(lowering_platforms=(platform,)).as_text()


ATTRIBUTES = {
    "n": 4,
    "m": 8,
    "vector_length": 4,
    "layout": 0,
    "flags": 0,  # no TF32 under HIGHEST
    "kernel": 0,
    "arch": 0,
}


@pytest.mark.parametrize("target_platform", ["cpu", "cuda"])
def test_lowered_program_names_targets_and_attributes(with_cuda, target_platform):
    """The persistent cache keys on these, not on the binary behind the name."""
    text = lowered_text(target_platform)
    for op in ("spmm", "spmm_t", "sddmm"):
        (call,) = re.findall(rf"custom_call @jax_nm\.{op}\.v1\(.*", text)
        (config,) = re.findall(r"backend_config = \{(.*?)\}", call)
        attributes = dict(re.findall(r"(\w+) = (-?\d+) : i32", config))
        assert {name: int(value) for name, value in attributes.items()} == ATTRIBUTES


def test_registered_targets_are_those_that_are_lowered():
    names = {_lowering.target_name(op) for op in ("spmm", "spmm_t", "sddmm")}
    assert set(_cpu.registrations()) == names


def test_precision_is_an_attribute(with_cuda):
    with jax.default_matmul_precision("default"):
        assert len(re.findall(r"flags = 1 : i32", lowered_text("cuda"))) == 3


def test_platforms_without_kernels_run_plain_operations():
    assert "custom_call" not in lowered_text("tpu")


def test_a_build_without_cuda_kernels_warns_once_and_runs(monkeypatch):
    monkeypatch.setattr(_lowering, "cuda_module", lambda: None)
    _lowering._warn_no_cuda.cache_clear()
    with pytest.warns(UserWarning, match="built without its CUDA kernels"):
        text = lowered_text("cuda")
    assert "jax_nm." not in text
    lowered_text("cuda")  # a second warning would be an error
