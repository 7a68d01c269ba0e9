"""Tables, JSON files and plots of measured points."""

from __future__ import annotations

import datetime
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import jax
import jaxlib

KEYS = (
    "op",
    "rows",
    "cols",
    "depth",
    "n",
    "m",
    "vector_length",
    "dtype",
    "precision",
    "implementation",
)


def metadata(peaks: dict[str, float]) -> dict[str, Any]:
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
        "command": " ".join(["jax-nm", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **peaks,
    }


def _processor() -> str:
    """The CPU's model and how many cores this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found[1] if found else model
    return f"{model}, {os.cpu_count()} cores"


def sm_clock() -> str | None:
    """The GPU's present clock in MHz."""
    return _nvidia_smi("clocks.sm")


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
    return done.stdout.splitlines()[0].strip() or None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def load(path: pathlib.Path) -> list[dict[str, Any]]:
    """The points of an earlier, unfinished run, or none."""
    if not path.exists():
        return []
    return json.loads(path.read_text())["points"]


def save(path: pathlib.Path, meta: dict[str, Any], points: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join("  " + json.dumps(point) for point in points)
    text = f'{{"meta": {json.dumps(meta, indent=1)},\n"points": [\n{rows}\n]}}\n'
    path.write_text(text)


def key(point: dict[str, Any]) -> tuple:
    return tuple(point.get(name, "sparse") for name in KEYS)


HEADER = (
    f"{'op':7}{'rows':>6}{'cols':>7}{'depth':>7}  {'pattern':10}{'dtype':9}"
    f"{'precision':10}{'kernel':18}{'ms':>9}{'x dense':>9}{'row-major':>10}"
    f"{'of limit':>9}{'of floor':>9}{'err/bound':>10}"
)


def row(point: dict[str, Any]) -> str:
    """A line of the table: ratios above 1 are faster than dense."""
    pattern = f"{point['n']}:{point['m']}:{point['vector_length']}"
    dense = point["dense_ms"]
    return (
        f"{point['op']:7}{point['rows']:>6}{point['cols']:>7}{point['depth']:>7}  "
        f"{pattern:10}{point['dtype']:9}{point['precision']:10}{point['kernel']:18}"
        f"{point['ms']:>9.4f}{dense / point['ms']:>9.2f}"
        f"{dense / point['ms_row_major']:>10.2f}"
        f"{point['limit_ms'] / point['ms']:>9.2f}"
        f"{point['floor_ms'] / point['ms']:>9.2f}"
        f"{point['error_over_bound']:>10.3f}"
    )


def summary(points: Iterable[dict[str, Any]]) -> list[str]:
    """Geometric mean, minimum and maximum of the speed-up, by kind of point."""
    grouped: dict[tuple, list[float]] = {}
    for p in points:
        name = (p["op"], p["dtype"], p["precision"], p["n"], p["m"], p["vector_length"])
        grouped.setdefault(name, []).append(p["dense_ms"] / p["ms"])
    lines = []
    for (op, dtype, precision, n, m, length), ratios in grouped.items():
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(
            f"{op:7}{dtype:9}{precision:10}{f'{n}:{m}:{length}':10}"
            f"{len(ratios):>4} points   x dense: mean {mean:.2f}, "
            f"min {min(ratios):.2f}, max {max(ratios):.2f} (ideal {m / n:.2f})"
        )
    return lines


def plot(path: pathlib.Path, meta: dict[str, Any], points: list) -> None:
    """Speed-up over dense XLA per point, beside the ideal m / n."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [
        f"{p['op']} {p['rows']}x{p['cols']}x{p['depth']} {p['n']}:{p['m']}:"
        f"{p['vector_length']} {p['dtype']} {p['precision']}"
        for p in points
    ]
    height = 0.9 + 0.24 * len(points)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    places = range(len(points))
    axes.barh(places, [p["dense_ms"] / p["ms"] for p in points], color="#3b6ea8")
    axes.plot(
        [p["m"] / p["n"] for p in points], places, "k|", ms=8, label="ideal, m / n"
    )
    axes.axvline(1, color="#b03a2e", lw=1, label="dense XLA")
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("speed-up over the dense XLA product, measured in the same run")
    axes.set_title(f"jax_nm {meta['jax_nm']} on {meta['device']}", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
