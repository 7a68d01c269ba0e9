"""The demo's result as a table on the terminal, a plot, and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax_nm._demo.measure import Row

_COLOURS = {"magnitude": "#c77d3b", "calibrated": "#2a6f97"}
# Numbers stay readable where they cross the line of the dense encoder.
_PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}


def table(rows: list[Row], dense_megabytes: float) -> str:
    """Returns the table, the dense encoder first."""
    head = (
        f"{'pattern':>8} {'L':>4}  {'method':<10} {'weights':>16} {'ms dense':>9}"
        f" {'sparse':>7} {'speed-up':>9} {'cosine':>7} {'same nearest':>13}"
    )
    lines = [head, "-" * len(head)]
    lines.append(
        f"{'dense':>8} {'':>4}  {'':<10} {dense_megabytes:7.1f} MB {100:4d} %"
        f" {'':>9} {'':>7} {1:8.2f}x {1:7.3f} {100:11d} %"
    )
    lines += [
        f"{row.pattern:>8} {row.vector_length:>4}  {row.method:<10}"
        f" {row.megabytes:7.1f} MB {100 * row.fraction:4.0f} %"
        f" {row.dense_ms:9.1f} {row.sparse_ms:7.1f}"
        f" {row.dense_ms / row.sparse_ms:8.2f}x"
        f" {row.cosine:7.3f} {100 * row.same_neighbour:11.0f} %"
        for row in rows
    ]
    return "\n".join(lines)


def reading_guide(machine: str, batch: str) -> str:
    """Returns the two lines that say what the table does and does not show."""
    return (
        "Quality: pruned in one shot, nothing retrained. So small an encoder stays "
        "near its dense self only at about 24:32, calibrated; sparser, fine-tune it.\n"
        f"Speed: the whole encoder, {batch} per batch, on this machine only "
        f"({machine}); attention and norms stay dense, so the gain is less than m/n."
    )


def save_json(path: Path, rows: list[Row], meta: dict[str, Any]) -> None:
    """Writes ``{"meta": ..., "rows": [...]}``."""
    content = {"meta": meta, "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def save_plot(path: Path, rows: list[Row], title: str) -> None:
    """Draws the table: one line per pattern and vector length.

    What a pattern costs does not depend on how it was chosen, so size and speed are
    bars (over both methods); what it keeps does, so quality is a pair of dots.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.pattern, row.vector_length), []).append(row)

    figure = Figure(figsize=(11.5, 1.8 + 0.5 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    size, speed, cosine, neighbour = figure.subplots(1, 4, sharey=True)

    groups = list(cases.values())
    _bars(size, [100 * group[0].fraction for group in groups], "{:.0f} %", 100)
    _bars(speed, [_speed_up(group) for group in groups], "{:.2f}x", 1)
    _dots(cosine, groups, lambda row: row.cosine, "{:.2f}", 1)
    _dots(neighbour, groups, lambda row: 100 * row.same_neighbour, "{:.0f}", 100)
    size.set_title("size of the compressed weights\n% of dense", fontsize=10)
    speed.set_title("speed of the whole encoder\nover dense", fontsize=10)
    cosine.set_title("mean cosine\nto the dense embeddings", fontsize=10)
    neighbour.set_title("nearest neighbour\nstill the same, %", fontsize=10)

    labels = [f"{pattern}   L = {length}" for pattern, length in cases]
    size.set_yticks(range(len(cases)), labels)
    size.set_ylim(len(cases) - 0.4, -0.6)
    handles, names = cosine.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _speed_up(group: list[Row]) -> float:
    return sum(row.dense_ms for row in group) / sum(row.sparse_ms for row in group)


def _bars(axis: Any, values: list[float], form: str, dense: float) -> None:
    bars = axis.barh(range(len(values)), values, height=0.5, color="#a9b4bd")
    labels = [form.format(value) for value in values]
    for text in axis.bar_label(bars, labels, padding=3, fontsize=8.5, zorder=3):
        text.set_bbox(_PLATE)
    _frame(axis, values, dense)


def _dots(
    axis: Any,
    groups: list[list[Row]],
    value: Callable[[Row], float],
    form: str,
    dense: float,
) -> None:
    for y, group in enumerate(groups):
        ends = sorted(map(value, group))
        axis.plot([ends[0], ends[-1]], [y, y], color="#cccccc", linewidth=3, zorder=1)
        for x, side, align in ((ends[0], -7, "right"), (ends[-1], 7, "left")):
            axis.annotate(
                form.format(x),
                (x, y),
                (side, 0),
                textcoords="offset points",
                fontsize=8.5,
                ha=align,
                va="center",
                bbox=_PLATE,
                zorder=1,
            )
    for method, colour in _COLOURS.items():
        points = [
            (value(row), y)
            for y, group in enumerate(groups)
            for row in group
            if row.method == method
        ]
        axis.scatter(*zip(*points, strict=True), s=45, c=colour, label=method, zorder=3)
    _frame(axis, [value(row) for group in groups for row in group], dense)


def _frame(axis: Any, values: list[float], dense: float) -> None:
    """Marks the dense encoder, and leaves room for the numbers beside the marks."""
    axis.axvline(
        dense, color="#555555", linewidth=1, linestyle="--", label="dense", zorder=0
    )
    low, high = min(0.0, *values), max(dense, *values)
    room = 0.17 * (high - low)
    axis.set_xlim(low - (room if axis.collections else 0), high + room)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)
