"""The three primitives, on every problem and platform, in three tiers.

  exact     small integers, equal to the oracle rounded once;
  bound     |out - ref| <= (u_out + 2 u_in + (len + 2) u_acc) (|first| @ |second|);
  baseline  the Frobenius error is at most twice that of the dense product, plus u_out.

The bound has no free constants: u_out, u_in and u_acc are unit roundoffs of the result,
of the operands as the hardware reads them, and of the accumulator; len is the number of
terms of one sum. Where spmm_t rounds partial sums on its way, the bound has that term.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from problems import (
    FEW,
    OPS,
    PROBLEMS,
    SPLIT,
    TF32,
    Problem,
    cuda_kernels,
    gaussians,
    integers,
    is_padding,
    on_tensor_cores,
)

import jax_nm
from jax_nm import Pattern, _cpu, _lowering, _primitives, _tuning

pytestmark = pytest.mark.usefixtures("strict")

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
few_problems = pytest.mark.parametrize("problem", FEW, ids=str)
kernel_problems = pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.dtype != "float64"], ids=str
)
every_op = pytest.mark.parametrize("op", OPS)

# Each block walks over more than one tile, or shares one, or has a long reduction.
LONG = [
    p
    for p in PROBLEMS
    if (p.dtype, p.name)
    in (
        ("bfloat16", "hopper_eighth"),
        ("bfloat16", "hopper_many_tiles"),
        ("bfloat16", "short_many_tiles"),
        ("bfloat16", "hopper_shared_tiles"),
        ("bfloat16", "hopper_shared_last"),
        ("bfloat16", "skinny_deep"),
        ("bfloat16", "skinny_rows_64"),
        ("bfloat16", "skinny_long"),
        ("float32", "split_many_tiles"),
        ("float32", "split_shared_tiles"),
        ("float32", "split_shared_last"),
        ("float32", "split_many_slots"),
    )
]

# What the tensor cores of Hopper take of spmm_t.
SCATTERED = [
    p
    for p in PROBLEMS
    if p.dtype in ("bfloat16", "float16")
    and p.name
    in (
        "hopper_128",
        "hopper_256",
        "hopper_one_group",
        "hopper_batched",
        "hopper_few_slots",
        "hopper_eighth",
        "hopper_sixteenth",
        "hopper_64",
        "hopper_partial_blocks",
        "hopper_partial_batched",
        "hopper_many_steps",
        "hopper_many_tiles",
        "hopper_bands",
    )
]
# The kernels that keep a group's partial sums as two terms in bfloat16.
HI_LO = {v for k, v in _tuning.kernels("spmm_t").items() if k.endswith("_hi_lo")}

ISAS = {"portable": 1, "avx2": 2, "avx512": 3, "neon": 4}


def run(op, problem: Problem, operands, out_dtype=None, **options) -> np.ndarray:
    """One product through its primitive; `operands` in the order of the primitive."""
    out_dtype = out_dtype or problem.dtype
    with problem.precision():
        result = getattr(_primitives, op)(
            *map(jnp.asarray, operands),
            spec=problem.spec(**options),
            out_dtype=jnp.dtype(out_dtype),
        )
        assert result.dtype == jnp.dtype(out_dtype)
        return np.asarray(result)


def exact_operands(op, problem: Problem):
    """Integers of which no sum is rounded, nor any that a kernel rounds on the way.

    On tensor cores spmm_t rounds a group's partial sums to bfloat16, which holds the
    integers up to 256, except under HIGHEST.
    """
    largest = 1 if op == "spmm_t" and problem.dtype == "bfloat16" else 4
    return integers(problem, largest).of(op)


def rounded(exact: np.ndarray, dtype) -> np.ndarray:
    return exact.astype(jnp.dtype(dtype))


def unit_roundoff(dtype) -> float:
    return float(jnp.finfo(dtype).eps) / 2


# Tier (i): exact.


@every_op
@every_problem
def test_integers_are_exact(platform, problem, op):
    operands = exact_operands(op, problem)
    exact = oracle.compute(op, problem, *operands)
    out = run(op, problem, operands)
    np.testing.assert_array_equal(out, rounded(exact, problem.dtype), strict=True)


@every_op
@pytest.mark.parametrize(
    "problem",
    [p for p in PROBLEMS if p.name in ("rows_65", "tail_below_n", "batched")],
    ids=str,
)
def test_preferred_element_type_rounds_once(platform, problem, op):
    operands = exact_operands(op, problem)
    exact = oracle.compute(op, problem, *operands)
    for out_dtype in {"float32", "bfloat16", "float16"} - {problem.dtype}:
        out = run(op, problem, operands, out_dtype)
        np.testing.assert_array_equal(out, rounded(exact, out_dtype), strict=True)


def wide_specs(platform, problem: Problem):
    """In which spmm_t need not round a group's partial sums to bfloat16."""
    specs = [problem.spec(highest=True)]
    if problem.dtype == "float16":
        specs.append(problem.spec())
    if platform == "cuda":
        kernels = cuda_kernels("spmm_t", problem, highest=True)
        specs += [problem.spec(highest=True, kernel=kernel) for kernel in kernels]
    return specs


