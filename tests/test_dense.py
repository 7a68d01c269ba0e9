"""The products by way of a dense matrix, and when they go that way."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from problems import OPS, PROBLEMS, cuda_stub, integers, is_padding

import jax_nm
from jax_nm import Pattern, _dense, _lowering, _tuning

pytestmark = pytest.mark.usefixtures("strict")

SHAPE = jax.ShapeDtypeStruct
NOT_EMPTY = [
    p
    for p in PROBLEMS
    if p.dtype == "float32" and min(*p.batch, p.rows, p.depth, p.cols, 1) > 0
]
every_problem = pytest.mark.parametrize("problem", NOT_EMPTY, ids=str)


def by_way_of_dense(op, problem, operands):
    """As the lowering calls it: matrices of rank 3, the batch axes merged."""
    batch = int(np.prod(problem.batch))
    first, second, indices = map(jnp.asarray, operands)
    fun = functools.partial(
        getattr(_dense, op),
        pattern=problem.pattern,
        depth=problem.depth,
        precision=jax.lax.Precision.HIGHEST,
    )
    second_rows = problem.rows if op == "sddmm" else problem.kept
    return jax.jit(jax.vmap(fun))(
        first.reshape(batch, problem.rows, -1).astype(jnp.float32),
        second.reshape(batch, second_rows, problem.cols).astype(jnp.float32),
        indices.reshape(batch, problem.groups, problem.kept),
    )


@pytest.mark.parametrize("op", OPS)
@every_problem
def test_integers_are_exact(problem, op):
    operands = integers(problem).of(op)
    exact = oracle.compute(op, problem, *operands)
    out = by_way_of_dense(op, problem, operands)
    np.testing.assert_array_equal(np.asarray(out).reshape(exact.shape), exact)


@every_problem
def test_expand_is_the_dense_weight(problem):
    operands = integers(problem)
    values = np.array(operands.values)
    padding = is_padding(problem)
    values[..., padding, :] = np.nan  # what padding slots hold is not read
    batch = int(np.prod(problem.batch))
    expand = functools.partial(
        _dense.expand, pattern=problem.pattern, depth=problem.depth
    )
    dense = jax.vmap(expand)(
        jnp.asarray(values).reshape(batch, problem.kept, problem.cols),
        jnp.asarray(operands.indices).reshape(batch, problem.groups, problem.kept),
    )
    exact = oracle.dense(problem, operands.values, operands.indices)
    np.testing.assert_array_equal(
        np.asarray(dense).astype(np.float64).reshape(exact.shape),
        exact.astype(np.float64),
    )


def test_any_index_byte_is_safe():
    pattern = Pattern(3, 8, vector_length=4)
    indices = jnp.full((2, pattern.kept(20)), 255, jnp.uint8)
    values = jnp.ones((pattern.kept(20), 8))
    dense = _dense.expand(values, indices, pattern=pattern, depth=20)
    # The last row of each window, and of the depth.
    np.testing.assert_array_equal(np.flatnonzero(dense.all(1)), [7, 15, 19])
    assert np.count_nonzero(dense) == 3 * 8


def bits(array):
    """NaNs compare equal to themselves, and -0 differs from 0."""
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}")


def same_expansions(pattern, depth, values, *each_indices):
    """The kernel's and those of plain operations, bit by bit."""
    options = dict(pattern=pattern, depth=depth)
    plain = functools.partial(_dense.expand, **options)
    kernel = functools.partial(_lowering.expander("cuda"), **options)
    for _ in range(values.ndim - 2):
        plain, kernel = jax.vmap(plain), jax.vmap(kernel)
    plain, kernel = jax.jit(plain), jax.jit(kernel)
    for indices in map(jnp.asarray, each_indices):
        expected, got = plain(values, indices), kernel(values, indices)
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(bits(got), bits(expected))


@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if min(*p.batch, p.depth, p.cols, 1) > 0], ids=str
)
def test_the_kernel_expands_as_plain_operations_do(cuda, problem):
    """Of well-formed indices, with NaN in padding slots, and of any index bytes."""
    with problem.precision():
        operands = integers(problem)
        values = jnp.asarray(operands.values)
        noise = problem.rng("bytes").integers(0, 256, operands.indices.shape)
        each_indices = operands.indices, noise.astype(np.uint8)
        same_expansions(problem.pattern, problem.depth, values, *each_indices)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "n, m, length",
    [(2, 4, 1), (1, 2, 2), (100, 256, 4), (8, 32, 12), (16, 32, 32), (3, 7, 4096)],
)
@pytest.mark.parametrize("cols", [1024, 1020, 1018, 1017])
def test_the_kernel_expands_units_of_any_size(cuda, dtype, n, m, length, cols):
    """Rows and vectors of whole 16, 8, 4 and 2 bytes."""
    pattern, depth = Pattern(n, m, vector_length=length), 517
    rng = np.random.default_rng(length + cols)
    kept = pattern.kept(depth)
    values = jnp.asarray(rng.standard_normal((kept, cols)), dtype)
    indices = rng.integers(0, 256, (pattern.groups(cols), kept)).astype(np.uint8)
    same_expansions(pattern, depth, values, indices)


