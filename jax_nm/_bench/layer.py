"""A decoder layer of a Llama, its weights random: dense and sparse, in one step each.

What a user sees of a kernel is a step of a model. A layer is here all of its products
with weights, its norms, gates and residuals; attention itself, which multiplies
activations, is left out: what its heads would give is q plus the k and v of their
group. A step runs several layers with weights of their own, so that none of them is
found in the cache, and its time is that of the device for one layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm._array import NMArray
from jax_nm._bench import arguments, machine, operands, report, timing
from jax_nm._bench.programs import ROTATED_BYTES, Program, on_gpu
from jax_nm._pattern import Pattern
from jax_nm._plan import explain
from jax_nm._spmm import spmm
from jax_nm._tree import grad


@dataclasses.dataclass(frozen=True)
class Model:
    """The widths of a decoder layer."""

    hidden: int
    queries: int  # of all heads together
    keys: int  # and of all groups that share keys and values
    inner: int  # of the feed-forward part

    def weights(self, part: str) -> dict[str, tuple[int, int]]:
        """(depth, cols) of each weight."""
        attention = {
            "q": (self.hidden, self.queries),
            "k": (self.hidden, self.keys),
            "v": (self.hidden, self.keys),
            "o": (self.queries, self.hidden),
        }
        mlp = {
            "gate": (self.hidden, self.inner),
            "up": (self.hidden, self.inner),
            "down": (self.inner, self.hidden),
        }
        return {"attention": attention, "mlp": mlp, "layer": attention | mlp}[part]


MODELS = {
    "llama-8b": Model(4096, 4096, 1024, 14336),
    "llama-70b": Model(8192, 8192, 1024, 28672),
    "tiny": Model(64, 64, 32, 160),
}
PARTS = ("mlp", "attention", "layer")
MAX_LAYERS = 8
# Of the results of one layer in bfloat16 against the same masked weights, dense. A
# result is rounded 4 times on its way, to 2^-9 of itself.
LARGEST_ERROR = 2**-6

Weights = dict[str, Any]


def forward(x: jax.Array, weights: Weights) -> jax.Array:
    """One layer, or the part of it that there are weights for."""
    if "q" in weights:
        h = _norm(x)
        q, k, v = (_product(h, weights[name]) for name in "qkv")
        heads = q + jnp.tile(k + v, q.shape[-1] // k.shape[-1])
        x = x + _product(heads, weights["o"])
    if "gate" in weights:
        h = _norm(x)
        gated = _product(h, weights["gate"], "silu") * _product(h, weights["up"])
        x = x + _product(gated, weights["down"])
    return x


def _norm(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean + 1e-6)).astype(x.dtype)


def _product(x: jax.Array, w: Any, activation: str | None = None) -> jax.Array:
    if isinstance(w, NMArray):
        return spmm(x, w, activation=activation)
    y = jnp.matmul(x, w)
    return y if activation is None else jax.nn.silu(y)


def step(x: jax.Array, layers: list[Weights]) -> jax.Array:
    for weights in layers:
        x = forward(x, weights)
    return x


def training_step(x: jax.Array, layers: list[Weights]) -> Any:
    """The gradients of x and of all weights; of sparse ones, of their values."""

    def loss(both: tuple[jax.Array, list[Weights]]) -> jax.Array:
        return jnp.mean(jnp.square(step(*both).astype(jnp.float32)))

    return grad(loss)((x, layers))


def measure(
    model: str,
    part: str,
    rows: int,
    patterns: Sequence[Pattern],
    train: bool,
    repeats: int,
) -> list[dict[str, Any]]:
    """A line of results for each pattern, beside one dense time."""
    stock = operands.Stock()
    shapes = MODELS[model].weights(part)
    programs = {
        pattern: _program(stock, shapes, rows, pattern, train)
        for pattern in (None, *patterns)
    }
    times = timing.measure(programs, repeats)
    results = []
    for pattern in patterns:
        kernels = {
            name: explain(
                jax.ShapeDtypeStruct((rows, depth), "bfloat16"),
                _abstract(pattern, depth, cols),
                activation="silu" if name == "gate" else None,
            ).kernel
            for name, (depth, cols) in shapes.items()
        }
        results.append(
            {
                "model": model,
                "part": part,
                "rows": rows,
                "n": pattern.n,
                "m": pattern.m,
                "vector_length": pattern.vector_length,
                "dtype": "bfloat16",
                "train": train,
                "kernels": kernels,
                "ms": times.ms[pattern],
                "dense_ms": times.ms[None],
                "relative_error": _error(stock, shapes, rows, pattern),
                "layers": programs[pattern].calls,
                "dense_layers": programs[None].calls,
                "timing": times.timing,
                "sm_clock_mhz": times.sm_clock_mhz,
            }
        )
    return results


def _abstract(pattern: Pattern, depth: int, cols: int) -> NMArray:
    kept, groups = pattern.kept(depth), pattern.groups(cols)
    return NMArray(
        jax.ShapeDtypeStruct((kept, cols), "bfloat16"),
        jax.ShapeDtypeStruct((groups, kept), "uint8"),
        pattern,
        depth,
        cols,
    )


def _program(
    stock: operands.Stock,
    shapes: dict[str, tuple[int, int]],
    rows: int,
    pattern: Pattern | None,
    train: bool,
) -> Program:
    elements = sum(
        (depth if pattern is None else pattern.kept(depth)) * cols
        for depth, cols in shapes.values()
    )
    fewest = -(-ROTATED_BYTES // (2 * elements)) if on_gpu() else 2
    count = max(2, min(MAX_LAYERS, fewest))
    layers = _layers(stock, shapes, pattern, count)
    x = stock.numbers("x", (rows, _hidden(shapes)), "bfloat16", False, 1)[0]
    compiled = jax.jit(training_step if train else step).lower(x, layers).compile()
    return Program(compiled, [(x, layers)], count)  # type: ignore[list-item]


def _hidden(shapes: dict[str, tuple[int, int]]) -> int:
    return next(iter(shapes.values()))[0]


def _layers(
    stock: operands.Stock,
    shapes: dict[str, tuple[int, int]],
    pattern: Pattern | None,
    count: int,
) -> list[Weights]:
    layers: list[Weights] = [{} for _ in range(count)]
    for place, (name, (depth, cols)) in enumerate(shapes.items()):
        height = depth if pattern is None else pattern.kept(depth)
        # Weights of one shape are those of different numbers.
        first = count * place
        arrays = stock.numbers(
            "values", (height, cols), "bfloat16", False, first + count
        )[first:]
        # Sums of `height` products of variance 1 have variance 1 again.
        arrays = [_scaled(a, height) for a in arrays]
        if pattern is None:
            weights: list[Any] = arrays
        else:
            indices = stock.indices(pattern, depth, cols, count)
            weights = [
                NMArray(values, index, pattern, depth, cols)
                for values, index in zip(arrays, indices, strict=True)
            ]
        for layer, weight in zip(layers, weights, strict=True):
            layer[name] = weight
    return layers


def _scaled(a: jax.Array, height: int) -> jax.Array:
    return (a / np.sqrt(height)).astype(a.dtype)


def _error(
    stock: operands.Stock,
    shapes: dict[str, tuple[int, int]],
    rows: int,
    pattern: Pattern,
) -> float:
    """|sparse - dense| / |dense|, the dense layer on the expanded weights."""
    (weights,) = _layers(stock, shapes, pattern, 1)
    dense = {name: w.todense() for name, w in weights.items()}
    x = stock.numbers("x", (rows, _hidden(shapes)), "bfloat16", False, 1)[0]
    got, expected = (
        np.asarray(jax.jit(forward)(x, w), np.float64) for w in (weights, dense)
    )
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# The command.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", choices=MODELS, default="llama-8b", help="default: %(default)s"
    )
    parser.add_argument(
        "--part", choices=PARTS, default="layer", help="default: %(default)s"
    )
    parser.add_argument(
        "--rows",
        type=arguments.positive,
        nargs="+",
        default=[1, 4, 16, 64, 512, 4096],
        help="tokens in a step (default: %(default)s)",
    )
    parser.add_argument(
        "--pattern",
        type=arguments.pattern,
        nargs="+",
        default=[Pattern(n, 32) for n in (16, 8, 4)],
        metavar="N:M[:L]",
        help="default: 16:32 8:32 4:32",
    )
    parser.add_argument(
        "--train", action="store_true", help="all gradients, and not the results"
    )
    parser.add_argument(
        "--repeats", type=arguments.positive, default=7, help="default: 7"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="save here")
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE.png", help="draw the speed-ups here"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints and saves; 1 if a result is wrong, 2 for bad usage."""
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        print(
            "jax-nm layer: --plot needs matplotlib, pip install 'jax_nm[bench]'",
            file=sys.stderr,
        )
        return 2
    meta = machine.metadata()
    print(HEADER)
    results: list[dict[str, Any]] = []
    for rows in args.rows:
        found = measure(
            args.model, args.part, rows, args.pattern, args.train, args.repeats
        )
        print(*map(line, found), sep="\n", flush=True)
        results += found
        if args.json is not None:
            report.save(args.json, meta, results)
    if args.plot is not None:
        plot(args.plot, meta, results)
    wrong = sum(not point["relative_error"] <= LARGEST_ERROR for point in results)
    if wrong:
        print(f"{wrong} results are not those of the dense layer", file=sys.stderr)
    return 1 if wrong else 0


