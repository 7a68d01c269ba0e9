"""`jax-nm demo`: the encoder is the trained one, the texts are stable, and it runs."""

import argparse
import importlib.util
import json

import jax
import numpy as np
import pytest
from scipy.special import erf

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")

import jax_nm
from jax_nm import _demo
from jax_nm._demo import encoder, measure, texts
from jax_nm._demo.error import DemoError

LENGTH = 32


@pytest.fixture(scope="module")
def directory():
    """Where the trained encoder is; the first call on a machine fetches it."""
    try:
        return encoder.model_directory()
    except DemoError as error:
        pytest.skip(f"no network, and the trained encoder is not here: {error}")


@pytest.fixture(scope="module")
def model(directory):
    return encoder.load(directory)


@pytest.fixture(scope="module")
def tokens(directory):
    sentences = [*measure.SENTENCES, "", "One word " * LENGTH]
    return encoder.tokenize(directory, sentences, LENGTH)


def arguments(*options):
    parser = argparse.ArgumentParser()
    _demo.add_arguments(parser)
    return parser.parse_args(options)


def numpy_forward(tokens, dtype):
    """BERT once more, from the checkpoint's own names, one text at a time."""
    from safetensors.numpy import load_file

    directory = encoder.model_directory()
    weights = {
        name: weight.astype(dtype) if weight.dtype.kind == "f" else weight
        for name, weight in load_file(directory / "model.safetensors").items()
    }
    config = json.loads((directory / "config.json").read_text())
    heads = config["num_attention_heads"]

    def linear(name, x):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return x * weights[name + ".weight"] + weights[name + ".bias"]

    def embed(ids):
        x = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = x + weights["embeddings.token_type_embeddings.weight"][0]
        x = norm("embeddings.LayerNorm", x)
        for i in range(config["num_hidden_layers"]):
            at = f"encoder.layer.{i}."
            query, key, value = (
                np.split(linear(f"{at}attention.self.{name}", x), heads, axis=-1)
                for name in ("query", "key", "value")
            )
            mixed = []
            for q, k, v in zip(query, key, value, strict=True):
                scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]).astype(dtype))
                mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
            attended = linear(at + "attention.output.dense", np.concatenate(mixed, -1))
            x = norm(at + "attention.output.LayerNorm", x + attended)
            inner = linear(at + "intermediate.dense", x)
            inner = inner * (1 + erf(inner / np.sqrt(2).astype(dtype))) / 2
            x = norm(at + "output.LayerNorm", x + linear(at + "output.dense", inner))
        mean = x.mean(0)
        return mean / np.linalg.norm(mean)

    # Padding is cut off here, so the masks of the encoder under test must act alike.
    return np.stack([embed(row[row != 0]) for row in tokens])


@pytest.fixture(scope="module")
def exact_and_allowed(tokens):
    """The float64 embeddings, and how far float32 may be from them (Frobenius).

    Twice the error of NumPy in float32 for the order of the sums, and twice that again
    because XLA's exp, erf and rsqrt are off by a few units where NumPy's are by one.
    """
    exact = numpy_forward(tokens, np.float64)
    single = numpy_forward(tokens, np.float32)
    assert single.dtype == np.float32
    rounding = np.finfo(np.float32).eps * np.linalg.norm(exact)
    return exact, 4 * np.linalg.norm(single - exact) + rounding


def test_encoder_is_as_exact_as_numpy_in_float32(model, tokens, exact_and_allowed):
    exact, allowed = exact_and_allowed
    with jax.default_matmul_precision("highest"):
        got = np.asarray(encoder.encode(model[0], tokens, model[1]))
    assert np.linalg.norm(got - exact) <= allowed


def test_published_similarities(model):
    sentences = encoder.tokenize(encoder.model_directory(), measure.SENTENCES, LENGTH)
    lines = measure.check_dense(*model, sentences)
    assert len(lines) == 3
    assert "0.6660, published 0.6660" in lines[0]


def test_check_notices_wrong_weights(model):
    params, shape = model
    layers = [dict(layer) for layer in params["layers"]]
    layers[3] |= {"query": layers[3]["key"], "key": layers[3]["value"]}
    sentences = encoder.tokenize(encoder.model_directory(), measure.SENTENCES, LENGTH)
    with pytest.raises(DemoError, match="published similarities"):
        measure.check_dense({**params, "layers": layers}, shape, sentences)