@pytest.mark.parametrize("many_bytes", [0, 1 << 30])
def test_the_kernel_expands_stacks_at_once_and_one_by_one(
    cuda, monkeypatch, many_bytes
):
    monkeypatch.setattr(_dense, "MANY_BYTES", many_bytes)
    (problem,) = (p for p in NOT_EMPTY if p.name == "batched")
    operands = integers(problem)

    def products(x, dy):
        w = operands.weight(problem)
        product = functools.partial(
            jax_nm.spmm, w=w, precision="highest", implementation="dense"
        )
        y, pull = jax.vjp(product, x)
        return y, *pull(dy)

    y, dx = jax.jit(products)(jnp.asarray(operands.x), jnp.asarray(operands.dy))
    for op, out in (("spmm", y), ("spmm_t", dx)):
        exact = oracle.compute(op, problem, *operands.of(op))
        np.testing.assert_array_equal(out, exact)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_a_weight_is_expanded_by_one_call(monkeypatch, batch):
    """Its batch in front of it, and the attributes that are its contract."""
    monkeypatch.setattr(_lowering, "cuda_module", cuda_stub)
    pattern = Pattern(4, 16, vector_length=8)
    kept, groups = pattern.kept(40), pattern.groups(36)
    w = jax_nm.NMArray(
        SHAPE((*batch, kept, 36), jnp.bfloat16),
        SHAPE((*batch, groups, kept), jnp.uint8),
        pattern,
        40,
        36,
    )

    def product(x, w):
        return jax_nm.spmm(x, w, implementation="dense")

    traced = jax.jit(product).trace(SHAPE((*batch, 70, 40), jnp.bfloat16), w)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    (call,) = re.findall(r"custom_call @jax_nm\.expand\.v1\(.*", text)
    count = int(np.prod(batch))
    assert f"-> tensor<{count}x40x36xbf16>" in call
    (config,) = re.findall(r"backend_config = \{(.*?)\}", call)
    attributes = dict(re.findall(r"(\w+) = (-?\d+) : i32", config))
    assert attributes == {"n": "4", "m": "16", "vector_length": "8"}
    # XLA chooses how x and y lie in memory.
    assert "transpose" not in text


def test_without_the_cuda_module_plain_operations_expand(monkeypatch):
    monkeypatch.setattr(_lowering, "cuda_module", lambda: None)
    assert _lowering.expander("cuda") is None
    assert _lowering.expander("cpu") is None
    monkeypatch.setattr(_lowering, "cuda_module", cuda_stub)
    assert _lowering.expander("cuda") is not None
    assert _lowering.expander(None) is None


def all_lowered(monkeypatch, dtype, rows, precision, arch, **options):
    """The text of a product and both its gradients, lowered for CUDA, and the plans."""
    monkeypatch.setattr(_lowering, "cuda_module", cuda_stub)
    monkeypatch.setattr(_lowering, "local_arch", lambda: arch)
    pattern = Pattern(8, 32, vector_length=128)
    w = jax.eval_shape(
        lambda kernel: jax_nm.compress(kernel, pattern), SHAPE((4096, 4096), dtype)
    )
    x = SHAPE((rows, 4096), jnp.dtype(dtype))

    def gradients(x, values, indices):
        def product(x, values):
            weight = jax_nm.NMArray(values, indices, pattern, 4096, 4096)
            return jax_nm.spmm(x, weight, precision=precision, **options)

        y, pull = jax.vjp(product, x, values)
        return y, pull(y)

    traced = jax.jit(gradients).trace(x, w.values, w.indices)
    plans = {
        op: jax_nm.explain(x, w, op, arch or 90, precision=precision, **options).kernel
        for op in OPS
    }
    return traced.lower(lowering_platforms=("cuda",)).as_text(), plans


def count_of_barriers(dense):
    """Before each expansion of the weight, and behind each product."""
    return len(dense) + len(dense - {"sddmm"})


