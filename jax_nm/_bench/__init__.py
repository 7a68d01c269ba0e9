"""`jax-nm bench`: the sparse products against dense XLA, in the same run."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import pathlib
import sys

from jax_nm._bench.arguments import pattern, positive
from jax_nm._bench.points import (
    DTYPES,
    EPILOGUES,
    IMPLEMENTATIONS,
    OPS,
    PRECISIONS,
    SUITES,
    Point,
    by_shape,
)
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
        one.add_argument(f"--{name}", type=positive, help=_default(name))
    one.add_argument(
        "--pattern", type=pattern, metavar="N:M[:L]", help=_default("pattern")
    )
    one.add_argument("--dtype", choices=DTYPES, help=_default("dtype"))
    one.add_argument("--precision", choices=PRECISIONS, help=_default("precision"))
    one.add_argument("--op", choices=OPS, help=_default("op"))
    one.add_argument("--epilogue", choices=EPILOGUES, help=_default("epilogue"))
    parser.add_argument(
        "--implementation",
        choices=IMPLEMENTATIONS,
        metavar="sparse|dense|KERNEL",
        help="what every product is asked for (default: what seems fastest)",
    )
    parser.add_argument(
        "--repeats", type=positive, default=7, help="rounds per median (default: 7)"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="save here")
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE.png", help="draw the speed-ups here"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the points already in --json FILE"
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/K",
        help="of the shapes only I, I + K, I + 2K, ... with I from 0 to K - 1; "
        "--resume gathers the shards in one file",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints and saves; 1 if a point is wrong or missing, 2 for bad usage."""
    from jax_nm._bench import machine, measure, report, timing

    asked = {"implementation": args.implementation} if args.implementation else {}
    one = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Point)
        if field.name not in asked and getattr(args, field.name) is not None
    }
    if args.suite is not None and one:
        options = ", ".join(f"--{name}" for name in one)
        return _fail(f"--suite names a list of problems, and {options} another one")
    if args.epilogue is not None and (args.op or _ONE.op) != "spmm":
        return _fail(f"--epilogue is fused into spmm alone, got --op {args.op}")
    if args.resume and args.json is None:
        return _fail("--resume needs the --json FILE to go on with")
    if args.json is not None and args.json.is_dir():
        return _fail(f"--json must name a file, got the directory {args.json}")
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        return _fail("--plot needs matplotlib, pip install 'jax_nm[bench]'")

    points = (
        [dataclasses.replace(_ONE, **one)] if one else SUITES[args.suite or "quick"]()
    )
    points = [dataclasses.replace(point, **asked) for point in points]
    if asked:
        try:
            for point in points:
                measure.plans_of(point)
        except ValueError as error:
            return _fail(f"--implementation asks for what cannot run: {error}")
    keys = [report.key(point.as_json()) for point in points]
    meta = machine.metadata()
    done = {}
    if args.resume and args.json.exists():
        try:
            earlier = report.load(args.json)
        except ValueError as error:
            return _fail(
                f"--resume goes on with a file of an earlier run, got {args.json}: "
                f"{error}; name another file, or measure without --resume"
            )
        different = machine.differences(earlier["meta"], meta)
        if different:
            return _fail(
                f"--resume adds only points of the same code on the same machine to "
                f"{args.json}, got {'; '.join(different)}; measure into another file, "
                "or without --resume"
            )
        meta = earlier["meta"]
        done = {report.key(point): point for point in earlier["points"]}

    first, step = args.shard
    shapes = by_shape(points)[first::step]
    # A shape is measured as a whole, so that its points stand beside one dense time.
    pending = [
        shape
        for shape in shapes
        if any(report.key(point.as_json()) not in done for point in shape)
    ]
    timing.marker_name()  # what fails here fails before anything is compiled
    meta |= machine.roofs([point for shape in pending for point in shape], meta)
    print(report.HEADER)
    untimed = 0
    for number, shape in enumerate(shapes, start=1):
        if shape in pending:
            print(
                f"[{number}/{len(shapes)}] {_describe(shape)}",
                file=sys.stderr,
                flush=True,
            )
            try:
                results = measure.measure(shape, args.repeats, meta)
            except timing.TraceError as error:
                untimed += len(shape)
                print(f"not timed: {error}", file=sys.stderr, flush=True)
                continue
            done |= {report.key(result): result for result in results}
            if args.json is not None:
                known = dict.fromkeys([*keys, *done])
                report.save(args.json, meta, [done[k] for k in known if k in done])
        for point in shape:
            print(report.row(done[report.key(point.as_json())]), flush=True)
    measured = [done[key] for key in keys if key in done]
    print(*report.summary(measured), sep="\n")
    if args.plot is not None:
        report.plot(args.plot, meta, measured)
    wrong = sum(not point["error_over_bound"] <= 1 for point in measured)
    if wrong:
        print(f"{wrong} results exceed the error bound", file=sys.stderr)
    if untimed:
        print(f"{untimed} points could not be timed", file=sys.stderr)
    return 1 if wrong or untimed else 0


def _default(name: str) -> str:
    return f"default: {getattr(_ONE, name) or 'none'}"


def _describe(shape: list[Point]) -> str:
    p = shape[0]
    return (
        f"{p.op} {p.rows}, {p.cols}, {p.depth} {p.dtype} {p.precision}: "
        f"{', '.join(dict.fromkeys(str(point.pattern) for point in shape))}"
    )


def _fail(message: str) -> int:
    print(f"jax-nm bench: {message}", file=sys.stderr)
    return 2


def _shard(text: str) -> tuple[int, int]:
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal() and int(first) < int(step)):
        raise argparse.ArgumentTypeError(
            f"must read I/K with I from 0 to K - 1, as 0/3, 1/3 and 2/3, got {text!r}"
        )
    return int(first), int(step)