@pytest.mark.parametrize("problem", SCATTERED, ids=str)
def test_partial_sums_of_spmm_t_may_be_wide(platform, problem):
    """Integers of up to 17 bits, in float16 and under HIGHEST."""
    specs = wide_specs(platform, problem)
    if platform == "cuda" and _lowering.cuda_module().has_wgmma():
        assert HI_LO & {spec.kernel for spec in specs}
    operands = integers(problem, 16).of("spmm_t")
    check_specs("spmm_t", problem, specs, operands)


@pytest.mark.parametrize("out_dtype", ["float16", "float32"])
@pytest.mark.parametrize("n", [16, 12, 8, 4, 3, 2])
def test_partial_sums_of_float16_do_not_overflow(platform, n, out_dtype):
    """Those of two groups exceed what float16 holds; their sum does not."""
    pattern = Pattern(n, 32, vector_length=128)
    problem = Problem("overflow", (136,), 256, 256, pattern, "float16")
    values = np.full(problem.shapes["values"], 32.0, np.float16)
    values[:, 128:] = -32
    values[:, -1] = -31
    offsets = np.tile(np.arange(n, dtype=np.uint8), problem.kept // n)
    indices = np.stack([offsets] * problem.groups)
    dy = np.full(problem.shapes["dy"], 256.0, np.float16)
    operands = dy, values, indices
    first = dy[:, :128].astype(np.float32) @ values[:, :128].astype(np.float32).T
    assert (first > 16 * float(jnp.finfo(np.float16).max)).all()
    specs = wide_specs(platform, problem)
    check_specs("spmm_t", problem, specs, operands, out_dtype)


@pytest.mark.parametrize("problem", SCATTERED[::3], ids=str)
def test_second_derivatives_may_have_wide_partial_sums(platform, problem):
    operands = integers(problem, 16)
    dy, values, _ = map(jnp.asarray, operands.of("spmm_t"))
    signs = problem.rng("signs").choice([-1, 1], operands.values.shape)
    tangent = operands.values * signs.astype(operands.values.dtype)

    def gradient(values):
        def product(x):
            w = dataclasses.replace(operands.weight(problem), values=values)
            return jax_nm.spmm(x, w, precision="highest")

        return jax.vjp(product, jnp.asarray(operands.x))[1](dy)[0]

    results = jax.jit(lambda v, t: jax.jvp(gradient, (v,), (t,)))(values, tangent)
    for out, second in zip(results, (operands.values, tangent), strict=True):
        exact = oracle.compute("spmm_t", problem, operands.dy, second, operands.indices)
        np.testing.assert_array_equal(out, rounded(exact, problem.dtype), strict=True)


def call_kernel(op, platform, problem: Problem, operands, *, layout, workspace):
    """The bare custom call, on matrices of rank 3 that lie as the layout code says."""
    first, second, indices = operands
    batch = math.prod(problem.batch)
    pattern = problem.pattern
    result_shape = {
        "spmm": (batch, problem.rows, problem.cols),
        "spmm_t": (batch, problem.rows, problem.depth),
        "sddmm": (batch, problem.kept, problem.cols),
    }[op]
    sizes = {"spmm": problem.kept, "spmm_t": problem.kept, "sddmm": problem.rows}
    order = {True: (0, 2, 1), False: (0, 1, 2)}
    x_order, y_order = order[bool(layout & 1)], order[bool(layout & 2)]
    row_major = order[False]
    orders = {
        "spmm": (x_order, row_major, y_order),
        "spmm_t": (y_order, row_major, x_order),
        "sddmm": (x_order, y_order, row_major),
    }[op]
    results = [jax.ShapeDtypeStruct(result_shape, first.dtype)]
    result_orders = [orders[2]]
    if platform == "cuda":
        results.append(jax.ShapeDtypeStruct((workspace,), jnp.uint8))
        result_orders.append((0,))
    outputs = jax.ffi.ffi_call(
        _lowering.target_name(op),
        results,
        input_layouts=[*orders[:2], row_major],
        output_layouts=result_orders,
    )(
        first.reshape(batch, problem.rows, first.shape[-1]),
        second.reshape(batch, sizes[op], second.shape[-1]),
        indices.reshape(batch, problem.groups, problem.kept),
        n=np.int32(pattern.n),
        m=np.int32(pattern.m),
        vector_length=np.int32(pattern.vector_length),
        layout=np.int32(layout),
        flags=np.int32(0),
        kernel=np.int32(0),
        arch=np.int32(0),
    )
    return outputs[0]


@every_op
@kernel_problems
def test_every_layout_and_any_workspace(platform, problem, op):
    """Rows are not padded here, so the kernels also meet unaligned rows."""
    operands = exact_operands(op, problem)
    exact = rounded(oracle.compute(op, problem, *operands), problem.dtype)
    workspaces = (0, 1000, 1 << 22, 1 << 25) if platform == "cuda" else (0,)
    # XLA's CPU compiler dies of a division by zero on a copy of an empty array.
    codes = range(4) if all(a.size for a in operands) else (0,)

    @jax.jit
    def call(*operands):
        return [
            call_kernel(op, platform, problem, operands, layout=code, workspace=size)
            for code in codes
            for size in workspaces
        ]

    for out in call(*map(jnp.asarray, operands)):
        np.testing.assert_array_equal(
            np.asarray(out).reshape(exact.shape), exact, strict=True
        )


@every_op
@every_problem
def test_every_instruction_set_is_exact(problem, op):
    """On the CPU: the kernels of narrower instruction sets than this machine's."""
    operands = exact_operands(op, problem)
    exact = rounded(oracle.compute(op, problem, *operands), problem.dtype)
    with jax.default_device(jax.devices("cpu")[0]):
        for isa in runnable_isas():
            if isa == _cpu.isa():
                continue  # the one that every other test runs
            out = run(op, problem, operands, kernel=ISAS[isa])
            np.testing.assert_array_equal(out, exact, strict=True, err_msg=isa)


@functools.cache
def runnable_isas() -> tuple[str, ...]:
    def runs(isa):
        try:
            problem = ("spmm", "float32", "float32", 1, 1, 4, 1, 2, 4, 1, False, False)
            _cpu.plan(*problem, ISAS[isa])
        except ValueError:
            return False
        return True

    return tuple(isa for isa in _cpu.built_isas() if runs(isa))


def test_the_widest_instruction_set_is_chosen():
    assert _cpu.isa() == runnable_isas()[-1]


# Tiers (ii) and (iii): random reals against the bound and against the dense product.


@every_op
@every_problem
def test_rounding_errors_are_bounded(platform, problem, op):
    check_rounding(platform, problem, op, highest=True)


@every_op
@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.dtype == "float32"], ids=str
)
def test_rounding_errors_are_bounded_in_tf32(cuda, problem, op):
    check_rounding(cuda, problem, op, highest=False)


