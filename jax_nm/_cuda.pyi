"""The compiled CUDA kernels, cuda/module.cc; absent from a build without CUDA."""

from typing import Any

def registrations() -> dict[str, Any]:
    """XLA FFI handlers for platform "CUDA": target name -> capsules by stage."""

def built_archs() -> list[int]:
    """The compute capabilities, as 90 for 9.0, that this build has machine code for."""

def has_wgmma() -> bool:
    """Whether this build has machine code for sm_90a, the architecture of wgmma."""
