"""The examples in the docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import jax_nm

MODULES = [info.name for info in pkgutil.walk_packages(jax_nm.__path__, "jax_nm.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "name",
    [
        "Pattern",
        "compress",
        "compress_at",
        "partition",
        "prune_mask",
        "reselect_indices",
        "select_indices",
        "spmm",
        "spmm_ste",
        "sr_ste_penalty",
    ],
)
def test_has_an_example(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(jax_nm, name), name)
    assert test.examples
