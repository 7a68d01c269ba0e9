"""Training trees that mix float leaves with indices: split, rejoin, differentiate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def partition(tree: Any) -> tuple[Any, Any]:
    """Splits a pytree into its float leaves and the rest.

    Returns:
      ``(train, static)``, both of the tree's structure: `train` has None in place of
      every leaf that is not a floating (or complex) array or number, `static` has None
      in place of the others. Give `train` to the optimizer.

    >>> import jax.numpy as jnp
    >>> partition({"w": 1.0, "step": 3})
    ({'step': None, 'w': 1.0}, {'step': 3, 'w': None})
    """
    train = jax.tree.map(lambda leaf: leaf if _is_float(leaf) else None, tree)
    static = jax.tree.map(lambda leaf: None if _is_float(leaf) else leaf, tree)
    return train, static


def combine(train: Any, static: Any) -> Any:
    """Rejoins what `partition` split.

    Raises:
      ValueError: If the two trees have different structures, or both hold a leaf in the
        same place.
    """

    def pick(path, a, b):
        if a is not None and b is not None:
            raise ValueError(
                "combine: train and static must not both hold a leaf at "
                f"{jax.tree_util.keystr(path)}; pass the two halves that partition made"
            )
        return b if a is None else a

    try:
        return jax.tree_util.tree_map_with_path(
            pick, train, static, is_leaf=lambda leaf: leaf is None
        )
    except ValueError as error:
        if str(error).startswith("combine:"):
            raise
        raise ValueError(
            "combine: train and static must have the same structure; pass the two "
            f"halves that partition made of one tree ({error})"
        ) from error


def value_and_grad(
    fun: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable:
    """`jax.value_and_grad` that differentiates the float leaves only.

    Where `jax.value_and_grad` raises on the uint8 indices of an `NMArray`, this returns
    gradients of the arguments' structure with None in place of such leaves, which is
    what `partition` makes of the parameters and optax accepts beside it.

    Args:
      fun: A scalar function.
      argnums: The positional argument(s) to differentiate.
      has_aux: Whether `fun` returns ``(value, aux)``.
    """
    if not callable(fun):
        raise TypeError(
            f"value_and_grad: fun must be callable, got {type(fun).__name__}"
        )
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fun)
    def wrapped(*args, **kwargs):
        for number in numbers:
            if not -len(args) <= number < len(args):
                raise ValueError(
                    f"value_and_grad: argnums={argnums} needs a positional argument at "
                    f"place {number}, got {len(args)} positional arguments"
                )
        halves = {number: partition(args[number]) for number in numbers}

        def of_train(*trains):
            whole = list(args)
            for number, train in zip(numbers, trains, strict=True):
                whole[number] = combine(train, halves[number][1])
            return fun(*whole, **kwargs)

        places = tuple(range(len(numbers)))
        value, grads = jax.value_and_grad(of_train, places, has_aux=has_aux)(
            *(halves[number][0] for number in numbers)
        )
        return value, grads[0] if isinstance(argnums, int) else grads

    return wrapped


def grad(
    fun: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable:
    """`jax.grad` that differentiates the float leaves only; see `value_and_grad`."""
    with_value = value_and_grad(fun, argnums, has_aux)

    @functools.wraps(fun)
    def wrapped(*args, **kwargs):
        value, grads = with_value(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return wrapped


def _is_float(leaf: Any) -> bool:
    if isinstance(leaf, (bool, int)):
        return False
    if isinstance(leaf, (float, complex)):
        return True
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
