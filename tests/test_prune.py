"""Pruning against a loop over windows and groups, and the refit against its optimum."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_nm
from jax_nm import Pattern, _prune

# depth, cols, pattern: whole; ragged cols; ragged depth, without padding
# slots and with them; L = 1; L > cols; n = m; m = 256; less than one window; none.
CASES = [
    (32, 24, "2:8:8"),
    (12, 10, "2:4:4"),
    (45, 11, "3:16:4"),
    (34, 10, "5:8:4"),
    (13, 7, "3:4:1"),
    (20, 5, "2:4:128"),
    (8, 6, "4:4:2"),
    (276, 3, "16:256:2"),
    (300, 5, "200:256:2"),
    (3, 4, "2:8:2"),
    (2, 4, "3:8:2"),
    (1, 1, "1:1:1"),
    (0, 4, "1:2:2"),
    (4, 0, "1:2:2"),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)
pytestmark = pytest.mark.usefixtures("strict")


def kept_rows(scores, pattern: Pattern) -> list[list[int]]:
    """For each group the kept rows, ascending: the definition, window by window."""
    depth, cols = scores.shape
    groups = []
    for c in range(0, cols, pattern.vector_length):
        total = scores[:, c : c + pattern.vector_length].sum(1)
        kept = []
        for first in range(0, depth, pattern.m):
            rows = range(first, min(first + pattern.m, depth))
            ranked = sorted(rows, key=lambda i: (np.isnan(total[i]), -total[i], i))
            kept += sorted(ranked[: pattern.n])
        groups.append(kept)
    return groups


def mask_of(scores, pattern: Pattern) -> np.ndarray:
    mask = np.zeros(scores.shape, bool)
    for g, rows in enumerate(kept_rows(scores, pattern)):
        length = pattern.vector_length
        mask[rows, g * length : (g + 1) * length] = True
    return mask


def integers(*shape, low=-3, dtype=np.float32):
    """Small integers: their sums are exact, and many of them tie."""
    return np.random.default_rng(shape).integers(low, 4, shape).astype(dtype)


def parse(case) -> tuple[int, int, Pattern]:
    return *case[:2], Pattern.parse(case[2])


# Masks.


@cases
def test_mask(case):
    depth, cols, pattern = parse(case)
    scores = integers(depth, cols)
    mask = jax_nm.prune_mask(scores, pattern)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, mask_of(scores, pattern))


@cases
def test_mask_of_equal_scores_keeps_the_first_rows(case):
    depth, cols, pattern = parse(case)
    mask = jax_nm.prune_mask(np.ones((depth, cols), np.float32), pattern)
    expected = np.arange(depth)[:, None] % pattern.m < pattern.n
    np.testing.assert_array_equal(mask, np.broadcast_to(expected, (depth, cols)))


def test_negative_zero_ties_with_zero():
    scores = np.array([[-0.0], [0.0], [-0.0], [0.0]], np.float32)
    mask = jax_nm.prune_mask(scores, Pattern(2, 4, 1))
    assert mask[:, 0].tolist() == [True, True, False, False]


def test_nan_ranks_last():
    scores = np.array(
        [[np.nan], [-5.0], [np.nan], [1.0], [np.nan], [np.nan]], np.float32
    )
    for n, kept in [(1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])]:
        mask = jax_nm.prune_mask(scores, Pattern(n, 6, 1))
        assert np.flatnonzero(mask).tolist() == kept


def test_infinite_scores():
    """A row of -inf still comes before the rows beyond a ragged depth."""
    scores = np.array([[np.inf], [0], [np.inf], [1], [2], [-np.inf]], np.float32)
    mask = jax_nm.prune_mask(scores, Pattern(2, 4, 1))
    assert np.flatnonzero(mask).tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
def test_batch_axes(batch):
    pattern = Pattern(3, 16, 4)
    kernel = integers(*batch, 45, 11)
    masks = jax_nm.prune_mask(kernel, pattern)
    stack = jax_nm.compress(kernel, pattern)
    masked = jax_nm.compress(kernel, pattern, mask=masks)
    assert stack.shape == masked.shape == masks.shape == kernel.shape
    for place in np.ndindex(*batch):
        np.testing.assert_array_equal(masks[place], mask_of(kernel[place], pattern))
        alone = jax_nm.compress(kernel[place], pattern)
        np.testing.assert_array_equal(stack.values[place], alone.values)
        np.testing.assert_array_equal(stack.indices[place], alone.indices)
        alone = jax_nm.compress(kernel[place], pattern, mask=masks[place])
        np.testing.assert_array_equal(masked.values[place], alone.values)
        np.testing.assert_array_equal(masked.indices[place], alone.indices)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_of_half_precision_are_summed_in_float32(dtype):
    """512 + 1/4 is no number of these dtypes, so a half-precision sum would tie."""
    scores = np.ones((4, 512), np.float32)
    scores[3, 0] = 1.25
    mask = jax_nm.prune_mask(jnp.asarray(scores, dtype), Pattern(1, 4, 512))
    assert np.flatnonzero(mask[:, 0]).tolist() == [3]


# Compression by magnitude and by mask.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_dtypes(case, dtype):
    depth, cols, pattern = parse(case)
    kernel = integers(depth, cols)
    expected = np.where(mask_of(np.abs(kernel), pattern), kernel, 0)
    with jax.enable_x64(dtype == "float64"):
        w = jax_nm.compress(jnp.asarray(kernel, dtype), pattern)
        assert w.dtype == w.values.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(w.todense(), np.float32), expected)


@cases
def test_magnitude(case):
    depth, cols, pattern = parse(case)
    kernel = integers(depth, cols)
    w = jax_nm.validate(jax_nm.compress(kernel, pattern))
    assert (w.pattern, w.depth, w.cols) == (pattern, depth, cols)
    mask = mask_of(np.abs(kernel), pattern)
    np.testing.assert_array_equal(w.mask(), mask)
    np.testing.assert_array_equal(w.todense(), np.where(mask, kernel, 0))
    np.testing.assert_array_equal(w.values[~pattern.is_slot(depth)], 0)


@cases
def test_mask_argument(case):
    depth, cols, pattern = parse(case)
    kernel = integers(depth, cols)
    mask = mask_of(integers(depth, cols, low=-2), pattern)
    for given in (mask, jnp.asarray(mask)):
        w = jax_nm.validate(jax_nm.compress(kernel, pattern, mask=given))
        np.testing.assert_array_equal(w.mask(), mask)
        np.testing.assert_array_equal(w.todense(), np.where(mask, kernel, 0))


def test_compressing_again_changes_nothing():
    w = jax_nm.compress(integers(45, 11), Pattern(3, 16, 4))
    again = jax_nm.compress(w.todense(), w.pattern, mask=w.mask())
    np.testing.assert_array_equal(again.values, w.values)
    np.testing.assert_array_equal(again.indices, w.indices)


def test_negative_zero_and_nan_are_kept_as_they_are():
    kernel = np.array([[-0.0], [0.0], [np.nan], [np.nan]], np.float32)
    w = jax_nm.compress(kernel, Pattern(2, 4, 1))
    assert np.signbit(w.values[:, 0]).tolist() == [True, False]
    w = jax_nm.compress(kernel, Pattern(3, 4, 1))
    np.testing.assert_array_equal(w.values, kernel[:3])


def test_jit():
    """Everything is jit-able, the mask and the gram traced."""
    pattern, kernel = Pattern(3, 16, 4), integers(45, 11)
    mask = jax.jit(lambda k: jax_nm.prune_mask(jnp.abs(k), pattern))(kernel)
    np.testing.assert_array_equal(mask, mask_of(np.abs(kernel), pattern))
    w = jax.jit(jax_nm.compress, static_argnums=1)(kernel, pattern, mask)
    eager = jax_nm.compress(kernel, pattern)
    np.testing.assert_array_equal(w.values, eager.values)
    np.testing.assert_array_equal(w.indices, eager.indices)
    gram = calibration(100, 45)[1]
    w = jax.jit(jax_nm.compress, static_argnums=1)(kernel, pattern, gram=gram)
    assert_optimal(w, kernel, gram)


def test_vmap():
    pattern, kernels = Pattern(3, 16, 4), integers(3, 45, 11)
    mapped = jax.vmap(lambda k: jax_nm.compress(k, pattern))(kernels)
    stack = jax_nm.compress(kernels, pattern)
    np.testing.assert_array_equal(mapped.values, stack.values)
    np.testing.assert_array_equal(mapped.indices, stack.indices)


def test_gradient_reaches_the_kept_elements_of_the_kernel():
    pattern, kernel = Pattern(2, 8, 8), integers(32, 24)
    ct = integers(8, 24, low=1)
    grad = jax.grad(lambda k: jnp.sum(jax_nm.compress(k, pattern).values * ct))(kernel)
    w = dataclasses.replace(jax_nm.compress(kernel, pattern), values=jnp.asarray(ct))
    np.testing.assert_array_equal(grad, w.todense())


# The calibrated refit.


def calibration(rows: int, depth: int):
    """Correlated inputs of uneven scale, and their gram."""
    rng = np.random.default_rng([rows, depth])
    mixed = rng.normal(size=(rows, depth)) @ rng.normal(size=(depth, depth))
    x = (mixed * rng.uniform(0.1, 2, depth) / np.sqrt(max(depth, 1))).astype(np.float32)
    return x, x.T @ x


def assert_optimal(w, kernel, gram, damping=0.01):
    """Every group solves its normal equations as well as float32 can.

    Cholesky in float32 solves (A + E) v = b exactly with |E[i, j]| at most
    (3 k + 1) u sqrt(A[i, i] A[j, j]) (Higham, Accuracy and Stability, theorem 10.4,
    with Cauchy-Schwarz for |L| |L|^T). The right-hand side is a rounded product, the
    ridge a rounded mean over the depth, and v is rounded once more to its dtype.
    """
    pattern, depth = w.pattern, w.depth
    u = np.finfo(np.float32).eps / 2
    round_off = float(jnp.finfo(w.dtype).eps) / 2
    gram, kernel = np.asarray(gram, np.float64), np.asarray(kernel, np.float64)
    values = np.asarray(w.values, np.float64)[pattern.is_slot(depth)]
    lam = damping * np.trace(gram) / max(depth, 1)
    scores = np.asarray(w.mask(), np.float64)
    for g, rows in enumerate(kept_rows(scores, pattern)):
        cols = slice(g * pattern.vector_length, (g + 1) * pattern.vector_length)
        v, full, kept = values[:, cols], kernel[:, cols], kernel[rows, cols]
        system = gram[np.ix_(rows, rows)] + lam * np.eye(len(rows))
        target = gram[rows] @ full + lam * kept
        scale = np.sqrt(np.diag(system))[:, None]
        bound = (3 * len(rows) + 1) * u * scale * (scale.T @ np.abs(v))
        bound += (depth + 3) * u * (np.abs(gram[rows]) @ np.abs(full))
        bound += (depth + 3) * u * lam * (np.abs(v) + np.abs(kept))
        bound += round_off * (np.abs(system) @ np.abs(v))
        residual = np.abs(system @ v - target)
        assert (residual <= bound).all()
        error = np.abs(v - np.linalg.solve(system, target))
        assert (error <= np.abs(np.linalg.inv(system)) @ bound).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*CASES[:8], CASES[10], *CASES[12:]], ids=str)
def test_refit(case, dtype):
    depth, cols, pattern = parse(case)
    kernel = jnp.asarray(integers(depth, cols), dtype)
    _, gram = calibration(3 * depth, depth)
    w = jax_nm.validate(jax_nm.compress(kernel, pattern, gram=gram))
    assert w.dtype == kernel.dtype
    assert_optimal(w, kernel, gram)
    np.testing.assert_array_equal(w.values[~pattern.is_slot(depth)], 0)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_refit_of_a_given_mask(case):
    depth, cols, pattern = parse(case)
    kernel = integers(depth, cols)
    mask = mask_of(integers(depth, cols, low=-2), pattern)
    _, gram = calibration(3 * depth, depth)
    w = jax_nm.compress(kernel, pattern, mask=mask, gram=gram, damping=0.1)
    np.testing.assert_array_equal(w.mask(), mask)
    assert_optimal(w, kernel, gram, damping=0.1)


def test_calibrated_score():
    """The score is sum |w| * sqrt(diag G), and a diagonal gram leaves values alone."""
    depth, cols, pattern = 45, 11, Pattern(3, 16, 4)
    kernel, scale = integers(depth, cols), integers(depth, 1, low=1)
    gram = np.diag(scale[:, 0] ** 2)
    w = jax_nm.compress(kernel, pattern, gram=gram)
    np.testing.assert_array_equal(w.mask(), mask_of(np.abs(kernel) * scale, pattern))
    assert_optimal(w, kernel, gram)


def test_refit_lowers_the_error_on_its_inputs():
    """Of the values for one mask, the refit ones have the least ||x W - x W'||."""
    kernel = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    x, gram = calibration(200, 64)
    pattern = Pattern(4, 16, 8)
    refit = jax_nm.compress(kernel, pattern, gram=gram, damping=0.0)
    plain = jax_nm.compress(kernel, pattern, mask=refit.mask())
    nudged = dataclasses.replace(refit, values=refit.values * np.float32(1.01))

    def error(w):
        return np.linalg.norm(x @ (kernel - np.asarray(w.todense(), np.float64)))

    assert error(refit) < error(nudged)
    assert error(refit) < error(plain)


