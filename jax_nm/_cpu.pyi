"""The compiled CPU kernels, cpu/module.cc."""

from typing import Any

def registrations() -> dict[str, Any]:
    """XLA FFI handlers for platform "cpu": target name -> capsule."""

def isa() -> str:
    """The instruction set that runs unless a kernel is forced."""

def built_isas() -> list[str]:
    """The instruction sets that this build has kernels for."""

def plan(
    op: str,
    dtype: str,
    result_dtype: str,
    batch: int,
    rows: int,
    depth: int,
    cols: int,
    n: int,
    m: int,
    vector_length: int,
    x_feature_major: bool,
    y_feature_major: bool,
    kernel: int = 0,
) -> dict[str, Any]:
    """What the handler runs for this problem: {"kernel", "config", "why"}."""