@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.dtype in ("bfloat16", "float16")], ids=str
)
def test_partial_sums_of_spmm_t_are_rounded_once(cuda, problem):
    operands = gaussians(problem).of("spmm_t")
    reference = oracle.compute("spmm_t", problem, *operands)
    scale = oracle.magnitude("spmm_t", problem, *operands)
    u_acc = 2 * unit_roundoff("float32")
    underflow = float(jnp.finfo(problem.dtype).smallest_subnormal) / 2
    for kernel in cuda_kernels("spmm_t", problem):
        u_part = unit_roundoff("bfloat16") ** (2 if kernel in HI_LO else 1)
        relative = unit_roundoff(problem.dtype) + u_part + (problem.cols + 2) * u_acc
        out = run("spmm_t", problem, operands, kernel=kernel)
        error = np.abs(out.astype(reference.dtype) - reference)
        assert (error <= 1.01 * relative * scale + underflow).all(), kernel


def check_rounding(platform, problem: Problem, op, *, highest):
    operands = gaussians(problem)
    reference = oracle.compute(op, problem, *operands.of(op))
    scale = oracle.magnitude(op, problem, *operands.of(op))
    out = run(op, problem, operands.of(op), highest=highest)
    error = np.abs(out.astype(reference.dtype) - reference)

    dtype = problem.dtype
    u_out = unit_roundoff(dtype)
    u_in = u_part = 0.0
    u_acc = unit_roundoff("float64" if dtype == "float64" else "float32")
    if on_tensor_cores(platform, op, problem, highest=highest):
        u_acc *= 2
    if platform == "cuda" and dtype == "float32" and not highest:
        u_in = 2.0**-10
    if platform == "cuda" and op == "spmm_t" and dtype in ("bfloat16", "float16"):
        u_part = unit_roundoff("bfloat16") ** 2  # a partial sum may be two terms
    relative = u_out + u_part + 2 * u_in + (problem.reduction(op) + 2) * u_acc
    underflow = float(jnp.finfo(dtype).smallest_subnormal) / 2
    assert (error <= relative * scale + underflow).all()

    dense = dense_product(op, problem, operands, highest=highest)
    baseline = np.linalg.norm((dense.astype(reference.dtype) - reference).ravel())
    if u_in:
        # XLA computes some products, such as those with a vector, in true float32.
        rounded = oracle.compute(op, problem, *map(round_to_tf32, operands.of(op)))
        rounding = np.linalg.norm((rounded - reference).ravel())
        baseline = max(baseline, rounding)
    norm = np.linalg.norm(reference.ravel())
    assert np.linalg.norm(error.ravel()) <= 2 * baseline + u_out * norm


