"""Operands that are cheap to make: what they hold matters less than where they lie."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout

from jax_nm._pattern import Pattern

ROLES = ("x", "values", "bias", "dy")  # a seed is of a role and a number
_SUBSETS = 4096  # random choices of n out of m that the indices are drawn from


def format_of(ndim: int, feature_major: bool) -> Format:
    """Rows contiguous, or JAX's default layout."""
    order = tuple(range(ndim))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return Format(Layout(order[::-1] if feature_major else order), sharding)


@functools.cache
def filler(
    shape: tuple[int, ...], dtype: str, feature_major: bool
) -> Callable[[np.uint32], jax.Array]:
    """A compiled program: seed -> numbers of mean 0 and variance 1, almost normal.

    The sum of the four bytes of a hash (the finalizer of MurmurHash3) of seed and
    place. It compiles in a fraction of the time of `jax.random.normal`, and one program
    serves every array of a shape.
    """

    def fill(seed: jax.Array) -> jax.Array:
        place = seed * np.uint32(0x9E3779B1)
        for axis in range(len(shape)):
            stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
            place = place + stride * jax.lax.broadcasted_iota(np.uint32, shape, axis)
        bits = place ^ (place >> 16)
        bits = bits * np.uint32(0x85EBCA6B)
        bits = bits ^ (bits >> 13)
        bits = bits * np.uint32(0xC2B2AE35)
        bits = bits ^ (bits >> 16)
        total = sum((bits >> shift) & 255 for shift in (0, 8, 16, 24))
        deviation = math.sqrt(4 * (256**2 - 1) / 12)
        centred = jnp.asarray(total, jnp.float32) - 4 * 255 / 2
        return (centred / deviation).astype(dtype)

    jitted = jax.jit(fill, out_shardings=format_of(len(shape), feature_major))
    return jitted.lower(jax.ShapeDtypeStruct((), np.uint32)).compile()


def draw_indices(pattern: Pattern, depth: int, cols: int, count: int) -> np.ndarray:
    """uint8 [count, groups, kept]: valid random indices of `count` weights."""
    rng = np.random.default_rng(pattern.n)
    windows, tail = pattern.windows(depth), depth % pattern.m
    choice = rng.integers(0, _SUBSETS, (count, pattern.groups(cols), windows))
    offsets = _subsets(pattern.n, pattern.m)[choice]
    if tail:
        held = min(pattern.n, tail)
        last = _subsets(held, tail)[choice[..., -1]]
        offsets[..., -1, :held] = last
        offsets[..., -1, held:] = last[..., -1:]  # padding slots
    return offsets.reshape(count, pattern.groups(cols), pattern.kept(depth))


@functools.cache
def _subsets(n: int, m: int) -> np.ndarray:
    """uint8 [_SUBSETS, n]: random choices of n out of m offsets, ascending."""
    order = np.random.default_rng(m).random((_SUBSETS, m)).argsort(axis=1)
    return np.sort(order[:, :n], axis=1).astype(np.uint8)


class Stock:
    """The arrays of one session, made on demand and shared between its programs.

    An array depends on its role, shape and number alone, not on its layout: programs in
    both layouts compute the same results.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple, list[jax.Array]] = {}

    def numbers(
        self, role: str, shape: tuple[int, ...], dtype: str, feature_major: bool, n: int
    ) -> list[jax.Array]:
        arrays = self._arrays.setdefault((role, shape, dtype, feature_major), [])
        fill = filler(shape, dtype, feature_major)
        for number in range(len(arrays), n):
            arrays.append(fill(np.uint32(ROLES.index(role) << 16 | number)))
        return arrays[:n]

    def indices(
        self, pattern: Pattern, depth: int, cols: int, n: int
    ) -> list[jax.Array]:
        key: tuple[Any, ...] = (pattern, depth, cols)
        arrays = self._arrays.get(key, [])
        if len(arrays) < n:
            place = jax.local_devices()[0]
            drawn = draw_indices(pattern, depth, cols, n)
            arrays = self._arrays[key] = [jax.device_put(one, place) for one in drawn]
        return arrays[:n]
