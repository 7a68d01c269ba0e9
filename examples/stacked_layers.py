"""Scan over a stack of sparse layers in plain JAX, and train it.

    python examples/stacked_layers.py

An `NMArray` is a pytree whose leading axes are batch axes, so a stack of weights goes
through `jax.lax.scan` like any array: one layer is compiled, whatever the depth of the
network. `jax_nm.value_and_grad` differentiates the float leaves of a tree that also
holds indices; `partition` and `combine` keep the indices out of the optimizer. Takes
seconds on a CPU. Needs ``pip install optax``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jax_nm

LAYERS, FEATURES = 6, 128
PATTERN = jax_nm.Pattern(8, 32, vector_length=32)

Params = dict[str, Any]


def init(key: jax.Array) -> Params:
    kernel = jax.random.normal(key, (LAYERS, FEATURES, FEATURES)) / FEATURES**0.5
    return {
        "w": jax_nm.compress(kernel, PATTERN),
        "bias": jnp.zeros((LAYERS, FEATURES)),
    }


def forward(params: Params, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, params: Params) -> tuple[jax.Array, None]:
        return x + jax_nm.spmm(x, params["w"], params["bias"], activation="gelu"), None

    return jax.lax.scan(jax.checkpoint(layer), x, params)[0]


def loss_of(params: Params, x: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((forward(params, x) - target) ** 2)


def main() -> None:
    params = init(jax.random.key(0))
    print(f"the stack: {params['w']}")
    train, static = jax_nm.partition(params)
    optimizer = optax.adamw(1e-3, weight_decay=1e-4)
    state = optimizer.init(train)

    @jax.jit
    def step(train: Params, state: Any, x: jax.Array, target: jax.Array) -> Any:
        params = jax_nm.combine(train, static)
        loss, grads = jax_nm.value_and_grad(loss_of)(params, x, target)
        updates, state = optimizer.update(grads, state, train)
        return loss, optax.apply_updates(train, updates), state

    x = jax.random.normal(jax.random.key(1), (512, FEATURES))
    target = jnp.roll(x, 1, axis=-1) * x
    for i in range(201):
        loss, train, state = step(train, state, x, target)
        if i % 50 == 0:
            print(f"step {i:3d}   loss {loss:.4f}")
    jax_nm.validate(jax_nm.combine(train, static)["w"])


if __name__ == "__main__":
    main()
