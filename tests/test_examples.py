"""The digits example: it runs as its documentation says, and keeps what it promises."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import jax_nm

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def digits(monkeypatch):
    """The example as a module, with the pattern that it is measured by."""
    spec = importlib.util.spec_from_file_location(
        "train_digits", EXAMPLES / "train_digits.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pattern = jax_nm.Pattern(8, 32, vector_length=32)
    assert pattern in module.PATTERNS
    monkeypatch.setattr(module, "PATTERNS", [pattern])
    return module


def test_sparse_is_as_accurate_as_dense(digits, tmp_path, capsys):
    """Within half a point of dense, in the mean of five seeds."""
    curves = digits.main(["--plot", str(tmp_path / "digits.png")])
    mean = {name: np.mean(curve[:, -1]) for name, curve in curves.items()}
    ways = ["dense", "8:32 fine-tuned", "8:32 STE", "8:32 SR-STE"]
    assert list(mean) == ways
    assert curves["dense"].shape[0] == 5
    assert mean["dense"] > 97
    assert all(mean[way] >= mean["dense"] - 0.5 for way in ways)
    table = capsys.readouterr().out
    for way in (*ways, "8:32 pruned"):
        assert f"\n{way} " in table
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_images_are_split_once(digits):
    """No image is both trained on and tested."""
    (x, label), (held_out_x, held_out_label) = digits.data()
    assert (len(x), len(held_out_x)) == (len(label), len(held_out_label)) == (1297, 500)
    assert x.shape[1] == 64 and float(x.min()) == 0 and float(x.max()) == 1
    every = np.concatenate([x, held_out_x])
    assert len(np.unique(every, axis=0)) == len(every)