HEADER = (
    f"{'model':11}{'part':11}{'rows':>6}  {'pattern':10}{'ms':>9}{'dense ms':>10}"
    f"{'x dense':>9}{'error':>9}  kernels"
)


def line(point: dict[str, Any]) -> str:
    """A line of the table: ratios above 1 are faster than dense."""
    pattern = f"{point['n']}:{point['m']}:{point['vector_length']}"
    kernels = ", ".join(dict.fromkeys(point["kernels"].values()))
    return (
        f"{point['model']:11}{point['part']:11}{point['rows']:>6}  {pattern:10}"
        f"{point['ms']:>9.4f}{point['dense_ms']:>10.4f}"
        f"{point['dense_ms'] / point['ms']:>9.2f}{point['relative_error']:>9.4f}"
        f"  {kernels}"
    )


def plot(path: pathlib.Path, meta: dict[str, Any], points: Iterable[Any]) -> None:
    """Where sparse overtakes dense: the speed-up over the tokens in a step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def kind(point: dict[str, Any]) -> tuple[int, int, int]:
        return point["n"], point["m"], point["vector_length"]

    points = sorted(points, key=lambda p: (kind(p), p["rows"]))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for _, mine in itertools.groupby(points, key=kind):
        curve = list(mine)
        p = curve[0]
        axes.plot(
            [p["rows"] for p in curve],
            [p["dense_ms"] / p["ms"] for p in curve],
            "o-",
            label=f"{p['n']}:{p['m']}, L = {p['vector_length']}",
        )
    axes.axhline(1, color="#b03a2e", lw=1, label="dense XLA")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("tokens in a step")
    axes.set_ylabel("speed-up over dense")
    first = points[0]
    what = "training step" if first["train"] else "step"
    axes.set_title(
        f"{first['model']}, {first['part']}, {what}: jax_nm {meta['jax_nm']} on "
        f"{meta['device']}",
        fontsize=10,
    )
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
