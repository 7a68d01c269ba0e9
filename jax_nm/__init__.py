"""N:M structured-sparse matrix multiplication for JAX.

Compress a trained kernel once, then call `spmm` in place of ``x @ W``:

    pattern = jax_nm.Pattern(8, 32, vector_length=128)
    w = jax_nm.compress(kernel, pattern)
    y = jax_nm.spmm(x, w)
"""

import importlib.metadata

from jax_nm._array import NMArray, validate
from jax_nm._autotune import Measurement, autotune
from jax_nm._export import export_disabled_checks
from jax_nm._pattern import Pattern
from jax_nm._plan import Plan, explain
from jax_nm._primitives import spmm_saveable
from jax_nm._prune import compress, prune_mask
from jax_nm._spmm import spmm, spmm_fm
from jax_nm._train import (
    compress_at,
    reselect_indices,
    select_indices,
    spmm_ste,
    sr_ste_penalty,
)
from jax_nm._tree import combine, grad, partition, value_and_grad

__version__ = importlib.metadata.version("jax_nm")

__all__ = [
    "Measurement",
    "NMArray",
    "Pattern",
    "Plan",
    "autotune",
    "combine",
    "compress",
    "compress_at",
    "explain",
    "export_disabled_checks",
    "grad",
    "partition",
    "prune_mask",
    "reselect_indices",
    "select_indices",
    "spmm",
    "spmm_fm",
    "spmm_saveable",
    "spmm_ste",
    "sr_ste_penalty",
    "validate",
    "value_and_grad",
]
