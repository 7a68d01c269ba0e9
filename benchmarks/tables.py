"""Writes the tables of README.md from the committed results.

    python benchmarks/tables.py

fills every block ``<!-- table: gpu/suite.json -->`` ... ``<!-- end -->``.
"""

from __future__ import annotations

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(path: pathlib.Path) -> str:
    """One row per problem, one column per pattern."""
    results = json.loads(path.read_text())
    rows: dict[tuple, dict[tuple, float]] = {}
    patterns = []
    for p in results["points"]:
        shape = f"{p['rows']}, {p['cols']}, {p['depth']}"
        precision = "" if p["precision"] == "default" else f" {p['precision']}"
        name = (p["op"], shape, f"{p['dtype']}{precision}", p["vector_length"])
        pattern = (p["n"], p["m"])
        patterns.append(pattern)
        rows.setdefault(name, {})[pattern] = p["dense_ms"] / p["ms"]
    patterns = sorted(set(patterns), key=lambda nm: nm[1] / nm[0])
    meta = results["meta"]
    head = [f"{n}:{m} (ideal {m / n:g})" for n, m in patterns]
    lines = [
        f"{meta['device']}, JAX {meta['jax']}, {meta['date']}:",
        "",
        "| product | rows, cols, depth | dtype | L | " + " | ".join(head) + " |",
        "|---|---|---|---|" + "---|" * len(patterns),
    ]
    for (op, shape, dtype, length), ratios in rows.items():
        cells = [f"{ratios[p]:.2f}" if p in ratios else "" for p in patterns]
        lines.append(f"| {op} | {shape} | {dtype} | {length} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    readme = ROOT / "README.md"

    def fill(match: re.Match) -> str:
        path = ROOT / "benchmarks" / "results" / match[2]
        return match[1] + (table(path) if path.exists() else "") + match[3]

    readme.write_text(BLOCK.sub(fill, readme.read_text()))


if __name__ == "__main__":
    main()
