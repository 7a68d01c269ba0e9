"""Sparse training with a dense master: products, gradients, selection, and a training.

Gradients are compared with those of the dense product, on integers, for equality.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from problems import FEW, PROBLEMS, Problem, random_indices

import jax_nm
from jax_nm import Pattern

pytestmark = pytest.mark.usefixtures("strict", "highest")

# Every way of being ragged; the sizes that are there for a kernel's tiles are left out.
RAGGED = (
    "no_rows no_depth no_cols no_batch one_row one_col one_deep odd_rows rows_16 "
    "tail_below_n tail_above_n vector_beyond_cols all_kept_tail one_in_one odd_pattern "
    "window_256 window_256_all vector_1 lead_axes batched batched_lead"
)
SINGLE = [p for p in PROBLEMS if p.dtype == "float32" and p.name in RAGGED.split()]
EXACT = [*SINGLE, *(p for p in FEW if p.dtype != "float32")]


def draw(*shape, dtype=np.float32, seed=0):
    """Small integers; zeros are negative."""
    a = np.random.default_rng((seed, *shape)).integers(-4, 5, shape).astype(np.float64)
    return np.where(a == 0, -0.0, a).astype(jnp.dtype(dtype))


def kernel_of(problem: Problem):
    return draw(*problem.batch, problem.depth, problem.cols, dtype=problem.dtype)


def indices_of(problem: Problem):
    """Any valid choice; not that of the largest vectors."""
    return random_indices(problem, problem.rng("train"))


def mask_of(problem: Problem, indices) -> np.ndarray:
    n, m, length = problem.pattern.n, problem.pattern.m, problem.pattern.vector_length
    mask = np.zeros((*problem.batch, problem.depth, problem.groups), bool)
    slot = np.arange(problem.kept)
    source = slot // n * m + indices.astype(np.int64)
    held = slot // n * m + slot % n < problem.depth
    for place in np.ndindex(*problem.batch, problem.groups):
        *batch, group = place
        mask[(*batch, source[place][held], group)] = True
    return np.repeat(mask, length, axis=-1)[..., : problem.cols]


class Dense:
    """What the products of a problem should be, in float64, rounded once."""

    def __init__(self, problem: Problem) -> None:
        dtype = problem.dtype
        self.problem = problem
        self.indices = indices_of(problem)
        self.mask = mask_of(problem, self.indices)
        self.kernel = kernel_of(problem)
        self.x = draw(*problem.shapes["x"], dtype=dtype, seed=1)
        self.dy = draw(*problem.shapes["dy"], dtype=dtype, seed=2)
        self.multiply()

    def multiply(self) -> None:
        rows = (*self.problem.batch, self.problem.rows)
        x = self.x.astype(np.float64).reshape(*rows, self.problem.depth)
        dy = self.dy.astype(np.float64).reshape(*rows, self.problem.cols)
        kept = np.where(self.mask, self.kernel.astype(np.float64), 0)
        self.y = self._round((x @ kept).reshape(self.dy.shape))
        self.dx = self._round((dy @ np.swapaxes(kept, -1, -2)).reshape(self.x.shape))
        self.dkernel = self._round(np.swapaxes(x, -1, -2) @ dy)
        self.dkept = np.where(self.mask, self.dkernel, 0).astype(self.kernel.dtype)

    def _round(self, a):
        return a.astype(jnp.dtype(self.problem.dtype))

    def align(self, a):
        """Axes of length 1 between the batch axes of a weight and its matrices."""
        batch = self.problem.batch
        ones = (1,) * (len(self.problem.lead) - 1) if batch else ()
        return a.reshape(*batch, *ones, *a.shape[len(batch) :])

    def vjp(self, product):
        """y, dx and dkernel of ``product(x, kernel, indices, pattern)``."""

        def aligned(x, kernel):
            indices = self.align(jnp.asarray(self.indices))
            return product(x, self.align(kernel), indices, self.problem.pattern)

        y, pull = jax.vjp(jax.jit(aligned), self.x, self.kernel)
        return y, *pull(jnp.asarray(self.dy))


def kept_product(x, kernel, indices, pattern, *options, dtype=None, **keywords):
    w = jax_nm.compress_at(kernel, indices, pattern, dtype=dtype)
    return jax_nm.spmm(x, w, *options, **keywords)


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.fixture
def standard():
    with jax.numpy_dtype_promotion("standard"):
        yield


# Selection.


@pytest.mark.parametrize("problem", SINGLE, ids=str)
def test_selects_what_compress_keeps(problem):
    kernel = kernel_of(problem)
    expected = jax_nm.compress(kernel, problem.pattern)
    indices = jax_nm.select_indices(kernel, problem.pattern)
    assert_equal(indices, expected.indices)
    w = jax_nm.compress_at(kernel, indices, problem.pattern)
    assert (w.pattern, w.depth, w.cols) == (
        problem.pattern,
        problem.depth,
        problem.cols,
    )
    assert_equal(w.values, expected.values)
    jax_nm.validate(w)


def test_selection_inside_jit():
    kernel, pattern = draw(64, 24), Pattern(2, 8, 8)
    select = jax.jit(functools.partial(jax_nm.select_indices, pattern=pattern))
    assert_equal(select(kernel), jax_nm.select_indices(kernel, pattern))
    assert_equal(
        jax.vmap(select)(jnp.stack([kernel, -kernel, kernel[::-1]]))[1], select(kernel)
    )


# Products and gradients.


@pytest.mark.parametrize("problem", EXACT, ids=str)
def test_straight_through(problem, platform):
    """The product and dx are sparse, dkernel is dense; all are exact."""
    with problem.precision():
        dense = Dense(problem)
        assert_equal(
            dense.vjp(jax_nm.spmm_ste),
            tuple(map(jnp.asarray, (dense.y, dense.dx, dense.dkernel))),
        )


@pytest.mark.parametrize("problem", EXACT, ids=str)
def test_gradient_at_kept_positions(problem, platform):
    with problem.precision():
        dense = Dense(problem)
        assert_equal(
            dense.vjp(kept_product),
            tuple(map(jnp.asarray, (dense.y, dense.dx, dense.dkept))),
        )


# The epilogues that run fused, and those that XLA adds.
EPILOGUES = {
    "bias": (True, None),
    "relu": (False, "relu"),
    "bias_relu": (True, "relu"),
    "callable": (True, lambda s: s * jnp.abs(s)),
}


@pytest.mark.parametrize("problem", [p for p in SINGLE if p in FEW], ids=str)
@pytest.mark.parametrize("case", EPILOGUES.values(), ids=EPILOGUES)
def test_epilogue(problem, case, platform):
    """The gradient passes the activation, and then the products of the plain form."""
    with_bias, activation = case
    dense = Dense(problem)
    bias = draw(*problem.batch, problem.cols)
    apply = {None: lambda s: s, "relu": jax.nn.relu}.get(activation, activation)

    def product(x, kernel, bias):
        indices = dense.align(jnp.asarray(dense.indices))
        bias = dense.align(bias) if with_bias else None
        arguments = (indices, problem.pattern, bias, activation)
        return jax_nm.spmm_ste(x, dense.align(kernel), *arguments)

    def finish(sums, bias):
        bias = jnp.expand_dims(bias, range(-len(problem.lead) - 1, -1))
        return apply(sums + bias if with_bias else sums)

    y, pull = jax.vjp(jax.jit(product), dense.x, dense.kernel, bias)
    expected, pull_sums = jax.vjp(finish, jnp.asarray(dense.y), jnp.asarray(bias))
    assert_equal(y, expected)
    dense.dy, dbias = map(np.asarray, pull_sums(jnp.asarray(dense.dy)))
    dense.multiply()
    dx, dkernel = map(jnp.asarray, (dense.dx, dense.dkernel))
    assert_equal(pull(jnp.asarray(Dense(problem).dy)), (dx, dkernel, dbias))


ROWS, DEPTH, COLS = 5, 18, 10
PATTERN = Pattern(4, 8, vector_length=4)  # the last window has 2 rows: 2 padding slots
X, KERNEL = draw(ROWS, DEPTH), draw(DEPTH, COLS, seed=2)
TANGENTS = draw(ROWS, DEPTH, seed=3), draw(DEPTH, COLS, seed=4)
INDICES = jax_nm.select_indices(draw(DEPTH, COLS, seed=5), PATTERN)
MASK = jax_nm.compress_at(KERNEL, INDICES, PATTERN).mask()


@jax.custom_jvp
def masked_product(x, kernel):
    """The straight-through product by its definition."""
    return jnp.matmul(x, jnp.where(MASK, kernel, 0))


@masked_product.defjvp
def _masked_jvp(primals, tangents):
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    y_dot = jnp.matmul(x_dot, jnp.where(MASK, kernel, 0)) + jnp.matmul(x, kernel_dot)
    return masked_product(x, kernel), y_dot


def ste(x, kernel):
    return jax_nm.spmm_ste(x, kernel, INDICES, PATTERN)


def fused_ste(x, kernel):
    """With a bias that depends on x, so that its own derivatives are seen too."""
    return jax_nm.spmm_ste(x, kernel, INDICES, PATTERN, x[0, :COLS], "relu")


def fused_masked_product(x, kernel):
    return jax.nn.relu(masked_product(x, kernel) + x[:1, :COLS])


def square(product):
    return lambda x, kernel: jnp.sum(product(x, kernel) ** 2)


def dot(a, b):
    return sum(jnp.sum(u * v) for u, v in zip(a, b, strict=True))


def rev_over_rev(f, t):
    return jax.grad(lambda *p: dot(jax.grad(square(f), (0, 1))(*p), t), (0, 1))


def twice(f):
    """A scan that uses the weight twice, under remat."""

    @jax.checkpoint
    def layer(x, kernel):
        return jnp.pad(f(x, kernel), ((0, 0), (0, DEPTH - COLS)))

    def run(x, kernel):
        return jax.lax.scan(lambda x, _: (layer(x, kernel), None), x, length=2)[0]

    return run


def stacked(p, t):
    return [jnp.stack(pair) for pair in zip(p, t, strict=True)]


def saved(f):
    return jax.checkpoint(square(f), policy=jax_nm.spmm_saveable)


# Each entry takes a product f(x, kernel), primals (x, kernel), and their tangents.
TRANSFORMS = {
    "jit_grad": lambda f, p, t: jax.jit(jax.grad(square(f), (0, 1)))(*p),
    "grad_x": lambda f, p, t: jax.grad(square(f), 0)(*p),
    "grad_kernel": lambda f, p, t: jax.grad(square(f), 1)(*p),
    "jvp": lambda f, p, t: jax.jvp(f, p, t),
    "jvp_x": lambda f, p, t: jax.jvp(lambda x: f(x, p[1]), p[:1], t[:1]),
    "jvp_kernel": lambda f, p, t: jax.jvp(lambda k: f(p[0], k), p[1:], t[1:]),
    "linearize": lambda f, p, t: jax.linearize(f, *p)[1](*t),
    "fwd_over_rev": lambda f, p, t: jax.jvp(jax.grad(square(f), (0, 1)), p, t),
    "rev_over_rev": lambda f, p, t: rev_over_rev(f, t)(*p),
    "rev_over_fwd": lambda f, p, t: jax.grad(
        lambda *p: jax.jvp(square(f), p, t)[1], (0, 1)
    )(*p),
    "jacfwd": lambda f, p, t: jax.jacfwd(f, (0, 1))(*p),
    "jacrev": lambda f, p, t: jax.jacrev(f, (0, 1))(*p),
    "scan_remat": lambda f, p, t: jax.grad(square(twice(f)), (0, 1))(*p),
    "remat_policy": lambda f, p, t: jax.grad(saved(f), (0, 1))(*p),
    "vmap_x": lambda f, p, t: jax.vmap(jax.grad(square(f), (0, 1)), (0, None))(
        stacked(p, t)[0], p[1]
    ),
    "vmap_kernel": lambda f, p, t: jax.vmap(jax.grad(square(f), (0, 1)), (None, 0))(
        p[0], stacked(p, t)[1]
    ),
    "vmap_both": lambda f, p, t: jax.vmap(jax.grad(square(f), (0, 1)))(*stacked(p, t)),
    "cond": lambda f, p, t: jax.grad(
        lambda *p: jax.lax.cond(p[0][0, 0] > 9, lambda *p: 0.0, square(f), *p), (0, 1)
    )(*p),
}
PRODUCTS = {
    "plain": (ste, masked_product),
    "fused": (fused_ste, fused_masked_product),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("products", PRODUCTS.values(), ids=PRODUCTS)
def test_transform(name, products, platform):
    primals, tangents = jax.tree.map(jnp.asarray, ((X, KERNEL), TANGENTS))
    sparse, dense = (TRANSFORMS[name](f, primals, tangents) for f in products)
    assert_equal(sparse, dense)


def test_one_vector_and_mapped_indices(platform):
    x = jnp.asarray(X[0])
    both = jnp.stack([INDICES, jax_nm.select_indices(KERNEL, PATTERN)])
    y, dkernel = jax.vmap(
        jax.value_and_grad(lambda k, i: jnp.sum(jax_nm.spmm_ste(x, k, i, PATTERN))),
        (None, 0),
    )(KERNEL, both)
    for index, got in zip(both, y, strict=True):
        kept = jax_nm.compress_at(KERNEL, index, PATTERN).todense()
        assert got == jnp.sum(x @ kept)
    assert_equal(dkernel, jnp.broadcast_to(x[:, None], (2, DEPTH, COLS)))


SHARDINGS = {
    "rows": (P("d"), P(), P(), P("d")),
    "cols": (P(), P(None, "d"), P("d"), P(None, "d")),
}


@pytest.mark.parametrize("specs", SHARDINGS.values(), ids=SHARDINGS)
def test_shard_map(specs):
    """Each device holds its rows, or its columns; a shared gradient is summed."""
    problem = Problem("sharded", (8,), 40, 64, Pattern(3, 8, 16))
    dense = Dense(problem)
    mesh = jax.sharding.Mesh(jax.devices("cpu")[:4], "d", axis_types=(AxisType.Auto,))

    def product(x, kernel, indices, pattern):
        return jax.shard_map(
            lambda *operands: jax_nm.spmm_ste(*operands, pattern),
            mesh=mesh,
            in_specs=specs[:3],
            out_specs=specs[3],
        )(x, kernel, indices)

    with jax.default_device(jax.devices("cpu")[0]):
        y, dx, dkernel = dense.vjp(product)
    for got, expected in ((y, dense.y), (dx, dense.dx), (dkernel, dense.dkernel)):
        np.testing.assert_array_equal(got, expected, strict=True)


def primitives(fun, *operands):
    """How many sparse and dense products the jaxpr of a function holds."""
    text = str(jax.make_jaxpr(fun)(*operands))
    names = ("nm_spmm[", "nm_spmm_fused[", "nm_spmm_t[", "nm_sddmm[", "dot_general[")
    return dict(zip(names, map(text.count, names), strict=True))


def test_which_products_run():
    """One dense product, where the gradient of the kernel is asked for."""
    fused, kept = jax.jit(fused_ste), functools.partial(kept_product, pattern=PATTERN)

    def total(x, kernel):
        return jnp.sum(fused(x, kernel))

    def counts(*numbers):
        names = (
            "nm_spmm[",
            "nm_spmm_fused[",
            "nm_spmm_t[",
            "nm_sddmm[",
            "dot_general[",
        )
        return dict(zip(names, numbers, strict=True))

    assert primitives(total, X, KERNEL) == counts(0, 1, 0, 0, 0)
    assert primitives(jax.grad(total, 0), X, KERNEL) == counts(0, 1, 1, 0, 0)
    assert primitives(jax.grad(total, 1), X, KERNEL) == counts(0, 1, 0, 0, 1)
    assert primitives(jax.grad(total, (0, 1)), X, KERNEL) == counts(0, 1, 1, 0, 1)
    only_x = primitives(lambda x: jax.jvp(lambda x: ste(x, KERNEL), (x,), (x,)), X)
    assert only_x == counts(2, 0, 0, 0, 0)

    def kept_total(x, kernel):
        return jnp.sum(kept(x, kernel, INDICES))

    both = primitives(jax.grad(kept_total, (0, 1)), X, KERNEL)
    assert both == counts(1, 0, 1, 1, 0)


# Dtypes.


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("product", [jax_nm.spmm_ste, kept_product])
def test_half_precision_with_a_float32_master(product, half, platform):
    """Products in half precision, gradients in the dtype of each argument."""
    problem = Problem("mixed", (5,), 18, 10, PATTERN)
    dense = Dense(problem)
    dkernel = dense.dkept if product is kept_product else dense.dkernel

    def cast(x, *operands):
        return product(x.astype(half), *operands, dtype=half)

    def straight(x, *operands):
        return jax_nm.spmm_ste(x, *operands, dtype=half)

    dense.dy = dense.dy.astype(jnp.dtype(half))
    for fun in (cast, straight)[: 1 + (product is jax_nm.spmm_ste)]:
        y, dx, dw = dense.vjp(fun)
        assert_equal(y, jnp.asarray(dense.y.astype(jnp.dtype(half))))
        assert_equal((dx, dw), (jnp.asarray(dense.dx), jnp.asarray(dkernel)))


def test_the_master_is_rounded_in_the_product_only(platform):
    kernel = jnp.full((DEPTH, COLS), 1 + 2.0**-10)
    x = jnp.ones((ROWS, DEPTH), jnp.bfloat16)

    def product(kernel):
        return jax_nm.spmm_ste(x, kernel, INDICES, PATTERN, dtype=jnp.bfloat16)

    y, pull = jax.vjp(product, kernel)
    assert_equal(y, x @ MASK.astype(x.dtype))
    (dkernel,) = pull(jnp.ones_like(y))
    assert_equal(dkernel, jnp.full((DEPTH, COLS), float(ROWS)))


def test_a_wide_cotangent_is_kept_under_highest(platform):
    """As in spmm: otherwise it is narrowed to the dtype of the product."""
    fine = 1 + 2.0**-12
    x = jnp.ones((1, DEPTH), jnp.bfloat16)
    dy = jnp.full((1, COLS), fine)
    for precision, expected in (("highest", fine), ("default", 1.0)):
        product = functools.partial(
            jax_nm.spmm_ste,
            indices=INDICES,
            pattern=PATTERN,
            precision=precision,
            preferred_element_type=jnp.float32,
            dtype=jnp.bfloat16,
        )
        for options in ({}, {"activation": "relu"}):
            run = functools.partial(product, x, **options)
            y, pull = jax.vjp(run, jnp.ones((DEPTH, COLS)))
            assert y.dtype == jnp.float32
            assert_equal(pull(dy)[0], jnp.full((DEPTH, COLS), expected))


def test_promotion(standard):
    half = jnp.asarray(X, jnp.bfloat16)
    y, (dx, dkernel) = jax.value_and_grad(
        lambda *p: jnp.sum(ste(*p), dtype=jnp.float32), (0, 1)
    )(half, KERNEL)
    assert (y.dtype, dx.dtype, dkernel.dtype) == ("float32", "bfloat16", "float32")
    assert ste(half, KERNEL).dtype == jnp.float32
    assert ste(half, jnp.asarray(KERNEL, jnp.bfloat16)).dtype == jnp.bfloat16
    w = jax_nm.compress_at(KERNEL, INDICES, PATTERN, dtype="float16")
    assert w.dtype == jnp.float16 and w.shape == KERNEL.shape


def test_strict_promotion_takes_a_dtype():
    half = jnp.asarray(X, jnp.bfloat16)
    with pytest.raises(jax.dtypes.TypePromotionError):
        ste(half, KERNEL)
    y = jax_nm.spmm_ste(half, KERNEL, INDICES, PATTERN, dtype=jnp.float32)
    assert_equal(y, ste(X, KERNEL))


# The regulariser.


@pytest.mark.parametrize("problem", SINGLE, ids=str)
def test_sr_ste_penalty(problem):
    """The gradient is ``decay * (1 - mask) * kernel``, exactly."""
    indices, kernel = indices_of(problem), kernel_of(problem)
    dropped = np.where(mask_of(problem, indices), 0, kernel.astype(np.float64))
    penalty = functools.partial(jax_nm.sr_ste_penalty, pattern=problem.pattern)
    value, grad = jax.value_and_grad(penalty)(kernel, indices, decay=0.3)
    assert_equal(grad, jnp.float32(0.3) * jnp.asarray(dropped, jnp.float32))
    half = jax.jit(penalty)(kernel, indices, decay=2.0)
    assert_equal(half, jnp.float32(np.sum(dropped**2)))
    assert value.dtype == jnp.float32


def test_penalty_of_one_group():
    """However long its vectors are."""
    pattern = Pattern(2, 4, vector_length=10**9)
    kernel = jnp.arange(24.0).reshape(8, 3)
    indices = jax_nm.select_indices(kernel, pattern)
    dropped = np.asarray(kernel)[[0, 1, 4, 5]]  # the rows grow: the first half goes
    assert jax_nm.sr_ste_penalty(kernel, indices, pattern, 2.0) == np.sum(dropped**2)


def test_penalty_of_a_tree():
    """What stays dense has None in place of indices, whatever stands there."""
    kernels = {"a": {"kernel": KERNEL, "bias": [X, None]}, "b": jnp.asarray(X), "c": 2}
    indices = {"a": {"kernel": INDICES, "bias": None}, "b": None, "c": None}
    single = jax_nm.sr_ste_penalty(KERNEL, INDICES, PATTERN)
    assert_equal(jax_nm.sr_ste_penalty(kernels, indices, PATTERN), single)
    pair = jax_nm.sr_ste_penalty([KERNEL, KERNEL], [INDICES, INDICES], PATTERN)
    assert_equal(pair, 2 * single)
    assert jax_nm.sr_ste_penalty(kernels, None, PATTERN) == 0


def test_penalty_sums_in_float32():
    kernel = jnp.asarray(KERNEL, jnp.bfloat16)
    decay = jnp.asarray(0.5, jnp.bfloat16)
    value, grad = jax.value_and_grad(jax_nm.sr_ste_penalty)(
        kernel, INDICES, PATTERN, decay
    )
    assert value.dtype == jnp.float32
    assert_equal(grad, jnp.where(MASK, 0, kernel) * decay)


# Selection in the course of a training.


def drifting(steps, every):
    """The indices in use in each step, and those of each step's kernel."""
    kernels = jnp.asarray(draw(steps, DEPTH, COLS, seed=6))

    def body(indices, batch):
        step, kernel = batch
        indices = jax_nm.reselect_indices(
            kernel, indices, PATTERN, step=step, every=every
        )
        return indices, indices

    steps = jnp.arange(steps)
    run = jax.jit(lambda start: jax.lax.scan(body, start, (steps, kernels))[1])
    return run(INDICES), jax_nm.select_indices(kernels, PATTERN)


