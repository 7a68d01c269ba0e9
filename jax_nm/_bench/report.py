"""Tables, JSON files and plots of measured points."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

# What tells two points of a file apart; files of before lack the defaults.
KEYS = {
    "op": None,
    "rows": None,
    "cols": None,
    "depth": None,
    "n": None,
    "m": None,
    "vector_length": None,
    "dtype": None,
    "precision": None,
    "epilogue": None,
    "requested": None,
}

LIMIT = 1.30  # no point should take longer than this times its limit,
SHORT_MS = 0.010  # and where the limit is shorter than this
GRACE_MS = 0.002  # it may take this much more
ROW_MAJOR_ROWS = 512  # from here on row-major calls too must not be slower than dense


def load(path: pathlib.Path) -> dict[str, Any]:
    """{"meta": ..., "points": [...]} of an earlier run; ValueError if it is not."""
    results = json.loads(path.read_text())
    if not isinstance(results, dict) or not {"meta", "points"} <= results.keys():
        raise ValueError("it does not hold 'meta' and 'points'")
    return results


def save(path: pathlib.Path, meta: dict[str, Any], points: list) -> None:
    """Writes the file in one step: a run that is cut off leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join("  " + json.dumps(point) for point in points)
    text = f'{{"meta": {json.dumps(meta, indent=1)},\n"points": [\n{rows}\n]}}\n'
    draft = path.with_name(path.name + ".part")
    draft.write_text(text)
    draft.replace(path)


def key(point: dict[str, Any]) -> tuple:
    return tuple(point.get(name, default) for name, default in KEYS.items())


HEADER = (
    f"{'op':7}{'rows':>6}{'cols':>7}{'depth':>7}  {'pattern':10}{'dtype':9}"
    f"{'precision':10}{'epilogue':10}{'kernel':24}{'ms':>9}{'wall ms':>9}"
    f"{'x dense':>9}{'row-major':>10}{'of limit':>9}{'of floor':>9}{'err/bound':>10}"
)


def row(point: dict[str, Any]) -> str:
    """A line of the table: ratios above 1 are faster than dense."""
    pattern = f"{point['n']}:{point['m']}:{point['vector_length']}"
    dense = point["dense_ms"]
    return (
        f"{point['op']:7}{point['rows']:>6}{point['cols']:>7}{point['depth']:>7}  "
        f"{pattern:10}{point['dtype']:9}{point['precision']:10}"
        f"{point['epilogue'] or '':10}{point['kernel']:24}"
        f"{point['ms']:>9.4f}{point['wall_ms']:>9.4f}{dense / point['ms']:>9.2f}"
        f"{dense / point['ms_row_major']:>10.2f}"
        f"{point['limit_ms'] / point['ms']:>9.2f}"
        f"{point['floor_ms'] / point['ms']:>9.2f}"
        f"{point['error_over_bound']:>10.3f}"
    )


def summary(points: Iterable[dict[str, Any]]) -> list[str]:
    """Speed-up over dense and time over the limit, by kind of point, two lines each.

    The means are geometric, of the ratios as they are. A point that misses 1.30 of its
    limit counts as over only if it misses it by more than 2 us or the limit takes 10 us
    or longer: below that a launch decides.
    """
    numbers = ("n", "m", "vector_length")
    names = ("op", "dtype", "precision", *numbers, "epilogue", "requested")
    grouped: dict[tuple, list[dict[str, Any]]] = {}
    for p in points:
        grouped.setdefault(tuple(p.get(name) for name in names), []).append(p)
    lines = []
    for (op, dtype, precision, n, m, length, epilogue, asked), mine in grouped.items():
        speedups = [p["dense_ms"] / p["ms"] for p in mine]
        over = [p["ms"] / p["limit_ms"] for p in mine]
        slower = sum(p["ms"] > p["dense_ms"] for p in mine)
        row_major = sum(
            p["ms_row_major"] > p["dense_ms"]
            for p in mine
            if p["rows"] >= ROW_MAJOR_ROWS
        )
        lines += [
            f"{op:7}{dtype:9}{precision:10}{f'{n}:{m}:{length}':10}"
            f"{epilogue or '':10}{asked + ' ' if asked else ''}"
            f"{len(mine):>4} points   "
            f"x dense: mean {geometric_mean(speedups):.2f}, min {min(speedups):.2f}, "
            f"max {max(speedups):.2f} (ideal {m / n:.2f})",
            f"{'':46}time / limit: mean {geometric_mean(over):.3f}, "
            f"max {max(over):.2f}; over {LIMIT:.2f}: {sum(map(over_limit, mine))}; "
            f"slower than dense: {slower}, row-major at {ROW_MAJOR_ROWS} rows and "
            f"more: {row_major}",
        ]
    return lines


def over_limit(point: dict[str, Any]) -> bool:
    grace = GRACE_MS if point["limit_ms"] < SHORT_MS else 0.0
    return not point["ms"] <= LIMIT * point["limit_ms"] + grace


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def plot(path: pathlib.Path, meta: dict[str, Any], points: list) -> None:
    """Speed-up over dense XLA per point, beside the ideal m / n."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [
        f"{p['op']} {p['rows']}x{p['cols']}x{p['depth']} {p['n']}:{p['m']}:"
        f"{p['vector_length']} {p['dtype']} {p['precision']} {p['epilogue'] or ''} "
        f"{p.get('requested') or ''}"
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
