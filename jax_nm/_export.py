"""What `jax.export` needs to know of the custom calls."""

from __future__ import annotations

import jax

from jax_nm import _lowering


def export_disabled_checks() -> list[jax.export.DisabledSafetyCheck]:
    """Lets `jax.export` serialize a function that contains sparse products.

    ``jax.export.export(f, disabled_checks=jax_nm.export_disabled_checks())(...)``. The
    targets are versioned, so an artifact keeps its meaning; the process that loads it
    must have imported `jax_nm`.
    """
    return [
        jax.export.DisabledSafetyCheck.custom_call(_lowering.target_name(op))
        for op in (*_lowering.OPS, _lowering.FUSED, _lowering.EXPAND)
    ]
