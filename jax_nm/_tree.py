"""Training trees that mix float leaves with indices: split, rejoin, differentiate."""

from __future__ import annotations

import functools
import operator
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

    def pick(path: Any, a: Any, b: Any) -> Any:
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

    Raises:
      TypeError: If `fun` is not callable, `argnums` holds anything but integers, or, in
        the call, an argument to differentiate has no float leaf.
      ValueError: If `argnums` names no argument of the call, or one twice.
    """
    return _value_and_grad("value_and_grad", fun, argnums, has_aux)


def _value_and_grad(
    name: str, fun: Callable, argnums: int | Sequence[int], has_aux: bool
) -> Callable:
    if not callable(fun):
        raise TypeError(
            f"{name}: fun must be callable, got {type(fun).__name__}; pass the scalar "
            "function to differentiate"
        )
    single = not isinstance(argnums, Sequence) or isinstance(argnums, str)
    listed: Any = (argnums,) if single else argnums
    try:
        places = tuple(operator.index(place) for place in listed)
    except TypeError:
        raise TypeError(
            f"{name}: argnums must be an integer or a sequence of integers, got "
            f"{argnums!r}; it names positional arguments of fun by their place"
        ) from None

    @functools.wraps(fun)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for place in places:
            if not -len(args) <= place < len(args):
                raise ValueError(
                    f"{name}: argnums must name positional arguments of the call, got "
                    f"argnums={argnums} with {len(args)} of them; pass what is to be "
                    "differentiated by position"
                )
        numbers = [place % len(args) for place in places]
        if len(set(numbers)) < len(numbers):
            raise ValueError(
                f"{name}: argnums must name each argument once, got {argnums}; drop "
                "the repeated one"
            )
        halves = {number: partition(args[number]) for number in numbers}
        for number, (train, static) in halves.items():
            if jax.tree.leaves(static) and not jax.tree.leaves(train):
                raise TypeError(
                    f"{name}: argument {number} must hold a float leaf to "
                    "differentiate, got none; convert it to float or drop it from "
                    "argnums"
                )

        def of_train(*trains: Any) -> Any:
            whole = list(args)
            for number, train in zip(numbers, trains, strict=True):
                whole[number] = combine(train, halves[number][1])
            return fun(*whole, **kwargs)

        trains = [halves[number][0] for number in numbers]
        value, grads = jax.value_and_grad(
            of_train, tuple(range(len(trains))), has_aux=has_aux
        )(*trains)
        return value, grads[0] if single else grads

    return wrapped


def grad(
    fun: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable:
    """`jax.grad` that differentiates the float leaves only; see `value_and_grad`."""
    with_value = _value_and_grad("grad", fun, argnums, has_aux)

    @functools.wraps(fun)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
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
