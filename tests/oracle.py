"""The three products from their definition, in float64 NumPy.

    spmm:    y[r, c]              =  sum over j of  x[r, source(g, j)] * values[j, c]
    spmm_t:  dx[r, source(g, j)] +=  sum over c in g of  dy[r, c] * values[j, c]
    sddmm:   dvalues[j, c]        =  sum over r of  x[r, source(g, j)] * dy[r, c]

Nothing here comes from the package but the three numbers of a pattern.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from problems import Problem


def compute(op: str, problem: Problem, first, second, indices) -> np.ndarray:
    """The unrounded result of one product; operands as the primitives take them.

    Wider than the operands: float64, or for float64 the C compiler's long double.
    """
    dtype = np.longdouble if first.dtype == np.float64 else np.float64
    batch = math.prod(problem.batch)
    rows = math.prod(first.shape[len(problem.batch) : -1])
    shape = first.shape
    first = first.astype(dtype).reshape(batch, rows, shape[-1])
    second = second.astype(dtype)
    if op == "sddmm":
        second = second.reshape(batch, rows, problem.cols)
        shape = (*problem.batch, problem.kept, problem.cols)
    else:
        second = second.reshape(batch, problem.kept, problem.cols)
        shape = (*shape[:-1], problem.cols if op == "spmm" else problem.depth)
    indices = indices.reshape(batch, problem.groups, problem.kept)
    sizes = {
        "spmm": (rows, problem.cols),
        "spmm_t": (rows, problem.depth),
        "sddmm": (problem.kept, problem.cols),
    }
    out = np.zeros((batch, *sizes[op]), dtype)
    for b in range(batch):
        for cols, source, slots in _groups(problem, indices[b]):
            if op == "spmm":
                out[b][:, cols] = first[b][:, source] @ second[b][slots, cols]
            elif op == "spmm_t":
                np.add.at(
                    out[b],
                    (slice(None), source),
                    first[b][:, cols] @ second[b][slots, cols].T,
                )
            else:
                out[b][slots, cols] = first[b][:, source].T @ second[b][:, cols]
    return out.reshape(shape)


def magnitude(op: str, problem: Problem, first, second, indices) -> np.ndarray:
    """The same product of absolute values: the scale of the rounding errors."""
    return compute(op, problem, np.abs(first), np.abs(second), indices)


def dense(problem: Problem, values: np.ndarray, indices) -> np.ndarray:
    """The dense weight ``[*batch, depth, cols]``."""
    batch = math.prod(problem.batch)
    values = values.reshape(batch, problem.kept, problem.cols)
    indices = indices.reshape(batch, problem.groups, problem.kept)
    out = np.zeros((batch, problem.depth, problem.cols), values.dtype)
    for b in range(batch):
        for cols, source, slots in _groups(problem, indices[b]):
            out[b][source, cols] = values[b][slots, cols]
    return out.reshape(*problem.batch, problem.depth, problem.cols)


def sample(problem: Problem, dense: np.ndarray, indices) -> np.ndarray:
    """The elements of ``dense [*batch, depth, cols]`` that the slots hold, else 0."""
    batch = math.prod(problem.batch)
    dense = dense.reshape(batch, problem.depth, problem.cols)
    indices = indices.reshape(batch, problem.groups, problem.kept)
    out = np.zeros((batch, problem.kept, problem.cols), dense.dtype)
    for b in range(batch):
        for cols, source, slots in _groups(problem, indices[b]):
            out[b][slots, cols] = dense[b][source, cols]
    return out.reshape(*problem.batch, problem.kept, problem.cols)


def _groups(problem: Problem, indices) -> Iterator[tuple[slice, np.ndarray, slice]]:
    """For each group: its columns, the sources of its slots, and those slots."""
    n, m = problem.pattern.n, problem.pattern.m
    length = problem.pattern.vector_length
    slot = np.arange(problem.kept)
    # Padding slots, those beyond the rows of a ragged last window, are the last ones.
    held = int(np.sum(slot // n * m + slot % n < problem.depth))
    for g in range(problem.groups):
        source = slot[:held] // n * m + indices[g, :held].astype(np.int64)
        yield slice(g * length, (g + 1) * length), source, slice(held)
