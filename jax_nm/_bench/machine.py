"""The machine: its names and versions, its clock, and its measured roofs."""

from __future__ import annotations

import datetime
import functools
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from jax_nm._bench import programs
from jax_nm._bench.points import Point

# What must agree for points of two runs to stand in one file.
SAME = ("device", "driver", "jax", "jaxlib", "jax_nm", "commit", "xla_flags")


def metadata() -> dict[str, Any]:
    """Where and how the points were measured."""
    import jax_nm

    device = jax.local_devices()[0]
    return {
        "gpu": device.device_kind if device.platform == "gpu" else None,
        "device": device.device_kind if device.platform == "gpu" else _processor(),
        "driver": _nvidia_smi("driver_version"),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "jax_nm": jax_nm.__version__,
        "commit": os.environ.get("JAX_NM_COMMIT") or _git_commit(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": " ".join(["jax-nm", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why points measured under `earlier` and `now` do not belong together."""
    return [
        f"{name} {earlier.get(name)!r} there, {now.get(name)!r} here"
        for name in SAME
        if earlier.get(name) != now.get(name)
    ]


def roofs(points: Iterable[Point], known: Mapping[str, Any]) -> dict[str, float]:
    """The roofs that these points need, measured unless they are known."""
    found = {}
    if "copy_bandwidth_gbs" not in known:
        found["copy_bandwidth_gbs"] = round(bandwidth() / 1e9, 1)
    for dtype, precision in sorted({(p.dtype, p.precision) for p in points}):
        name = _peak_name(dtype, precision)
        if name not in known:
            found[name] = round(peak_flops(dtype, precision) / 1e12, 3)
    return found


def floor_ms(point: Point, roofs: Mapping[str, Any]) -> float:
    """max(flops / peak, bytes / bandwidth), both roofs measured on this machine."""
    size = jnp.dtype(point.dtype).itemsize
    products = 3 if point.op == "step" else 1
    flops = 2.0 * point.rows * point.kept * point.cols * products
    moved = point.rows * (point.depth + point.cols) + point.kept * point.cols
    moved = moved * size * (2 if point.op == "step" else 1)
    moved += point.kept * point.pattern.groups(point.cols)
    peak = 1e12 * roofs[_peak_name(point.dtype, point.precision)]
    return 1e3 * max(flops / peak, moved / (1e9 * roofs["copy_bandwidth_gbs"]))


def _peak_name(dtype: str, precision: str) -> str:
    return f"dense_tflops_{dtype}_{precision}"


def peak_flops(dtype: str, precision: str) -> float:
    """FLOP/s of a large dense XLA product on this machine."""
    size = 8192 if programs.on_gpu() else 2048
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    return 2.0 * size**3 / _median_seconds(lambda: product(x, x))


def bandwidth() -> float:
    """Bytes/s of a large copy, reads and writes counted."""
    elements = (1 << 30 if programs.on_gpu() else 1 << 28) // 4
    x = jnp.ones((elements,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2.0 * x.nbytes / _median_seconds(lambda: copy(x))


def _median_seconds(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(5):
        start = time.perf_counter()
        results = [run() for _ in range(3)]
        jax.block_until_ready(results)
        times.append((time.perf_counter() - start) / 3)
    return statistics.median(times)


def sm_clock() -> int | None:
    """The GPU's present clock in MHz, if JAX runs on it."""
    clock = _nvidia_smi("clocks.sm") if programs.on_gpu() else None
    return int(clock) if clock is not None and clock.isdecimal() else None


def _nvidia_smi(field: str) -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def _processor() -> str:
    """The CPU's model and how many cores this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found[1] if found else model
    return f"{model}, {os.cpu_count()} cores"


def _git_commit() -> str | None:
    """The commit of the working directory, and whether it has been changed since."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