def test_compressed_kernels_act_as_their_dense_form(model, tokens, exact_and_allowed):
    params, shape = model
    pruned = measure.prune(params, jax_nm.Pattern(24, 32, vector_length=32))
    kernels = [layer[name]["kernel"] for layer in pruned["layers"] for name in layer
               if name in encoder.LINEAR]  # fmt: skip
    assert len(kernels) == 36
    assert all(isinstance(kernel, jax_nm.NMArray) for kernel in kernels)

    def is_weight(leaf):
        return isinstance(leaf, jax_nm.NMArray)

    dense = jax.tree.map(
        lambda leaf: leaf.todense() if is_weight(leaf) else leaf,
        pruned,
        is_leaf=is_weight,
    )
    _, allowed = exact_and_allowed
    with jax.default_matmul_precision("highest"):
        got = np.asarray(encoder.encode(pruned, tokens, shape))
        reference = np.asarray(encoder.encode(dense, tokens, shape))
    # Both are float32 evaluations of one function: apart by two such errors at most.
    assert np.linalg.norm(got - reference) <= 2 * allowed


def test_grams_see_real_tokens_only(model, tokens):
    params, shape = model
    longer = np.pad(tokens, ((0, 0), (0, 8)))
    with jax.default_matmul_precision("highest"):
        grams = encoder.grams(params, tokens, shape)
        padded = encoder.grams(params, longer, shape)
    assert [set(layer) for layer in grams] == [set(encoder.LINEAR)] * 6
    assert grams[0]["ffn_out"].shape == (1536, 1536)
    first, again = grams[0]["query"], padded[0]["query"]
    # The first layer's input is elementwise in the tokens, so its rows are the same
    # numbers and only the order of a sum of len(rows) products can differ.
    bound = (tokens != 0).sum() * np.finfo(np.float32).eps
    magnitude = np.sqrt(np.outer(np.diag(first), np.diag(first)))
    assert (np.abs(first - again) <= 2 * bound * magnitude).all()


def test_texts_are_many_stable_and_split_by_module():
    calibration, judging = texts.docstrings(160)
    assert (calibration, judging) == texts.docstrings(160)
    assert len(calibration) == len(judging) == 160

    def modules(half):
        return {text.name.rpartition(".")[0] for text in half}

    assert not modules(calibration) & modules(judging)
    assert len({text.text for text in calibration + judging}) == 320
    assert not any("\n" in text.text for text in calibration + judging)


def test_texts_name_a_library_without_sources(tmp_path):
    with pytest.raises(DemoError, match=r"hold only 0 .* but 2 are needed"):
        texts.docstrings(1, root=tmp_path)


def test_quick_run(directory, tmp_path, capsys):
    plot, results = tmp_path / "demo.png", tmp_path / "demo.json"
    options = ["--quick", "--plot", str(plot), "--json", str(results)]
    assert _demo.run(arguments(*options)) == 0
    out, err = capsys.readouterr()
    assert "published 0.6660" in err
    assert len(out.splitlines()) == 2 + 1 + 4 + 2
    assert plot.read_bytes().startswith(b"\x89PNG")

    saved = json.loads(results.read_text())
    assert saved["meta"]["texts"] == 128
    rows = {
        (row["pattern"], row["method"]): row
        for row in saved["rows"]
        if row["vector_length"] == 128
    }
    assert set(rows) == {
        (pattern, method)
        for pattern in ("24:32", "8:32")
        for method in ("magnitude", "calibrated")
    }
    for pattern in ("24:32", "8:32"):
        magnitude = rows[pattern, "magnitude"]
        calibrated = rows[pattern, "calibrated"]
        assert calibrated["cosine"] > magnitude["cosine"]
        assert calibrated["same_neighbour"] > magnitude["same_neighbour"]
        assert calibrated["megabytes"] == magnitude["megabytes"]
    assert rows["24:32", "calibrated"]["cosine"] > rows["8:32", "calibrated"]["cosine"]
    assert all(row["sparse_ms"] > 0 and row["dense_ms"] > 0 for row in saved["rows"])


def test_missing_packages_are_named_with_the_fix(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "tokenizers" else find_spec(name),
    )
    assert _demo.run(arguments()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "tokenizers" in err and "pip install 'jax-nm[demo]'" in err


def test_unwritable_output_is_refused_before_the_work(tmp_path, capsys):
    missing = tmp_path / "absent" / "demo.png"
    assert _demo.run(arguments("--plot", str(missing))) == 2
    assert "its directory does not exist" in capsys.readouterr().err


def test_unknown_kind_of_plot_is_refused_before_the_work(tmp_path, capsys):
    assert _demo.run(arguments("--plot", str(tmp_path / "demo.xlsx"))) == 2
    assert "must end in one of .png" in capsys.readouterr().err


def test_bad_pattern_is_explained(capsys):
    with pytest.raises(SystemExit, match="2"):
        arguments("--pattern", "33:32")
    assert "n must be between 1 and m" in capsys.readouterr().err
