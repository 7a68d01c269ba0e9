"""`Pattern`: its text form, its value semantics, and the arithmetic of slots."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_nm import Pattern

PATTERNS = [
    Pattern(2, 4, 8),
    Pattern(1, 1, 1),
    Pattern(4, 4, 3),
    Pattern(1, 5, 2),
    Pattern(3, 8, 128),
    Pattern(8, 32),
    Pattern(100, 256, 16),
    Pattern(256, 256, 1),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_text_round_trip(pattern):
    assert Pattern.parse(str(pattern)) == pattern
    assert eval(repr(pattern)) == pattern


def test_parse():
    assert Pattern.parse("8:32") == Pattern(8, 32, vector_length=128)
    assert Pattern.parse(" 2 : 4 : 1 ") == Pattern(2, 4, 1)


def test_value_semantics():
    assert Pattern(8, 32) == Pattern(8, 32, 128)
    assert Pattern(8, 32) != Pattern(8, 32, 64)
    assert hash(Pattern(8, 32)) == hash(Pattern(8, 32, vector_length=128))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pattern(8, 32).n = 4


@pytest.mark.parametrize("integer", [np.int64, np.uint8, jnp.int32])
def test_any_integer_becomes_an_int(integer):
    pattern = Pattern(integer(2), integer(4), integer(8))
    assert pattern == Pattern(2, 4, 8)
    assert {type(size) for size in dataclasses.astuple(pattern)} == {int}


def test_is_static_under_jit():
    traces = []

    @jax.jit(static_argnums=1)
    def scaled(x, pattern):
        traces.append(pattern)
        return x * pattern.n

    assert scaled(jnp.float32(2), Pattern(3, 4)) == 6
    scaled(jnp.float32(2), Pattern(3, 4, 128))
    assert traces == [Pattern(3, 4)]


def test_sparsity():
    assert Pattern(8, 32).sparsity == 0.75
    assert Pattern(4, 4).sparsity == 0


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("depth", [0, 1, 3, 4, 31, 32, 33, 257, 600])
def test_slots(pattern, depth):
    """Counts and padding, slot by slot from the definition."""
    windows = [
        range(first, min(first + pattern.m, depth))
        for first in range(0, depth, pattern.m)
    ]
    held = [min(pattern.n, len(rows)) for rows in windows]
    assert pattern.windows(depth) == len(windows)
    assert pattern.kept(depth) == len(windows) * pattern.n
    assert pattern.kept_per_window(depth).tolist() == held
    slots = [i < count for count in held for i in range(pattern.n)]
    assert pattern.is_slot(depth).tolist() == slots

    tail = depth % pattern.m
    for j, holds in enumerate(slots):
        padding = (
            0 < tail < pattern.n
            and j // pattern.n == depth // pattern.m
            and j % pattern.n >= tail
        )
        assert holds is not padding


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("cols", [0, 1, 7, 128, 129])
def test_groups(pattern, cols):
    length = pattern.vector_length
    assert pattern.groups(cols) == len({c // length for c in range(cols)})


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("depth", [1, 33, 256, 300])
@pytest.mark.usefixtures("strict")
def test_source_is_clamped(pattern, depth):
    """Any byte names a row of its own window."""
    kept = pattern.kept(depth)
    indices = np.random.default_rng(depth).integers(0, 256, (2, 3, kept), np.uint8)
    source = np.asarray(pattern.source(jnp.asarray(indices), depth))
    assert source.shape == indices.shape
    window = np.arange(kept) // pattern.n
    last = np.minimum((window + 1) * pattern.m, depth) - 1
    expected = np.minimum(window * pattern.m + indices, last)
    np.testing.assert_array_equal(source, expected)