@pytest.mark.parametrize("every", [1, 3, 10])
def test_reselection_inside_a_scan(every):
    used, selected = drifting(8, every)
    assert used.dtype == jnp.uint8
    for step in range(8):
        assert_equal(used[step], selected[step - step % every])


def test_reselection_of_a_tree():
    kernels = {"a": {"kernel": KERNEL, "bias": jnp.ones(3)}, "b": [jnp.asarray(X)]}
    old = {
        "a": {"kernel": INDICES, "bias": None},
        "b": [jax_nm.select_indices(X[::-1], PATTERN)],
    }
    new = {
        "a": {"kernel": jax_nm.select_indices(KERNEL, PATTERN), "bias": None},
        "b": [jax_nm.select_indices(X, PATTERN)],
    }
    reselect = functools.partial(
        jax_nm.reselect_indices, kernels, old, PATTERN, every=4
    )
    for step, expected in {0: new, 1: old, 3: old, 8: new, np.int64(9): old}.items():
        assert_equal(reselect(step=step), expected)
        assert_equal(jax.jit(lambda step: reselect(step=step))(step), expected)
    everywhere = jax_nm.reselect_indices(kernels, old, PATTERN, step=3, every=1)
    assert_equal(everywhere, new)
    assert reselect(step=jnp.uint8(4))["a"]["bias"] is None


