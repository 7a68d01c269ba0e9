"""Prune a trained Flax NNX network to 8:32 and train the kept values further.

    python examples/finetune_nnx.py

A small network learns a synthetic regression task. Its hidden layers, where nearly all
weights are, are then pruned to a quarter by magnitude, which costs accuracy, and
fine-tuning with AdamW brings most of it back. Takes seconds on a CPU. Needs
``pip install optax`` and the ``[flax]`` extra of jax_nm.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jax_nm
from jax_nm.nnx import NMLinear

FEATURES, HIDDEN, TARGETS = 32, 256, 8
PATTERN = jax_nm.Pattern(8, 32, vector_length=32)


class MLP(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.third = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, TARGETS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.gelu(self.first(x))
        x = nnx.gelu(self.second(x))
        x = nnx.gelu(self.third(x))
        return self.head(x)


def task(key: jax.Array, samples: int) -> tuple[jax.Array, jax.Array]:
    """Inputs, ``[samples, FEATURES]``, and a smooth function of them, TARGETS wide."""
    teacher = jax.random.normal(jax.random.key(0), (FEATURES, 2 * TARGETS))
    x = jax.random.normal(key, (samples, FEATURES))
    a, b = jnp.split(x @ teacher / FEATURES**0.5, 2, axis=-1)
    return x, jnp.sin(a) * b


def loss_of(model: nnx.Module, x: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((model(x) - target) ** 2)


@nnx.jit
def step(
    model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array, target: jax.Array
) -> None:
    grads = nnx.grad(loss_of)(model, x, target)
    optimizer.update(model, grads)


def train(model: nnx.Module, steps: int, rate: float) -> None:
    schedule = optax.cosine_decay_schedule(rate, steps)
    # wrt=nnx.Param: the values are trained and decayed, the indices are no parameters.
    optimizer = nnx.Optimizer(
        model, optax.adamw(schedule, weight_decay=1e-4), wrt=nnx.Param
    )
    for key in jax.random.split(jax.random.key(1), steps):
        step(model, optimizer, *task(key, 256))


def main() -> None:
    held_out = task(jax.random.key(2), 4096)
    evaluate = nnx.jit(loss_of)

    model = MLP(rngs=nnx.Rngs(0))
    train(model, 400, 3e-3)
    print(f"dense               loss {evaluate(model, *held_out):.4f}")

    model.second = NMLinear.from_linear(model.second, PATTERN)
    model.third = NMLinear.from_linear(model.third, PATTERN)
    print(f"pruned to {PATTERN}   loss {evaluate(model, *held_out):.4f}")

    train(model, 400, 1e-3)
    print(f"fine-tuned          loss {evaluate(model, *held_out):.4f}")
    print(f"second layer: {model.second.weight}")


if __name__ == "__main__":
    main()