@pytest.mark.parametrize("op", ["spmm", "sddmm"])
@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.name.startswith("split_")], ids=str
)
@pytest.mark.parametrize("exponent", [0, 60, -60])
def test_products_in_bfloat16_have_the_errors_of_float32(cuda, problem, op, exponent):
    """Of the kernels that split float32, also where the choice falls on another."""
    kernels = SPLIT.intersection(cuda_kernels(op, problem, highest=True))
    if not kernels:
        pytest.skip("needs a device of compute capability 9.0 and aligned rows")
    first, second, indices = gaussians(problem).of(op)
    operands = np.ldexp(first, exponent), np.ldexp(second, -exponent // 2), indices
    reference = oracle.compute(op, problem, *operands)
    scale = oracle.magnitude(op, problem, *operands)
    u = unit_roundoff("float32")
    bound = (u + (problem.reduction(op) + 2) * 2 * u) * scale
    for kernel in kernels:
        out = run(op, problem, operands, kernel=kernel, highest=True)
        assert (np.abs(out.astype(reference.dtype) - reference) <= bound).all(), kernel


@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.name.startswith("tf32_")], ids=str
)
def test_every_kernel_from_transposed_values_has_the_errors_of_tf32(cuda, problem):
    kernels = TF32 & set(cuda_kernels("spmm", problem))
    if not kernels:
        pytest.skip("needs a device of compute capability 9.0")
    operands = gaussians(problem).of("spmm")
    reference = oracle.compute("spmm", problem, *operands)
    scale = oracle.magnitude("spmm", problem, *operands)
    u = unit_roundoff("float32")
    bound = (u + 2 * 2.0**-10 + (problem.kept + 2) * 2 * u) * scale
    for kernel in kernels:
        out = run("spmm", problem, operands, kernel=kernel, highest=False)
        assert (np.abs(out.astype(reference.dtype) - reference) <= bound).all(), kernel


