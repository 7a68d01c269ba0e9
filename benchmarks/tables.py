"""Writes the tables of README.md from the committed results.

    python benchmarks/tables.py

fills four kinds of blocks, each up to its ``<!-- end -->``:

``<!-- table: gpu/suite.json 4096,4096,4096 ... -->``
    a line per problem of the named shapes (rows,cols,depth), or of all;
``<!-- summary: gpu/suite.json -->``
    a line per kind of problem, over all its shapes;
``<!-- rows: gpu/suite.json -->``
    the same, with a line per number of rows;
``<!-- layer: gpu/layer.json -->``
    a line per number of tokens of a decoder layer.
"""

from __future__ import annotations

import json
import pathlib
import re
import statistics
from collections.abc import Iterable
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(
    r"(<!-- (table|summary|rows|layer): (\S+)([ \d,]*) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)
KIND = ("product", "dtype", "L")


def table(path: pathlib.Path, shapes: list[str]) -> str:
    """A line per problem, a column per pattern: speed-up over dense."""
    results = json.loads(path.read_text())
    cells: dict[tuple, dict[tuple, str]] = {}
    for p in results["points"]:
        shape = f"{p['rows']},{p['cols']},{p['depth']}"
        if not shapes or shape in shapes:
            product, dtype, length = _kind(p)
            line = (product, shape.replace(",", ", "), dtype, length)
            ratio = p["dense_ms"] / p["ms"]
            cells.setdefault(line, {})[p["n"], p["m"]] = f"{ratio:.2f}"
    return _markdown(
        results["meta"], ("product", "rows, cols, depth", *KIND[1:]), cells
    )


def summary(path: pathlib.Path, shapes: list[str], by_rows: bool = False) -> str:
    """A line per kind: the geometric mean of the speed-up, its minimum and maximum."""
    results = json.loads(path.read_text())
    ratios: dict[tuple, dict[tuple, list[float]]] = {}
    for p in results["points"]:
        if not shapes or f"{p['rows']},{p['cols']},{p['depth']}" in shapes:
            kind = (p["rows"], *_kind(p)) if by_rows else _kind(p)
            of_kind = ratios.setdefault(kind, {})
            of_kind.setdefault((p["n"], p["m"]), []).append(p["dense_ms"] / p["ms"])
    cells = {
        (*kind, _counts(of_kind.values())): {
            pattern: f"{statistics.geometric_mean(speedups):.2f} "
            f"({min(speedups):.2f} to {max(speedups):.2f})"
            for pattern, speedups in of_kind.items()
        }
        for kind, of_kind in ratios.items()
    }
    names = ("rows", *KIND) if by_rows else KIND
    return _markdown(results["meta"], (*names, "shapes"), cells)


def rows(path: pathlib.Path, shapes: list[str]) -> str:
    """As `summary`, with a line per number of rows too."""
    return summary(path, shapes, by_rows=True)


def layer(path: pathlib.Path, _: list[str]) -> str:
    """A line per number of tokens: the speed-up of a whole decoder layer."""
    results = json.loads(path.read_text())
    cells: dict[tuple, dict[tuple, str]] = {}
    for p in results["points"]:
        line = (p["model"], "training" if p["train"] else "inference", p["rows"])
        ratio = f"{p['dense_ms'] / p['ms']:.2f}"
        cells.setdefault(line, {})[p["n"], p["m"]] = ratio
    return _markdown(results["meta"], ("model", "step", "tokens"), cells)


def _counts(columns: Iterable[list[float]]) -> str:
    """How many points the columns of a line hold; not every shape has every pattern."""
    counts = sorted({len(column) for column in columns})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _kind(point: dict[str, Any]) -> tuple:
    # Files of before know neither.
    epilogue = f", {point['epilogue']}" if point.get("epilogue") else ""
    asked = f", {point['requested']}" if point.get("requested") else ""
    precision = "" if point["precision"] == "default" else f" {point['precision']}"
    product, dtype = f"{point['op']}{epilogue}{asked}", f"{point['dtype']}{precision}"
    return product, dtype, point["vector_length"]


def _markdown(
    meta: dict[str, Any], names: tuple[str, ...], cells: dict[tuple, dict[tuple, str]]
) -> str:
    """One line per key of `cells`, with one column per pattern behind it."""
    patterns = {pattern for line in cells.values() for pattern in line}
    columns = sorted(patterns, key=lambda nm: nm[1] / nm[0])
    head = [*names, *(f"{n}:{m} (ideal {m / n:.3g})" for n, m in columns)]
    lines = [
        f"{meta['device']}, JAX {meta['jax']}, {meta['date']}:",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for key, line in cells.items():
        row = [*map(str, key), *(line.get(pattern, "") for pattern in columns)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    readme = ROOT / "README.md"

    def fill(match: re.Match) -> str:
        head, kind, name, shapes, end = match.groups()
        path = ROOT / "benchmarks" / "results" / name
        kinds = {"table": table, "summary": summary, "rows": rows, "layer": layer}
        write = kinds[kind]
        return head + (write(path, shapes.split()) if path.exists() else "") + end

    readme.write_text(BLOCK.sub(fill, readme.read_text()))


if __name__ == "__main__":
    main()
