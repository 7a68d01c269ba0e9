"""The pattern of an N:M-sparse weight and the arithmetic of its slots."""

from __future__ import annotations

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np

MAX_M = 256  # an offset inside a window is one byte


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A vector-wise N:M pattern.

    In every window of ``m`` consecutive reduction indices, each group of
    ``vector_length`` consecutive columns keeps exactly ``n`` row-vectors.

    Args:
      n: Vectors kept per window and group, ``1 <= n <= m``.
      m: Window length along the reduction axis, at most 256.
      vector_length: Columns that share one choice of kept rows (L), at least 1.

    Raises:
      TypeError: If an argument is not an integer.
      ValueError: If an argument is out of range.

    Source: NM-SpMM, arXiv 2503.01253, section 2.

    >>> Pattern(8, 32, vector_length=128)
    Pattern(n=8, m=32, vector_length=128)
    >>> str(Pattern.parse("8:32"))
    '8:32:128'
    """

    n: int
    m: int
    vector_length: int = 128

    def __post_init__(self) -> None:
        for name in ("n", "m", "vector_length"):
            value = getattr(self, name)
            try:
                if isinstance(value, bool):
                    raise TypeError
                value = operator.index(value)
            except TypeError:
                fix = "patterns are static, pass a concrete int"
                if isinstance(value, str):
                    fix = "use Pattern.parse for a pattern written as text"
                raise TypeError(
                    f"Pattern: {name} must be a Python integer, got {value!r} of type "
                    f"{type(value).__name__}; {fix}"
                ) from None
            object.__setattr__(self, name, value)
        if not 1 <= self.m <= MAX_M:
            raise ValueError(
                f"Pattern: m must be between 1 and {MAX_M}, because an offset inside a "
                f"window is stored in one byte, got m={self.m}; use a shorter window"
            )
        if not 1 <= self.n <= self.m:
            raise ValueError(
                f"Pattern: n must be between 1 and m, got n={self.n} with m={self.m}; "
                "n counts the vectors kept out of m"
            )
        if self.vector_length < 1:
            raise ValueError(
                "Pattern: vector_length must be at least 1, got "
                f"{self.vector_length}; 1 is element-wise sparsity"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads ``"n:m"`` (vector length 128) or ``"n:m:vector_length"``."""
        if not isinstance(text, str):
            raise TypeError(
                "Pattern.parse: text must be a string such as '8:32:128', got "
                f"{text!r}; write Pattern(n, m, vector_length) for numbers"
            )
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(p.strip().isdecimal() for p in parts):
            raise ValueError(
                "Pattern.parse: text must read 'n:m' or 'n:m:vector_length', such as "
                f"'8:32:128', got {text!r}; each part is an unsigned decimal"
            )
        return cls(*(int(part) for part in parts))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}:{self.vector_length}"

    @property
    def sparsity(self) -> float:
        """The fraction of weights that is dropped, ``1 - n / m``."""
        return 1 - self.n / self.m

    def windows(self, depth: int) -> int:
        """Windows along the reduction axis, ``ceil(depth / m)``."""
        return -(-depth // self.m)

    def kept(self, depth: int) -> int:
        """Rows of the compressed matrix, ``ceil(depth / m) * n``."""
        return self.windows(depth) * self.n

    def groups(self, cols: int) -> int:
        """Column groups, ``ceil(cols / vector_length)``."""
        return -(-cols // self.vector_length)

    def kept_per_window(self, depth: int) -> np.ndarray:
        """int [windows]: slots that hold a vector, ``min(n, rows of the window)``."""
        rows = np.minimum(self.m, depth - self.m * np.arange(self.windows(depth)))
        return np.minimum(self.n, rows)

    def is_slot(self, depth: int) -> np.ndarray:
        """bool [kept]: False for the padding slots of a ragged last window."""
        held = self.kept_per_window(depth)
        return (np.arange(self.n) < held[:, None]).reshape(-1)

    def source(self, indices: jax.Array, depth: int) -> jax.Array:
        """int32 [..., groups, kept]: the reduction index that each slot reads.

        ``source(g, j) = (j // n) * m + indices[g, j]``, clamped to the window and to
        ``depth`` so that no byte can read out of bounds.
        """
        window = np.arange(self.kept(depth), dtype=np.int32) // self.n
        base = jnp.broadcast_to(window * self.m, indices.shape)
        offset = jnp.minimum(indices.astype(jnp.int32), self.m - 1)
        return jnp.minimum(base + offset, max(depth - 1, 0))