def test_gram_batch_axes():
    """One gram per kernel, or one for all."""
    pattern, kernels = Pattern(3, 16, 4), integers(2, 45, 11)
    grams = np.stack([calibration(100, 45)[1], calibration(200, 45)[1]])
    for gram in (grams, grams[0]):
        stack = jax_nm.compress(kernels, pattern, gram=gram)
        assert stack.shape == kernels.shape
        for i in range(2):
            w = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
            own = gram if gram.ndim == 2 else gram[i]
            score = np.abs(kernels[i]) * np.sqrt(np.diag(own))[:, None]
            np.testing.assert_array_equal(w.mask(), mask_of(score, pattern))
            assert_optimal(w, kernels[i], own)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_a_zero_gram_keeps_the_values(damping):
    """No calibration input reached the layer: nothing is known, nothing is changed."""
    kernel = np.random.default_rng(0).normal(size=(34, 10)).astype(np.float32)
    pattern, gram = Pattern(5, 8, 4), np.zeros((34, 34), np.float32)
    w = jax_nm.compress(kernel, pattern, gram=gram, damping=damping)
    np.testing.assert_array_equal(w.todense(), np.where(w.mask(), kernel, 0))


def test_a_dead_input_is_no_problem():
    """A feature that is always 0 makes the gram singular; the ridge carries it."""
    kernel, pattern = integers(32, 24, low=1), Pattern(8, 8, 8)
    x, _ = calibration(100, 32)
    x[:, ::3] = 0
    w = jax_nm.compress(kernel, pattern, gram=x.T @ x)
    assert_optimal(w, kernel, x.T @ x)


# Speed.


@pytest.mark.parametrize("vector_length", [1, 32, 128])
def test_compressing_a_large_kernel_is_fast(vector_length):
    kernel = jax.random.normal(jax.random.key(0), (4096, 4096))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        w = jax_nm.compress(kernel, Pattern(8, 32, vector_length))
        jax.block_until_ready(w)
        seconds.append(time.perf_counter() - start)
    assert min(seconds[1:]) < 2


@pytest.mark.parametrize("n, m", [(1, 1), (2, 4), (3, 7), (16, 32), (32, 32)])
def test_ranking_by_comparison_is_that_of_top_k(monkeypatch, n, m):
    pattern = Pattern(n, m, vector_length=2)
    scores = np.random.default_rng(m).integers(-2, 3, (2, 5 * m - 1, 6))
    scores = scores.astype(np.float32)
    scores[scores == -2] = np.nan
    scores[0, 0, 0], scores[0, -1, -1] = -0.0, np.inf
    compared = _prune._select(jnp.asarray(scores), pattern)
    monkeypatch.setattr(_prune, "_MOST_COMPARED", 0)
    np.testing.assert_array_equal(
        compared, _prune._select(jnp.asarray(scores), pattern), strict=True
    )
