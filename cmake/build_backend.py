"""The build backend: scikit-build-core, plus the CUDA compiler as a requirement.

With `JAX_NM_CUDA=ON` and no CUDA compiler on the machine, an isolated build installs
NVIDIA's compiler from its pip wheels into the build environment, where
cmake/FindPipCuda.cmake finds it. Run as a script, this file prints their names.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

# One minor version for all: the parts of a CUDA toolkit do not mix. Of the versions
# whose wheels hold a whole compiler, 13.0 asks for the oldest driver (580).
CUDA_WHEELS = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-nvvm==13.0.*",
]

Settings = dict[str, Any] | None


def _cuda_requirements(settings: Settings) -> list[str]:
    default = os.environ.get("JAX_NM_CUDA", "AUTO")
    mode = str((settings or {}).get("cmake.define.JAX_NM_CUDA", default))
    wanted = mode.upper() in ("ON", "1", "TRUE", "YES")
    return CUDA_WHEELS if wanted and not _has_compiler() else []


def _has_compiler() -> bool:
    """Whether CudaToolchain.cmake will find a compiler outside of the wheels."""
    if os.environ.get("CUDACXX") or shutil.which("nvcc"):
        return True
    roots = (
        os.environ.get("CUDA_HOME"),
        os.environ.get("CUDA_PATH"),
        "/usr/local/cuda",
    )
    return any(root and (Path(root) / "bin" / "nvcc").exists() for root in roots)


if __name__ == "__main__":
    print(" ".join(f"'{wheel}'" for wheel in CUDA_WHEELS))
else:
    from scikit_build_core import build
    from scikit_build_core.build import *  # noqa: F403

    def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
        """Returns the requirements of a wheel, the CUDA compiler if it is needed."""
        requirements = build.get_requires_for_build_wheel(config_settings)
        return requirements + _cuda_requirements(config_settings)

    def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
        """Returns the requirements of an editable install, likewise."""
        requirements = build.get_requires_for_build_editable(config_settings)
        return requirements + _cuda_requirements(config_settings)
