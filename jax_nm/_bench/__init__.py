"""`jax-nm bench`: the sparse products against dense XLA, in the same run."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterable

from jax_nm._bench.points import DTYPES, OPS, PRECISIONS, SUITES, Point
from jax_nm._pattern import Pattern


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite",
        choices=sorted(SUITES),
        default="quick",
        help="problem list to run (default: quick)",
    )
    parser.add_argument("--rows", type=_positive, help="one problem instead of a suite")
    parser.add_argument("--cols", type=_positive, default=4096)
    parser.add_argument("--depth", type=_positive, default=4096)
    parser.add_argument(
        "--pattern", type=_pattern, default=Pattern(8, 32), help="n:m[:vector_length]"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--precision", choices=PRECISIONS, default="default")
    parser.add_argument("--op", choices=OPS, default="spmm")
    parser.add_argument("--repeats", type=_positive, default=7)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.png")
    parser.add_argument(
        "--resume", action="store_true", help="keep the points already in --json FILE"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints and saves; returns 1 if a result was wrong."""
    from jax_nm._bench import measure, report

    points = list(_points(args))
    done = {}
    if args.resume and args.json is not None:
        done = {report.key(point): point for point in report.load(args.json)}
    meta = report.metadata(_peaks(points))
    print(report.HEADER)
    measured = []
    for number, point in enumerate(points, start=1):
        found = done.get(report.key(point.as_json()))
        if found is None:
            print(f"[{number}/{len(points)}] {point}", file=sys.stderr, flush=True)
            found = measure.measure(point, args.repeats)
        measured.append(found)
        print(report.row(found), flush=True)
        if args.json is not None:
            report.save(args.json, meta, measured)
    print(*report.summary(measured), sep="\n")
    if args.plot is not None:
        report.plot(args.plot, meta, measured)
    wrong = [p for p in measured if not p["error_over_bound"] <= 1]
    if wrong:
        print(f"{len(wrong)} results exceed the error bound", file=sys.stderr)
    return 1 if wrong else 0


def _points(args: argparse.Namespace) -> Iterable[Point]:
    if args.rows is None:
        return SUITES[args.suite]()
    shape = (args.rows, args.cols, args.depth)
    return [Point(args.op, *shape, args.pattern, args.dtype, args.precision)]


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
