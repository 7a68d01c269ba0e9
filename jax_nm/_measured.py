"""What `autotune` has measured: by problem the fastest kernel, in memory and in a file.

    $XDG_CACHE_HOME or ~/.cache, then jax_nm/autotune/<gpu>-<version>-<kernels>.json

One file holds the measurements of one kind of GPU, by one version of jax_nm, of one
build of its kernels, and says so in its head. A process reads it once, when it lowers
its first product for the GPU or measures its first one; from then on only its own calls
of `autotune` change what it knows. Runs of several processes know nothing but what
those calls have given to all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import re
import tempfile
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import jax

from jax_nm import _tuning

_FORMAT = 1
# Of a problem as `_tuning` takes it.
OP, ROWS, LAYOUTS, TF32, KERNEL, ARCH = 0, 4, slice(10, 12), 12, 13, 14
PADDED_VALUES, TRANSPOSED_VALUES = 17, 18


@dataclasses.dataclass(frozen=True)
class Entry:
    """The times of one problem.

    Attributes:
      kernel: The fastest one.
      us: Microseconds per call of each kernel that can compute it, the fastest first.
      date: When that was, UTC, as '2026-11-27T12:00:00Z'.
    """

    kernel: str
    us: tuple[tuple[str, float], ...]
    date: str

    def to_json(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "us": dict(self.us), "date": self.date}

    @classmethod
    def from_json(cls, op: str, value: Any) -> Entry:
        """Raises ValueError for what is no entry of that operation."""
        if not isinstance(value, dict):
            raise ValueError("an entry must be an object")
        kernel, us, date = (value.get(name) for name in ("kernel", "us", "date"))
        texts = isinstance(kernel, str) and isinstance(date, str)
        if not texts or not isinstance(us, dict) or kernel not in us:
            raise ValueError("an entry must hold kernel, us with its time, and date")
        known = _tuning.kernels(op)
        for name, time in us.items():
            if name not in known:
                raise ValueError(f"there is no kernel {name!r} of {op}")
            number = isinstance(time, (int, float)) and not isinstance(time, bool)
            if not number or not math.isfinite(time) or time <= 0:
                raise ValueError(f"{name} has the time {time!r}")
        times = tuple((name, float(time)) for name, time in us.items())
        return cls(str(kernel), times, str(date))


def problem_name(arguments: tuple) -> str:
    """What an entry is found by, from a problem as `_tuning` takes it.

    The epilogue is left out: it costs every kernel alike.
    """
    op, dtype, result_dtype, batch, rows, depth, cols, n, m, length = arguments[:10]
    x_fm, y_fm = arguments[LAYOUTS]
    return (
        f"{op}, rows {rows}, depth {depth}, cols {cols}, pattern {n}:{m}:{length}, "
        f"batch {batch}, {dtype} -> {result_dtype}, "
        f"{'feature' if x_fm else 'row'}-major x, "
        f"{'feature' if y_fm else 'row'}-major y, "
        + ("reduced precision" if arguments[TF32] else "highest precision")
    )


def with_kernel(arguments: tuple, kernel: int, arch: int) -> tuple:
    """The same problem, with a kernel asked for on an architecture."""
    forced = list(arguments)
    forced[KERNEL], forced[ARCH] = kernel, arch
    return tuple(forced)


def with_transposed_values(arguments: tuple) -> tuple:
    """The same problem, with values transposed, and then not padded otherwise."""
    transposed = list(arguments)
    transposed[PADDED_VALUES], transposed[TRANSPOSED_VALUES] = False, True
    return tuple(transposed)


def find(
    gpu: str, arch: int, cuda: types.ModuleType | None, arguments: tuple, wgmma: bool
) -> Entry | None:
    """The measurement of a problem, if its kernel can compute it with this epilogue."""
    entry = _known(gpu, cuda).get(problem_name(arguments))
    if entry is None:
        return None
    kernel = _tuning.kernels(arguments[OP])[entry.kernel]
    try:
        _tuning.choose(*(*with_kernel(arguments, kernel, arch), wgmma))
    except ValueError:
        return None
    return entry


def add(gpu: str, cuda: types.ModuleType | None, name: str, entry: Entry) -> None:
    """Makes an entry known to this process."""
    known = _known(gpu, cuda)
    with _lock:
        known[name] = entry


def clear() -> None:
    """Forgets everything; the file is read again when it is needed."""
    with _lock:
        _tables.clear()


_lock = threading.Lock()
_tables: dict[tuple[str, bool], dict[str, Entry]] = {}


def _known(gpu: str, cuda: types.ModuleType | None) -> dict[str, Entry]:
    # What one process reads from a file another may not find there: then they would
    # compile different programs.
    alone = jax.process_count() == 1
    with _lock:
        table = _tables.get((gpu, alone))
        if table is None:
            file = path(gpu, cuda) if alone and directory().is_dir() else None
            table = {} if file is None else read(file, gpu, cuda)
            _tables[gpu, alone] = table
        return table


# The file.


def directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jax_nm" / "autotune"


def path(gpu: str, cuda: types.ModuleType | None) -> Path:
    name = re.sub(r"[^A-Za-z0-9.]+", "-", gpu)
    return directory() / f"{name}-{_version()}-{_digest(cuda)}.json"


def read(file: Path, gpu: str, cuda: types.ModuleType | None) -> dict[str, Entry]:
    """The entries of a file; none, and a warning, if it is not what it should be."""
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        _ignore(file, f"it cannot be read ({error})")
        return {}
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it must hold an object")
        for name, expected in _head(gpu, cuda).items():
            if content.get(name) != expected:
                raise ValueError(
                    f"it has {name} {content.get(name)!r}, here it is {expected!r}"
                )
        problems = content.get("problems")
        if not isinstance(problems, dict):
            raise ValueError("it must hold problems")
        return {
            name: Entry.from_json(name.partition(",")[0], value)
            for name, value in problems.items()
        }
    except (ValueError, RecursionError) as error:
        _ignore(file, str(error))
        return {}


def write(
    file: Path, gpu: str, cuda: types.ModuleType | None, name: str, entry: Entry
) -> str | None:
    """Adds an entry to the file. Returns why it could not, or None.

    What other processes have added stays; readers see the old file or the new one.
    """
    problems = read(file, gpu, cuda) | {name: entry}
    content = _head(gpu, cuda) | {
        "problems": {name: problems[name].to_json() for name in sorted(problems)}
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=1)
                stream.write("\n")
            os.replace(scratch, file)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as error:
        return str(error)
    return None


def _ignore(file: Path, reason: str) -> None:
    warnings.warn(
        f"jax_nm: the measurements in {file} are ignored: {reason}. jax_nm chooses its "
        "kernels by estimate; jax_nm.autotune measures again and replaces the file, or "
        "delete it.",
        stacklevel=2,
    )


def _head(gpu: str, cuda: types.ModuleType | None) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "jax_nm": _version(),
        "gpu": gpu,
        "kernels": _digest(cuda),
    }


@functools.cache
def _version() -> str:
    return importlib.metadata.version("jax_nm")


def _digest(cuda: types.ModuleType | None) -> str:
    """Tells one build of the kernels and of their configuration from another."""
    modules = (_tuning, cuda)
    return _digest_of(*(getattr(module, "__file__", None) or "" for module in modules))


@functools.cache
def _digest_of(*files: str) -> str:
    digest = hashlib.sha256()
    for file in filter(None, files):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:12]
