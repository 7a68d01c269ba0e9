"""What every public function asks of its arrays: kind, dtype, and whole weights.

Each message names the argument, the rule, what was got, and the fix. Only types, shapes
and dtypes are looked at: all of this works on tracers and costs an eager call little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm._pattern import Pattern

if TYPE_CHECKING:
    from jax_nm._array import NMArray

SUPPORTED = ("float32", "bfloat16", "float16", "float64")
SUPPORTED_TEXT = f"{', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]}"

# Whether a precision asks for the accuracy of float32.
PRECISIONS = {
    None: False,
    "default": False,
    "high": False,
    "tensorfloat32": False,
    "highest": True,
    "float32": True,
    jax.lax.Precision.DEFAULT: False,
    jax.lax.Precision.HIGH: False,
    jax.lax.Precision.HIGHEST: True,
}


def check_array(function: str, name: str, a: Any, abstract: bool = False) -> Any:
    """An array argument as a JAX array, or the error that says what else it was.

    With `abstract`, a ``ShapeDtypeStruct`` is returned as it is.
    """
    kind = type(a).__name__
    if hasattr(a, "todense"):
        raise TypeError(
            f"{function}: {name} must be a dense array, got {kind}; pass "
            f"{name}.todense()"
        )
    if not hasattr(a, "shape") or not hasattr(a, "dtype"):
        raise TypeError(
            f"{function}: {name} must be an array, got {kind}; convert it with "
            "jnp.asarray"
        )
    if isinstance(a, jax.ShapeDtypeStruct):
        if abstract:
            return a
        raise TypeError(
            f"{function}: {name} must be an array, got {kind}; only explain takes "
            "shapes in place of arrays, elsewhere use jax.eval_shape"
        )
    try:
        return jnp.asarray(a)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{function}: {name} must be an array that JAX can hold, got dtype "
            f"{a.dtype} in {kind}; convert it with jnp.asarray"
        ) from error


def is_supported(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.name in SUPPORTED


def check_dtype(function: str, name: str, dtype: Any, fix: str) -> np.dtype:
    """An argument that names a dtype, as that dtype."""
    try:
        target = jnp.dtype(dtype)
    except TypeError:
        target = None
    if not is_supported(target):
        raise TypeError(
            f"{function}: {name} must be {SUPPORTED_TEXT}, got {dtype!r}; {fix}"
        )
    return np.dtype(target)


def check_floating(function: str, name: str, dtype: Any) -> None:
    if not is_supported(dtype):
        raise TypeError(
            f"{function}: {name} must have dtype {SUPPORTED_TEXT}, got {dtype}; cast "
            "it with astype"
        )


def check_leaves(function: str, w: NMArray, abstract: bool = False) -> None:
    """Raises unless `w` has static fields and leaves of the right kind and rank."""
    if not isinstance(w.pattern, Pattern):
        raise TypeError(
            f"{function}: w.pattern must be a jax_nm.Pattern, got {w.pattern!r}; build "
            "w with jax_nm.compress"
        )
    for name in ("depth", "cols"):
        size = getattr(w, name)
        if not isinstance(size, (int, np.integer)) or size < 0:
            raise TypeError(
                f"{function}: w.{name} must be a static integer >= 0, got {size!r}; "
                "build w with jax_nm.compress"
            )
    for name in ("values", "indices"):
        leaf = getattr(w, name)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{function}: w.{name} must be an array, got {leaf!r}; after "
                "jax_nm.partition, rebuild w with jax_nm.combine before using it"
            )
        if isinstance(leaf, jax.ShapeDtypeStruct) and not abstract:
            raise TypeError(
                f"{function}: w.{name} must be an array, got ShapeDtypeStruct; only "
                "explain takes shapes in place of arrays, elsewhere use jax.eval_shape"
            )
        if len(leaf.shape) < 2:
            raise ValueError(
                f"{function}: w.{name} must have at least 2 axes, got shape "
                f"{tuple(leaf.shape)}; build w with jax_nm.compress"
            )
    check_floating(function, "w.values", w.values.dtype)
    if w.indices.dtype != jnp.uint8:
        raise TypeError(
            f"{function}: w.indices must be uint8, got {w.indices.dtype}; offsets "
            "inside a window fit one byte, cast them with astype(jnp.uint8)"
        )
    if w.values.shape[:-2] != w.indices.shape[:-2]:
        raise ValueError(
            f"{function}: w.values and w.indices must share their leading axes, got "
            f"{tuple(w.values.shape)} and {tuple(w.indices.shape)}; build w with "
            "jax_nm.compress"
        )


def check_whole(function: str, w: NMArray) -> None:
    """Raises unless the leaves of `w` have the shapes that its static fields say."""
    check_leaves(function, w)
    pattern, kept = w.pattern, w.pattern.kept(w.depth)
    expected = {"values": (kept, w.cols), "indices": (pattern.groups(w.cols), kept)}
    for name, matrix in expected.items():
        shape, got = (*w.batch_shape, *matrix), tuple(getattr(w, name).shape)
        if got != shape:
            raise ValueError(
                f"{function}: w.{name} must have shape {shape} for pattern {pattern}, "
                f"depth {w.depth} and cols {w.cols}, got {got}; build w with "
                "jax_nm.compress, and compress a slice of the kernel instead of "
                "slicing w"
            )


def check_precision(function: str, precision: Any) -> bool:
    """Whether the accuracy of float32 is asked for."""
    if precision is None:
        config: Any = jax.config  # the stubs of jax 0.10 do not name its options
        precision = config.jax_default_matmul_precision
    key = precision.lower() if isinstance(precision, str) else precision
    try:
        return PRECISIONS[key]
    except (KeyError, TypeError):
        raise ValueError(
            f"{function}: precision must be jax.lax.Precision.DEFAULT, HIGH or "
            "HIGHEST, or 'default', 'high', 'tensorfloat32', 'highest' or 'float32', "
            f"got {precision!r}; change the argument, or jax.default_matmul_precision "
            "where it is None"
        ) from None