def round_to_tf32(a: np.ndarray) -> np.ndarray:
    """To nearest, of float32; indices stay as they are."""
    if a.dtype != np.float32:
        return a
    bits = a.view(np.uint32)
    return np.where(np.isfinite(a), bits + 0x1000 & 0xFFFFE000, bits).view(np.float32)


def dense_product(op, problem: Problem, operands, *, highest) -> np.ndarray:
    """The same product through XLA's dense one, on the same device and precision."""
    precision = jax.lax.Precision.HIGHEST if highest else jax.lax.Precision.DEFAULT
    batch = problem.batch
    with problem.precision():
        x = jnp.asarray(operands.x.reshape(*batch, problem.rows, problem.depth))
        dy = jnp.asarray(operands.dy.reshape(*batch, problem.rows, problem.cols))
        kernel = jnp.asarray(oracle.dense(problem, operands.values, operands.indices))
        matmul = functools.partial(jnp.matmul, precision=precision)
        if op == "spmm":
            return np.asarray(matmul(x, kernel)).reshape(problem.shapes["dy"])
        if op == "spmm_t":
            return np.asarray(matmul(dy, kernel.mT)).reshape(problem.shapes["x"])
        return oracle.sample(problem, np.asarray(matmul(x.mT, dy)), operands.indices)


# Determinism and safety.


@every_op
@few_problems
def test_repeated_calls_are_bit_equal(platform, problem, op):
    operands = gaussians(problem).of(op)
    first = run(op, problem, operands)
    for _ in range(3):
        np.testing.assert_array_equal(run(op, problem, operands), first)


@every_op
@pytest.mark.parametrize("problem", LONG, ids=str)
def test_a_thousand_launches_are_bit_equal(cuda, problem, op):
    """Of every kernel, to the last bit: a rare race may change one rounding."""
    operands = [jnp.asarray(a) for a in gaussians(problem).of(op)]
    out_dtype = jnp.dtype(problem.dtype)

    @jax.jit
    def count(different, y, first):
        return different + jnp.sum(bits(y) != bits(first))

    def bits(a):
        return jax.lax.bitcast_convert_type(a, f"uint{8 * a.dtype.itemsize}")

    # Those that hand stages from warp to warp.
    families = ("hopper", "mma", "short", "skinny", "ffma", "split", "tf32")
    ringed = {
        kernel
        for name, kernel in _tuning.kernels().items()
        if any(family in name for family in families)
    }
    for kernel in ringed & set(cuda_kernels(op, problem)):
        spec = problem.spec(kernel=kernel)
        launch = jax.jit(
            functools.partial(getattr(_primitives, op), spec=spec, out_dtype=out_dtype)
        )
        first = launch(*operands)
        different = jnp.zeros((), jnp.int32)
        for _ in range(1000):
            different = count(different, launch(*operands), first)
        assert different == 0, str(spec)


@every_op
@every_problem
def test_any_index_byte_gives_finite_results(platform, problem, op):
    first, second, indices = exact_operands(op, problem)
    noise = problem.rng("noise").integers(0, 256, indices.shape).astype(np.uint8)
    assert np.isfinite(run(op, problem, (first, second, noise))).all()