def test_other_steps_do_not_select():
    """One condition for all kernels, whose other side returns what it got."""
    kernels, indices = [KERNEL, KERNEL], [INDICES, INDICES]

    def run(kernels, indices, step):
        return jax_nm.reselect_indices(kernels, indices, PATTERN, step=step, every=10)

    seeds = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * 3), (kernels, indices))
    for fun, operands in (
        (run, (kernels, indices)),
        (jax.vmap(run, (0, 0, None)), seeds),
    ):
        jaxpr = jax.make_jaxpr(fun)(*operands, 3).jaxpr
        (cond,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond")
        keep, select = cond.params["branches"]
        assert not keep.jaxpr.eqns and "_select" in str(select)
        others = [eqn for eqn in jaxpr.eqns if eqn is not cond]
        assert not any("_select" in str(eqn) for eqn in others)


# A training.


def task():
    """Inputs, and a function of them that needs other rows than the first kernel's."""
    x = jax.random.normal(jax.random.key(0), (256, 64))
    teacher = jax.random.normal(jax.random.key(1), (64, 16))
    return x, jnp.tanh(x @ teacher / 8)


@pytest.mark.parametrize("way", ["kept", "ste", "sr_ste"])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=str)
def test_training_from_a_dense_master(way, dtype, standard):
    """AdamW lowers the loss; the indices move and stay valid."""
    pattern = Pattern(2, 8, vector_length=4)
    product = kept_product if way == "kept" else jax_nm.spmm_ste
    decay = 1e-3 if way == "sr_ste" else 0.0
    x, target = task()
    keys = jax.random.split(jax.random.key(2))
    params = {
        "up": {"kernel": jax.random.normal(keys[0], (64, 96)) / 8},
        "down": {"kernel": jax.random.normal(keys[1], (96, 16)) / 10},
        "bias": jnp.zeros(96),
    }

    def select(layer):
        return {"kernel": jax_nm.select_indices(layer["kernel"], pattern)}

    first = {"up": select(params["up"]), "down": select(params["down"]), "bias": None}

    def forward(params, indices, x):
        up, down = (
            functools.partial(
                product,
                kernel=params[name]["kernel"],
                indices=indices[name]["kernel"],
                pattern=pattern,
                dtype=dtype,
            )
            for name in ("up", "down")
        )
        cast = x if dtype is None else x.astype(dtype)
        hidden = up(cast, bias=params["bias"], activation="gelu")
        return down(hidden).astype(jnp.float32)

    def loss_of(params, indices):
        error = jnp.mean((forward(params, indices, x) - target) ** 2)
        return error + jax_nm.sr_ste_penalty(params, indices, pattern, decay), error

    optimizer = optax.adamw(3e-3, weight_decay=1e-2)

    def step(carry, number):
        params, indices, state = carry
        indices = jax_nm.reselect_indices(
            params, indices, pattern, step=number, every=10
        )
        (_, error), grads = jax.value_and_grad(loss_of, has_aux=True)(params, indices)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), indices, state), error

    carry = (params, first, optimizer.init(params))
    (trained, indices, _), errors = jax.jit(
        lambda carry: jax.lax.scan(step, carry, jnp.arange(201))
    )(carry)
    # Between the last two selections: a new one raises the loss at first.
    assert errors[-11:-1].mean() < errors[0] * 0.75
    for name in ("up", "down"):
        kernel, index = trained[name]["kernel"], indices[name]["kernel"]
        assert kernel.dtype == jnp.float32
        jax_nm.validate(jax_nm.compress_at(kernel, index, pattern))
        assert not np.array_equal(index, first[name]["kernel"])


