"""Three ways to train a network on handwritten digits, two of them sparse.

    python examples/train_digits.py
    python examples/train_digits.py --plot digits.png

The 1797 images of scikit-learn's digits, 8 x 8 pixels, go through a small MLP whose
hidden layers hold nearly all of its weights. Five seeds train at once, under `vmap`:

  dense        as ever;
  fine-tuned   the dense network, its hidden layers pruned in one shot and compressed;
               then only the kept values are trained on, the indices stay;
  STE, SR-STE  a dense master from the start: the forward pass is sparse, the gradient
               straight-through, and the indices are selected anew every 10 steps.

AdamW with weight decay trains all of them, in one and the same loop. Takes less than a
minute on two CPU cores. Needs ``pip install optax scikit-learn``, and matplotlib for
the plot.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jax_nm

HIDDEN, CLASSES = (256, 256, 256), 10
SPARSE = (1, 2)  # the layers between the hidden ones; first and last are small
PATTERNS = [jax_nm.Pattern(n, 32, vector_length=32) for n in (16, 8, 4)]
BATCH, RATE, WEIGHT_DECAY = 64, 2e-3, 1e-2
EVERY = 10  # steps between selections
SR_STE = 2e-4

Params = list[dict[str, Any]]
Batch = tuple[jax.Array, jax.Array]


def data() -> tuple[Batch, Batch]:
    """Images and labels: those to train on, and those held out."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32) / 16
    x, held_out_x, label, held_out_label = map(
        jnp.asarray,
        train_test_split(
            images, labels, test_size=500, stratify=labels, random_state=0
        ),
    )
    return (x, label), (held_out_x, held_out_label)


def init(key: jax.Array) -> Params:
    sizes = (64, *HIDDEN, CLASSES)
    draw = jax.nn.initializers.he_normal()
    return [
        {"kernel": draw(key, (depth, cols)), "bias": jnp.zeros(cols)}
        for key, depth, cols in zip(
            jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False
        )
    ]


def no_indices(params: Params) -> Params:
    """The structure of the parameters, with None in place of each."""
    return [{"kernel": None, "bias": None} for _ in params]


def select(params: Params, pattern: jax_nm.Pattern) -> Params:
    """Indices for the layers to be sparse, and None in place of everything else."""
    indices = no_indices(params)
    for i in SPARSE:
        kernel = params[i]["kernel"]
        indices[i]["kernel"] = jax_nm.select_indices(kernel, pattern)
    return indices


def compress(params: Params, indices: Params, pattern: jax_nm.Pattern) -> Params:
    """The network to deploy: an `NMArray` in place of each kernel with indices."""
    params = [dict(layer) for layer in params]
    for i in SPARSE:
        kernel, index = params[i]["kernel"], indices[i]["kernel"]
        params[i]["kernel"] = jax_nm.compress_at(kernel, index, pattern)
    return params


def forward(
    params: Params, indices: Params, x: jax.Array, pattern: jax_nm.Pattern
) -> jax.Array:
    *hidden, head = params
    for layer, index in zip(hidden, indices, strict=False):
        kernel, bias = layer["kernel"], layer["bias"]
        if isinstance(kernel, jax_nm.NMArray):
            x = jax_nm.spmm(x, kernel, bias, "relu")
        elif index["kernel"] is not None:
            x = jax_nm.spmm_ste(x, kernel, index["kernel"], pattern, bias, "relu")
        else:
            x = jax.nn.relu(x @ kernel + bias)
    return x @ head["kernel"] + head["bias"]


def accuracy(
    params: Params,
    indices: Params,
    pattern: jax_nm.Pattern,
    digits: tuple[Batch, Batch],
) -> jax.Array:
    """Of the held-out images, in per cent."""
    _, (x, label) = digits
    guess = jnp.argmax(forward(params, indices, x, pattern), axis=-1)
    return 100 * jnp.mean(guess == label)