@pytest.mark.parametrize(
    ("dtype", "rows", "precision", "arch", "dense"),
    [
        ("bfloat16", 4096, "default", 90, set()),
        ("bfloat16", 4096, "highest", 90, set()),
        ("float16", 4096, "default", 90, set()),
        ("float16", 4096, "highest", 90, set()),
        ("float16", 4096, "default", 80, {"spmm_t", "sddmm"}),
        ("float32", 4096, "default", 90, {"spmm_t"}),
        ("float32", 4096, "highest", 90, set()),
        ("float32", 16, "default", 90, {"spmm_t"}),
        # Of a GPU that is not there nothing is known.
        ("float32", 4096, "default", 0, set()),
    ],
)
def test_what_goes_by_way_of_dense(monkeypatch, dtype, rows, precision, arch, dense):
    """The gradients; of the forward product newer kernels may change the outcome."""
    pays = _tuning.dense_pays
    monkeypatch.setattr(
        _tuning, "dense_pays", lambda op, *rest: op != "spmm" and pays(op, *rest)
    )
    text, plans = all_lowered(monkeypatch, dtype, rows, precision, arch)
    for op in OPS:
        assert (f"@{_lowering.target_name(op)}" in text) == (op not in dense), op
        assert arch == 0 or (plans[op] == "dense") == (op in dense), plans
    # In float32, and rounded behind a barrier: not within the product.
    products = re.findall(r"dot_general .*-> tensor<\S*x(\w+)>", text)
    assert products == ["f32"] * len(dense)
    assert text.count("optimization_barrier") == count_of_barriers(dense)


@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}], ids=str)
def test_the_forward_product_by_way_of_dense(monkeypatch, options):
    monkeypatch.setattr(_tuning, "dense_pays", lambda op, *_: op == "spmm")
    text, plans = all_lowered(monkeypatch, "bfloat16", 4096, "default", 90, **options)
    assert plans["spmm"] == "dense"
    assert not re.search(r"@jax_nm\.spmm(_fused)?\.v1", text)
    assert re.findall(r"dot_general .*-> tensor<\S*x(\w+)>", text) == ["f32"]
    assert text.count("optimization_barrier") == count_of_barriers({"spmm"})
    for op in ("spmm_t", "sddmm"):
        assert f"@{_lowering.target_name(op)}" in text


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}], ids=str)
def test_the_plan_is_that_of_the_program(monkeypatch, dtype, arch, options):
    """Which way is the fastest, newer kernels may change."""
    text, plans = all_lowered(monkeypatch, dtype, 4096, "default", arch, **options)
    targets = {op: _lowering.target_name(op) for op in OPS}
    if options:
        targets["spmm"] = _lowering.target_name(_lowering.FUSED)
    for op in OPS:
        assert (f"@{targets[op]}" in text) == (plans[op] != "dense")


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", ["sparse", "dense"])
def test_what_is_asked_for_holds_for_all_three(monkeypatch, asked, dtype, arch):
    text, plans = all_lowered(
        monkeypatch, dtype, 4096, "default", arch, implementation=asked
    )
    assert all((kernel == "dense") == (asked == "dense") for kernel in plans.values())
    assert text.count("dot_general") == (3 if asked == "dense" else 0)
    calls = re.findall(r"custom_call @jax_nm\.(\w+)\.v1", text)
    assert sorted(calls) == (["expand"] * 2 if asked == "dense" else sorted(OPS))


@pytest.mark.parametrize("op", OPS)
def test_large_batches_go_one_by_one(monkeypatch, op):
    """So that one dense matrix lies in memory at a time."""
    (problem,) = (p for p in NOT_EMPTY if p.name == "batched")
    first, second, indices = map(jnp.asarray, integers(problem).of(op))
    second = second.astype(first.dtype)
    operands = (first.reshape(problem.batch[0], problem.rows, -1), second, indices)
    mapped = functools.partial(
        _dense.mapped, op, pattern=problem.pattern, depth=problem.depth, highest=False
    )
    at_once = mapped(*operands)
    assert "scan" not in str(jax.make_jaxpr(lambda *a: mapped(*a))(*operands))
    monkeypatch.setattr(_dense, "MANY_BYTES", 0)
    assert "scan" in str(jax.make_jaxpr(lambda *a: mapped(*a))(*operands))
    np.testing.assert_array_equal(at_once, mapped(*operands))


def test_a_plan_by_way_of_dense_says_so():
    pattern = Pattern(8, 32, vector_length=128)
    w = jax.eval_shape(
        lambda kernel: jax_nm.compress(kernel, pattern), SHAPE((4096, 4096), "float16")
    )
    plan = jax_nm.explain(SHAPE((4096, 4096), jnp.float16), w, "spmm_t", 80)
    assert plan.kernel == plan.implementation == "dense"
    assert "pass over the dense weight" in plan.why
    ((kernel, why),) = plan.rejected
    assert kernel.startswith("spmm_t_")
    assert "cycles" in why


def test_a_kernel_that_is_forced_by_its_id_never_goes_that_way():
    from test_tuning import problem

    half = dict(dtype="bfloat16", pattern=(8, 32, 128), arch=80)
    assert _tuning.dense_pays(**problem("spmm_t", **half))
    kernel = _tuning.kernels()["spmm_t_4x8"]
    assert not _tuning.dense_pays(**problem("spmm_t", kernel=kernel, **half))