# Wrong calls.


SHAPE = jax.ShapeDtypeStruct((DEPTH, COLS), jnp.float32)
FLOATING = "float32, bfloat16, float16 or float64"


def product(x=X, kernel=KERNEL, indices=INDICES, pattern=PATTERN, **keywords):
    return jax_nm.spmm_ste(x, kernel, indices, pattern, **keywords)


def compress_at(kernel=KERNEL, indices=INDICES, pattern=PATTERN, **keywords):
    return jax_nm.compress_at(kernel, indices, pattern, **keywords)


def reselect(kernels=KERNEL, indices=INDICES, pattern=PATTERN, step=1, every=10):
    return jax_nm.reselect_indices(kernels, indices, pattern, step=step, every=every)


def penalty(kernels=KERNEL, indices=INDICES, pattern=PATTERN, decay=2e-4):
    return jax_nm.sr_ste_penalty(kernels, indices, pattern, decay)


def weight():
    return jax_nm.compress_at(KERNEL, INDICES, PATTERN)


# fmt: off
# (id, call, exception, regex of the message)
WRONG = [
    # select_indices
    ("select-pattern", lambda: jax_nm.select_indices(KERNEL, "4:8"), TypeError,
     r"select_indices: pattern must be a jax_nm\.Pattern, got '4:8'; write"),
    ("select-vector", lambda: jax_nm.select_indices(X[0], PATTERN), ValueError,
     r"kernel must have shape \[\*batch, depth, cols\], got \(18,\)"),
    ("select-integers", lambda: jax_nm.select_indices(KERNEL.astype(int), PATTERN),
     TypeError, f"kernel must have dtype {FLOATING}, got int"),
    ("select-weight", lambda: jax_nm.select_indices(weight(), PATTERN), TypeError,
     r"kernel must be a dense array, got NMArray; pass kernel\.todense\(\)"),
    # the master and its indices
    ("at-pattern", lambda: compress_at(pattern=(4, 8)), TypeError,
     r"compress_at: pattern must be a jax_nm\.Pattern, got \(4, 8\)"),
    ("at-indices-dtype", lambda: compress_at(indices=INDICES.astype(int)), TypeError,
     r"compress_at: indices must be uint8, got int.*; make them with jax_nm\.select"),
    ("at-indices-none", lambda: compress_at(indices=None), TypeError,
     "indices must be an array, got NoneType"),
    ("at-other-pattern", lambda: compress_at(pattern=Pattern(2, 8, 4)), ValueError,
     r"indices must have shape \(3, 6\) for pattern 2:8:4 and kernel of shape "
     r"\(18, 10\), got \(3, 12\); make them"),
    ("at-other-kernel", lambda: compress_at(kernel=KERNEL[:8]), ValueError,
     r"indices must have shape \(3, 4\) .* got \(3, 12\)"),
    ("at-batch", lambda: compress_at(kernel=KERNEL[None]), ValueError,
     r"indices must have shape \(1, 3, 12\) .* got \(3, 12\)"),
    ("at-dtype", lambda: compress_at(dtype=jnp.int32), TypeError,
     f"compress_at: dtype must be {FLOATING}, got .*int32.*; leave it out"),
    ("at-dtype-name", lambda: compress_at(dtype="half-ish"), TypeError,
     f"compress_at: dtype must be {FLOATING}, got 'half-ish'"),
    # spmm_ste
    ("ste-x-depth", lambda: product(x=X[:, :16]), ValueError,
     r"spmm_ste: x must have shape \[\.\.\., depth\] with the kernel's depth 18, got "
     r"\(5, 16\); the last axis of x must be 18"),
    ("ste-x-scalar", lambda: product(x=jnp.float32(1)), ValueError,
     r"x must have shape .* got \(\)"),
    ("ste-x-integers", lambda: product(x=X.astype(int)), TypeError,
     f"x must have dtype {FLOATING}, got int"),
    ("ste-x-shape", lambda: product(x=SHAPE), TypeError,
     "x must be an array, got ShapeDtypeStruct"),
    ("ste-kernel-weight", lambda: product(kernel=weight()), TypeError,
     "kernel must be a dense array, got NMArray"),
    ("ste-kernel-shape", lambda: product(kernel=SHAPE), TypeError,
     "kernel must be an array, got ShapeDtypeStruct"),
    ("ste-order", lambda: product(pattern=INDICES), TypeError,
     r"spmm_ste: pattern must be a jax_nm\.Pattern, got"),
    ("ste-bias", lambda: product(bias=X[0]), ValueError,
     r"spmm_ste: bias must have shape \(10,\), got \(18,\)"),
    ("ste-activation", lambda: product(activation="elu"), ValueError,
     "spmm_ste: activation must be one of .* got 'elu'"),
    ("ste-precision", lambda: product(precision="best"), ValueError,
     "spmm_ste: precision must be .* got 'best'"),
    ("ste-result", lambda: product(preferred_element_type=int), TypeError,
     "spmm_ste: preferred_element_type must be"),
    ("ste-layout", lambda: product(result_layout="col"), ValueError,
     "spmm_ste: result_layout must be None, 'row' or 'feature', got 'col'"),
    ("ste-dtype", lambda: product(dtype=bool), TypeError,
     "spmm_ste: dtype must be"),
    ("ste-batch", lambda: product(kernel=KERNEL[None], indices=INDICES[None], x=X[0]),
     ValueError, "x must have at least 2 axes for a batched w"),
    # reselect_indices
    ("re-every-zero", lambda: reselect(every=0), ValueError,
     "reselect_indices: every must be at least 1, got 0; with 1"),
    ("re-every-float", lambda: reselect(every=10.0), TypeError,
     r"every must be a Python integer, got 10\.0; it is static"),
    ("re-every-bool", lambda: reselect(every=True), TypeError,
     "every must be a Python integer, got True"),
    ("re-every-tracer", lambda: jax.jit(lambda k: reselect(every=k))(2), TypeError,
     "every must be a Python integer, got .*Tracer"),
    ("re-step-float", lambda: reselect(step=2.0), TypeError,
     r"step must be an integer scalar, got 2\.0; pass the count"),
    ("re-step-vector", lambda: reselect(step=jnp.arange(2)), TypeError,
     "step must be an integer scalar, got"),
    ("re-step-none", lambda: reselect(step=None), TypeError,
     "step must be an integer scalar, got None"),
    ("re-step-bool", lambda: reselect(step=True), TypeError,
     "step must be an integer scalar, got True"),
    ("re-structure", lambda: reselect([KERNEL, X], [INDICES]), ValueError,
     "indices must have the structure of kernels, with None in place .* make them"),
    ("re-place", lambda: reselect({"a": [X]}, {"a": [INDICES]}), ValueError,
     r"indices\['a'\]\[0\] must have shape \(5, 4\) for .* kernels\['a'\]\[0\] of "
     r"shape \(5, 18\), got \(3, 12\)"),
    ("re-kernels-none", lambda: reselect([None], [INDICES]), TypeError,
     r"kernels\[0\] must be an array, got NoneType"),
    # sr_ste_penalty
    ("penalty-pattern", lambda: penalty(pattern=None), TypeError,
     r"sr_ste_penalty: pattern must be a jax_nm\.Pattern, got None"),
    ("penalty-structure", lambda: penalty({"a": X}, {"b": INDICES}), ValueError,
     "sr_ste_penalty: indices must have the structure of kernels"),
    ("penalty-decay", lambda: penalty(decay="2e-4"), TypeError,
     "decay must be a real scalar, got '2e-4'; the default is 2e-4"),
    ("penalty-decay-vector", lambda: penalty(decay=X[0]), TypeError,
     "decay must be a real scalar, got"),
    ("penalty-decay-bool", lambda: penalty(decay=True), TypeError,
     "decay must be a real scalar, got True"),
]
# fmt: on


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [case[1:] for case in WRONG],
    ids=[case[0] for case in WRONG],
)
def test_wrong_call(call, exception, message):
    with pytest.raises(exception, match=message) as caught:
        call()
    assert ";" in str(caught.value)
