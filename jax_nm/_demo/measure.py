"""Prunes the encoder and judges it against the dense one on held-out text."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import jax_nm
from jax_nm._demo import encoder
from jax_nm._demo.encoder import Params, Shape
from jax_nm._demo.error import DemoError

# Sentences and cosines published with the model (sbert.net, "Using Sentence
# Transformers Models", all-MiniLM-L6-v2), printed there with four digits.
SENTENCES = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
)
PUBLISHED = {(0, 1): 0.6660, (0, 2): 0.1046, (1, 2): 0.1411}
_LAST_DIGIT = 1e-4

_grams = jax.jit(encoder.grams, static_argnames="shape")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a way to prune, and what it costs and keeps."""

    pattern: str
    vector_length: int
    method: str
    megabytes: float
    fraction: float
    dense_ms: float
    sparse_ms: float
    cosine: float
    same_neighbour: float


@dataclasses.dataclass(frozen=True)
class Setting:
    """The dense encoder and the texts, as batches of token ids of one shape."""

    params: Params
    shape: Shape
    calibration: list[jax.Array]
    judging: list[jax.Array]


def check_dense(params: Params, shape: Shape, tokens: np.ndarray) -> list[str]:
    """Compares the dense encoder with the published similarities.

    Args:
      params: the dense encoder's.
      shape: head count and epsilon.
      tokens: int32 ``[3, length]``, of `SENTENCES`.

    Returns:
      one line of text per compared pair.

    Raises:
      DemoError: if a similarity differs in the published digits.
    """
    # TF32, a GPU's default for float32, would spoil the fourth digit.
    with jax.default_matmul_precision("highest"):
        embeddings = encoder.encode(params, tokens, shape)
    similarity = np.asarray(jnp.matmul(embeddings, embeddings.T, precision="highest"))
    lines = [
        f"{SENTENCES[a]!r} ~ {SENTENCES[b]!r}: {similarity[a, b]:.4f}, "
        f"published {published:.4f}"
        for (a, b), published in PUBLISHED.items()
    ]
    worst = max(abs(similarity[pair] - value) for pair, value in PUBLISHED.items())
    if not worst <= _LAST_DIGIT:
        raise DemoError(
            "the dense encoder does not reproduce the model's published similarities, "
            "so nothing measured with it would mean anything:\n" + "\n".join(lines)
        )
    return lines


def collect_grams(setting: Setting) -> list[dict[str, jax.Array]]:
    """Sums `encoder.grams` over the calibration batches."""
    parts = (_grams(setting.params, t, setting.shape) for t in setting.calibration)
    total = next(parts)
    for part in parts:
        total = jax.tree.map(jnp.add, total, part)
    return jax.block_until_ready(total)


def prune(
    params: Params,
    pattern: jax_nm.Pattern,
    grams: list[dict[str, jax.Array]] | None = None,
) -> Params:
    """Compresses every linear layer: by magnitude, or calibrated with `grams`."""
    layers = []
    for i, layer in enumerate(params["layers"]):
        pruned = dict(layer)
        for name in encoder.LINEAR:
            gram = None if grams is None else grams[i][name]
            kernel = jax_nm.compress(layer[name]["kernel"], pattern, gram=gram)
            pruned[name] = {**layer[name], "kernel": kernel}
        layers.append(pruned)
    return {**params, "layers": layers}


def linear_bytes(params: Params) -> int:
    """Returns what the kernels of the encoder's linear layers occupy."""
    return sum(
        layer[name]["kernel"].nbytes
        for layer in params["layers"]
        for name in encoder.LINEAR
    )


def judge(
    setting: Setting,
    patterns: list[jax_nm.Pattern],
    grams: list[dict[str, jax.Array]],
) -> Iterator[Row]:
    """Yields a row per pattern and method, in that order, as it is measured."""
    for pattern in patterns:
        for method in ("magnitude", "calibrated"):
            pruned = prune(
                setting.params, pattern, grams if method == "calibrated" else None
            )
            yield _row(setting, pruned, pattern, method)


def _row(setting: Setting, pruned: Params, pattern: jax_nm.Pattern, method: str) -> Row:
    def timed(params: Params, tokens: jax.Array) -> tuple[float, jax.Array]:
        start = time.perf_counter()
        result = jax.block_until_ready(encoder.encode(params, tokens, setting.shape))
        return 1e3 * (time.perf_counter() - start), result

    timed(setting.params, setting.judging[0])
    timed(pruned, setting.judging[0])
    # Dense and sparse alternate, so that a busy moment of the machine meets both.
    runs = [
        (timed(setting.params, tokens), timed(pruned, tokens))
        for tokens in setting.judging
    ]
    dense = np.concatenate([run[0][1] for run in runs])
    sparse = np.concatenate([run[1][1] for run in runs])
    return Row(
        pattern=f"{pattern.n}:{pattern.m}",
        vector_length=pattern.vector_length,
        method=method,
        megabytes=linear_bytes(pruned) / 1e6,
        fraction=linear_bytes(pruned) / linear_bytes(setting.params),
        dense_ms=statistics.median(run[0][0] for run in runs),
        sparse_ms=statistics.median(run[1][0] for run in runs),
        cosine=float(np.mean(np.sum(dense * sparse, axis=-1))),
        same_neighbour=float(np.mean(_neighbours(dense) == _neighbours(sparse))),
    )


def _neighbours(embeddings: np.ndarray) -> np.ndarray:
    """Returns, for each embedding, the index of the nearest other one."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argmax(similarity, axis=1)