def fit(
    params: Params,
    indices: Params,
    key: jax.Array,
    *,
    pattern: jax_nm.Pattern,
    epochs: int,
    digits: tuple[Batch, Batch],
    decay: float = 0.0,
) -> tuple[Params, Params, jax.Array]:
    """Trains; returns parameters, indices, and the accuracy after each epoch.

    Float leaves are what the optimizer sees. Indices are none of them: those of an
    `NMArray` stay in the static half, those of dense masters are a state of the loop.
    """
    (x, label), _ = digits
    per_epoch = len(x) // BATCH
    schedule = optax.cosine_decay_schedule(RATE, epochs * per_epoch)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    train, static = jax_nm.partition(params)

    def loss_of(params: Params, indices: Params, rows: jax.Array) -> jax.Array:
        logits = forward(params, indices, x[rows], pattern)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label[rows])
        penalty = jax_nm.sr_ste_penalty(params, indices, pattern, decay)
        return jnp.mean(entropy) + penalty

    def step(carry: Any, batch: Any) -> Any:
        train, state, indices = carry
        number, rows = batch
        indices = jax_nm.reselect_indices(
            train, indices, pattern, step=number, every=EVERY
        )
        params = jax_nm.combine(train, static)
        grads = jax_nm.grad(loss_of)(params, indices, rows)
        updates, state = optimizer.update(grads, state, train)
        return (optax.apply_updates(train, updates), state, indices), None

    def epoch(carry: Any, number: jax.Array) -> Any:
        order = jax.random.permutation(jax.random.fold_in(key, number), len(x))
        rows = order[: per_epoch * BATCH].reshape(per_epoch, BATCH)
        steps = number * per_epoch + jnp.arange(per_epoch)
        carry, _ = jax.lax.scan(step, carry, (steps, rows))
        train, _, indices = carry
        params = jax_nm.combine(train, static)
        return carry, accuracy(params, indices, pattern, digits)

    carry = (train, optimizer.init(train), indices)
    (train, _, indices), curve = jax.lax.scan(epoch, carry, jnp.arange(epochs))
    return jax_nm.combine(train, static), indices, curve


def report(name: str, accuracies: Any, epochs: str) -> None:
    accuracies = np.asarray(accuracies)
    spread = f"{accuracies.min():6.2f} to {accuracies.max():6.2f}"
    print(f"{name:18s} {accuracies.mean():6.2f}   {spread}   {epochs}", flush=True)


def plot(path: str, curves: dict[str, np.ndarray], start: dict[str, int]) -> None:
    """Mean and range over the seeds. A curve begins at epoch 0 if not in `start`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        epochs = start.get(name, 0) + 1 + np.arange(curve.shape[1])
        (line,) = axes.plot(epochs, curve.mean(0), label=name)
        low, high = curve.min(0), curve.max(0)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15)
    axes.set_xlabel("epoch")
    axes.set_ylabel("held-out accuracy, %")
    axes.set_ylim(80, 100)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Prints the table; returns the curves by name, ``[seeds, epochs]``."""
    parser = argparse.ArgumentParser(description="Sparse training on digits.")
    parser.add_argument("--plot", metavar="FILE", help="where to draw the 8:32 curves")
    parser.add_argument("--seeds", type=int, default=5, help="default: 5")
    parser.add_argument("--epochs", type=int, default=45, help="default: 45")
    options = parser.parse_args(argv)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; pip install matplotlib")
    epochs, more = options.epochs, -(-options.epochs // 3)

    start = time.perf_counter()
    digits = data()
    keys = jax.random.split(jax.random.key(0), (3, options.seeds))

    def train(params: Any, indices: Any, keys: Any, **how: Any) -> Any:
        run = functools.partial(fit, digits=digits, **how)
        return jax.jit(jax.vmap(run))(params, indices, keys)

    def test(params: Any, indices: Any, pattern: jax_nm.Pattern) -> Any:
        run = functools.partial(accuracy, pattern=pattern, digits=digits)
        return jax.jit(jax.vmap(run))(params, indices)

    curves = {}
    print("way                  mean     of the seeds     epochs")
    fresh = jax.vmap(init)(keys[0])
    none = no_indices(fresh)
    trained, _, curves["dense"] = train(
        fresh, none, keys[1], pattern=PATTERNS[0], epochs=epochs
    )
    report("dense", curves["dense"][:, -1], f"{epochs}")
    for pattern in PATTERNS:
        ratio = f"{pattern.n}:{pattern.m}"
        pruned = compress(trained, select(trained, pattern), pattern)
        report(f"{ratio} pruned", test(pruned, none, pattern), f"{epochs}")
        name = f"{ratio} fine-tuned"
        tuned, _, curves[name] = train(
            pruned, none, keys[2], pattern=pattern, epochs=more
        )
        report(name, curves[name][:, -1], f"{epochs} + {more}")
        jax_nm.validate(tuned[SPARSE[0]]["kernel"])

        for kind, decay in (("STE", 0.0), ("SR-STE", SR_STE)):
            name = f"{ratio} {kind}"
            indices = select(fresh, pattern)
            master, indices, curves[name] = train(
                fresh, indices, keys[1], pattern=pattern, epochs=epochs, decay=decay
            )
            report(name, curves[name][:, -1], f"{epochs}")
            deployed = compress(master, indices, pattern)
            jax_nm.validate(deployed[SPARSE[0]]["kernel"])
    print(f"{time.perf_counter() - start:.0f} s")

    curves = {name: np.asarray(curve) for name, curve in curves.items()}
    if options.plot:
        shown = {k: v for k, v in curves.items() if k == "dense" or k[:4] == "8:32"}
        plot(options.plot, shown, start={"8:32 fine-tuned": epochs})
    return curves


if __name__ == "__main__":
    main()
