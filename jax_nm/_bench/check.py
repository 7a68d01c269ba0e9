"""Whether a timed program computes the right thing, outside the timed region."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm._bench import programs
from jax_nm._bench.points import Point
from jax_nm._bench.programs import Program

SAMPLED_ROWS = 16
SAMPLED_COLS = 32
_GELU_LIPSCHITZ = 1.13


class _Reference(NamedTuple):
    """Elements [rows, cols] of one result in float64, and their products of |.|."""

    rows: np.ndarray
    cols: np.ndarray
    exact: np.ndarray
    scale: np.ndarray
    length: int  # of the reduction


def error_over_bound(point: Point, timed: Sequence[Program]) -> float:
    """The largest error relative to the elementwise bound, on a sample of the results.

        |out - ref| <= lipschitz * (u_out + 2 u_in + (len + 2) u_acc) * (|x| @ |W|)

    against float64; with a bias |bias| is added to the product. At most 1 is right;
    NaN is wrong. The first call of each program is checked; its operands are the same
    numbers in all of them.
    """
    operands = [column[0] for column in timed[0].sets[0]]
    references = list(_references(point, *operands))
    dtype = jnp.dtype(point.dtype)
    tf32 = (point.dtype, point.precision) == ("float32", "default")
    units = float(jnp.finfo(dtype).eps) / 2 + (
        2.0**-9 if tf32 and programs.on_gpu() else 0.0
    )
    lipschitz = 1.0 if point.epilogue is None else _GELU_LIPSCHITZ
    worst = 0.0
    for program in timed:
        results = program.compiled(*program.sets[0])[0]
        for result, reference in zip(results, references, strict=True):
            out = _take(result, reference.rows, reference.cols)
            unit = lipschitz * (units + (reference.length + 2) * 2.0**-23)
            bound = unit * reference.scale
            error = np.abs(out - reference.exact)
            if not (error <= bound).all():
                return float("inf")
            held = bound > 0
            worst = max(worst, np.max(error[held] / bound[held], initial=0.0))
    return float(worst)


def _references(
    point: Point, x: Any, values: Any, indices: Any, bias: Any, dy: Any
) -> Iterator[_Reference]:
    """The results of the operation in their order, each on a sample of its elements."""
    pattern, length = point.pattern, point.pattern.vector_length
    slot = np.arange(point.kept)
    kept = slot[pattern.is_slot(point.depth)]  # without padding slots
    source = slot // pattern.n * pattern.m + np.asarray(indices).astype(np.int64)
    rows, cols = _sample(point.rows, SAMPLED_ROWS), _sample(point.cols, SAMPLED_COLS)
    every_row, every_col = np.arange(point.rows), np.arange(point.cols)

    if point.op in ("spmm", "step"):
        left = _take(x, rows, np.arange(point.depth))
        right = _take(values, slot, cols)
        exact, scale = np.zeros((2, len(rows), len(cols)))
        for place, col in enumerate(cols):
            picked, column = left[:, source[col // length, kept]], right[kept, place]
            exact[:, place] = picked @ column
            scale[:, place] = np.abs(picked) @ np.abs(column)
        if bias is not None:
            shift = np.asarray(bias.astype(jnp.float32)).astype(np.float64)[cols]
            exact, scale = _gelu(exact + shift), scale + np.abs(shift)
        yield _Reference(rows, cols, exact, scale, point.kept)
    if point.op in ("spmm_t", "step"):
        depths = _sample(point.depth, SAMPLED_COLS)
        left = _take(dy, rows, every_col)
        exact, scale = np.zeros((2, len(rows), len(depths)))
        for place, depth in enumerate(depths):
            window = kept[kept // pattern.n == depth // pattern.m]
            reads = source[:, window][every_col // length].T
            slots = _take(values, window, every_col)
            column = np.sum(slots, axis=0, where=reads == depth)
            exact[:, place] = left @ column
            scale[:, place] = np.abs(left) @ np.abs(column)
        yield _Reference(rows, depths, exact, scale, point.cols)
    if point.op in ("sddmm", "step"):
        slots = kept[_sample(len(kept), SAMPLED_ROWS)]
        right = _take(dy, every_row, cols)
        exact, scale = np.zeros((2, len(slots), len(cols)))
        for place, col in enumerate(cols):
            picked = _take(x, every_row, source[col // length, slots]).T
            exact[:, place] = picked @ right[:, place]
            scale[:, place] = np.abs(picked) @ np.abs(right[:, place])
        yield _Reference(slots, cols, exact, scale, point.rows)


def _sample(size: int, count: int) -> np.ndarray:
    """Ascending places: the first, the last, and random ones between."""
    if size <= count:
        return np.arange(size)
    chosen = np.random.default_rng(size).choice(size, count - 2, replace=False)
    return np.unique([0, *chosen, size - 1])


def _take(array: jax.Array, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    taken = _gather(array, rows.astype(np.int32), cols.astype(np.int32))
    return np.asarray(taken).astype(np.float64)


@jax.jit
def _gather(array: jax.Array, rows: jax.Array, cols: jax.Array) -> jax.Array:
    return array[rows[:, None], cols].astype(jnp.float32)


def _gelu(y: np.ndarray) -> np.ndarray:
    return y / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