@every_op
@few_problems
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_non_finite_values_reach_their_readers_only(platform, problem, op, special):
    first, second, indices = exact_operands(op, problem)
    batch, lead = (tuple(s // 2 for s in a) for a in (problem.batch, problem.lead))
    read = 0 if op == "spmm_t" else indices[(*batch, 0, 0)]  # by the first slot
    first[(*batch, *lead, read)] = special
    with np.errstate(invalid="ignore"):
        exact = oracle.compute(op, problem, first, second, indices)
    # By way of a dense matrix, they reach their whole row.
    ways = [{"implementation": "sparse"}]
    if platform == "cuda":
        splits = SPLIT.intersection(cuda_kernels(op, problem, highest=True))
        ways += [{"kernel": kernel, "highest": True} for kernel in splits]
        kernels = TF32 & set(cuda_kernels(op, problem))
        ways += [{"kernel": kernel, "highest": False} for kernel in kernels]
    finite = np.isfinite(exact)
    assert not finite.all()
    assert finite.any()
    # NumPy knows NaN in its own dtypes only.
    wide = "float64"
    for way in ways:
        out = run(op, problem, (first, second, indices), **way)
        np.testing.assert_array_equal(
            out.astype(wide), rounded(exact, problem.dtype).astype(wide)
        )


@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if is_padding(p).any() and p.rows > 0], ids=str
)
def test_sddmm_writes_zero_in_padding_slots(platform, problem):
    x, dy, indices = integers(problem).of("sddmm")
    x[..., -1] = np.nan  # what a padding slot would read
    out = run("sddmm", problem, (x, dy, indices))
    assert (out[..., is_padding(problem), :] == 0).all()


@every_op
@few_problems
def test_sliced_and_strided_operands(platform, problem, op):
    """Operands that are views of larger arrays, in NumPy and inside a computation."""
    operands = exact_operands(op, problem)
    exact = rounded(oracle.compute(op, problem, *operands), problem.dtype)

    def frame(a):
        """`a` in the middle of a larger array, each element twice."""
        pad = [(1, 2)] * (a.ndim - 1)
        return np.repeat(np.pad(a, [*pad, (1, 2)]), 2, axis=-1)

    def view(a, like):
        window = [slice(1, 1 + size) for size in like.shape[:-1]]
        return a[(*window, slice(2, 2 + 2 * like.shape[-1], 2))]

    framed = [frame(a) for a in operands]
    views = [view(a, like) for a, like in zip(framed, operands, strict=True)]
    assert not all(a.flags.c_contiguous for a in views)
    np.testing.assert_array_equal(run(op, problem, views), exact, strict=True)

    def inside(*framed):
        views = [view(a, like) for a, like in zip(framed, operands, strict=True)]
        spec, out_dtype = problem.spec(), jnp.dtype(problem.dtype)
        return getattr(_primitives, op)(*views, spec=spec, out_dtype=out_dtype)

    with problem.precision():
        out = np.asarray(jax.jit(inside)(*map(jnp.asarray, framed)))
    np.testing.assert_array_equal(out, exact, strict=True)


# Kernels that the tuning function would not choose here.


@every_op
@kernel_problems
def test_every_cuda_kernel_is_exact(cuda, problem, op):
    forced = [problem.spec(kernel=k) for k in cuda_kernels(op, problem)]
    forced += [
        problem.spec(arch=arch, implementation="sparse")
        for arch in (80, 86, 89, 90, 100, 120)
    ]
    check_specs(op, problem, forced)


def check_specs(op, problem: Problem, specs, operands=None, out_dtype=None):
    operands = operands or exact_operands(op, problem)
    out_dtype = jnp.dtype(out_dtype or problem.dtype)
    exact = rounded(oracle.compute(op, problem, *operands), out_dtype)

    @jax.jit
    def call(*operands):
        return [
            getattr(_primitives, op)(*operands, spec=spec, out_dtype=out_dtype)
            for spec in specs
        ]

    for spec, out in zip(specs, call(*map(jnp.asarray, operands)), strict=True):
        np.testing.assert_array_equal(out, exact, strict=True, err_msg=str(spec))
