"""What both Flax layers share: the import, a fresh draw, the name of the indices."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

try:
    from flax import linen as linen
    from flax import nnx as nnx
except ImportError as error:
    raise ImportError(
        "jax_nm.nnx and jax_nm.linen need Flax; install it with "
        "pip install 'jax_nm[flax]'"
    ) from error

from jax_nm._array import NMArray
from jax_nm._pattern import Pattern
from jax_nm._prune import compress


def fresh(kernel: Any, pattern: Pattern) -> NMArray:
    """A dense draw as a sparse one: pruned by magnitude, scaled by ``sqrt(m / n)``.

    Rows kept at random would leave n / m of the variance of a sum of products; the
    scale gives it back.
    """
    w = compress(kernel, pattern)
    scale = math.sqrt(pattern.m / pattern.n)
    return dataclasses.replace(w, values=w.values * scale)


def index_name(pattern: Pattern, depth: int) -> str:
    """The name of a layer's indices in its state, such as ``indices_8_32_128_4096``.

    Shapes alone do not tell patterns apart: 8:32 and 4:16 of one kernel have leaves of
    equal shapes and different meanings. With n, m, vector_length and depth in the name,
    no checkpoint of one format fits a layer of another.
    """
    return f"indices_{pattern.n}_{pattern.m}_{pattern.vector_length}_{depth}"


def check_activation(layer: str, activation: Any, module: type) -> None:
    """Refuses a Flax module, whose own parameters a static callable would freeze."""
    if isinstance(activation, module):
        raise TypeError(
            f"{layer}: activation must be a string or a function without parameters, "
            f"got the module {type(activation).__name__}; call it on the result"
        )
