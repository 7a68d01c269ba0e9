"""Real text that every Python has: the docstrings of its own standard library.

The sources are parsed, never imported: no module runs code, and the result does not
depend on `python -OO`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jax_nm._demo.error import DemoError

# Tests, vendored code, graphical tools and jokes: their docstrings say little about
# what they do, or repeat those of another module.
_SKIPPED = frozenset(
    {
        "__phello__",
        "antigravity",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
    }
)
_FEWEST_CHARACTERS, _MOST_CHARACTERS = 60, 320


class Text(NamedTuple):
    """A docstring and the public name that it documents, such as `json.dumps`."""

    name: str
    text: str


def docstrings(
    count: int, *, per_module: int = 4, root: Path | None = None
) -> tuple[list[Text], list[Text]]:
    """Returns two lists of `count` docstrings each that share no module.

    Modules, in the order of their names, fall into the first and the second list in
    turn; each list is then thinned evenly to `count`, so both span the whole library.

    Args:
      count: docstrings per list.
      per_module: at most this many of one module, the first in its source.
      root: the directory of the standard library; by default the running Python's.

    Returns:
      (calibration, judging), the same on every call for a given Python version.

    Raises:
      DemoError: if the library's sources hold fewer than ``2 * count`` docstrings.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    halves: tuple[list[Text], list[Text]] = ([], [])
    seen: set[str] = set()
    used = 0
    for module, path in sorted(_modules(root)):
        fresh = {
            text.text: text for text in _public(module, path) if text.text not in seen
        }
        chosen = list(fresh.values())[:per_module]
        if chosen:
            halves[used % 2].extend(chosen)
            seen.update(text.text for text in chosen)
            used += 1
    short = min(map(len, halves))
    if short < count:
        raise DemoError(
            f"the sources of the standard library in {root} hold only {2 * short} "
            f"suitable docstrings, but {2 * count} are needed; use a Python that ships "
            f"its library as .py files"
        )
    calibration, judging = (
        [half[i * len(half) // count] for i in range(count)] for half in halves
    )
    return calibration, judging


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields (dotted name, file) of every public module below `root`."""
    for entry in root.iterdir():
        if entry.name.startswith("_") and entry.name != "__init__.py":
            continue
        if entry.stem in _SKIPPED or entry.name in _SKIPPED:
            continue
        if entry.suffix == ".py" and entry.name != "__init__.py":
            yield entry.stem, entry
        elif (entry / "__init__.py").is_file():
            yield entry.name, entry / "__init__.py"
            for name, path in _modules(entry):
                yield f"{entry.name}.{name}", path


def _public(module: str, path: Path) -> Iterator[Text]:
    """Yields the docstrings of the public functions and classes of one file."""
    for node in ast.parse(path.read_bytes()).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if node.name.startswith("_") or docstring is None:
            continue
        text = _opening(docstring)
        if len(text) >= _FEWEST_CHARACTERS:
            yield Text(f"{module}.{node.name}", text)


def _opening(docstring: str) -> str:
    """Returns the first prose, on one line, cut at a word near the limit."""
    opening = ""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if ">>>" in paragraph:
            break
        opening = f"{opening} {' '.join(paragraph.split())}".strip()
        if len(opening) >= _FEWEST_CHARACTERS:
            break
    if len(opening) > _MOST_CHARACTERS:
        opening = opening[:_MOST_CHARACTERS].rsplit(" ", 1)[0]
    return opening
