"""`jax-nm bench`: the sparse products against dense XLA, in the same run."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import pathlib
import sys

from jax_nm._bench.points import DTYPES, OPS, PRECISIONS, SUITES, Point
from jax_nm._pattern import Pattern

# The one problem that is measured where any of its options is given.
_ONE = Point("spmm", 4096, 4096, 4096, Pattern(8, 32), "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite", choices=sorted(SUITES), help="problem list to run (default: quick)"
    )
    one = parser.add_argument_group(
        "one problem", "Measured instead of a list if any of these is given."
    )
    for name in ("rows", "cols", "depth"):
        one.add_argument(f"--{name}", type=_positive, help=_default(name))
    one.add_argument(
        "--pattern", type=_pattern, metavar="N:M[:L]", help=_default("pattern")
    )
    one.add_argument("--dtype", choices=DTYPES, help=_default("dtype"))
    one.add_argument("--precision", choices=PRECISIONS, help=_default("precision"))
    one.add_argument("--op", choices=OPS, help=_default("op"))
    parser.add_argument(
        "--repeats", type=_positive, default=7, help="samples per median (default: 7)"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="save here")
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE.png", help="draw the speed-ups here"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the points already in --json FILE"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints and saves; returns 1 if a result was wrong, 2 for bad usage."""
    from jax_nm._bench import measure, report

    one = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Point)
        if getattr(args, field.name) is not None
    }
    if args.suite is not None and one:
        options = ", ".join(f"--{name}" for name in one)
        return _fail(f"--suite names a list of problems, and {options} another one")
    if args.resume and args.json is None:
        return _fail("--resume needs the --json FILE to go on with")
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        return _fail("--plot needs matplotlib, pip install 'jax_nm[bench]'")

    suite = SUITES[args.suite or "quick"]
    points = [dataclasses.replace(_ONE, **one)] if one else list(suite())
    keys = [report.key(point.as_json()) for point in points]
    done = {}
    if args.resume:
        done = {report.key(point): point for point in report.load(args.json)}
    meta = report.metadata(_peaks(points))
    print(report.HEADER)
    for number, (key, point) in enumerate(zip(keys, points, strict=True), start=1):
        if key not in done:
            print(f"[{number}/{len(points)}] {point}", file=sys.stderr, flush=True)
            done[key] = measure.measure(point, args.repeats)
            meta["sm_clock_mhz"] = report.sm_clock()  # right after work, not at idle
        print(report.row(done[key]), flush=True)
        if args.json is not None:
            report.save(args.json, meta, [done[k] for k in keys if k in done])
    measured = [done[key] for key in keys]
    print(*report.summary(measured), sep="\n")
    if args.plot is not None:
        report.plot(args.plot, meta, measured)
    wrong = [p for p in measured if not p["error_over_bound"] <= 1]
    if wrong:
        print(f"{len(wrong)} results exceed the error bound", file=sys.stderr)
    return 1 if wrong else 0


def _default(name: str) -> str:
    return f"default: {getattr(_ONE, name)}"


def _fail(message: str) -> int:
    print(f"jax-nm bench: {message}", file=sys.stderr)
    return 2


def _peaks(points: list[Point]) -> dict[str, float]:
    from jax_nm._bench import measure

    peaks = {"copy_bandwidth_gbs": round(measure.bandwidth() / 1e9, 1)}
    for dtype, precision in sorted({(p.dtype, p.precision) for p in points}):
        rate = measure.peak_flops(dtype, precision)
        peaks[f"dense_tflops_{dtype}_{precision}"] = round(rate / 1e12, 2)
    return peaks


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _pattern(text: str) -> Pattern:
    try:
        return Pattern.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
