"""The console script: `jax-nm info` and `jax-nm bench` (the demo has its own file)."""

from __future__ import annotations

import collections
import importlib.util
import json
import pathlib
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jax_nm
from jax_nm import Pattern, _cli, _cpu, _lowering
from jax_nm._bench import (
    check,
    layer,
    machine,
    measure,
    operands,
    programs,
    report,
    timing,
)
from jax_nm._bench.points import DTYPES, OPS, SUITES, Point, by_shape
from jax_nm._bench.programs import Product
from jax_nm._bench.timing import Event

ONE = [
    *("bench", "--rows", "64", "--cols", "48", "--depth", "64"),
    *("--pattern", "4:8:16", "--repeats", "1"),
]
MS = ("ms", "ms_row_major", "dense_ms", "limit_ms", "floor_ms", "wall_ms")
POINT = {
    *("op", "rows", "cols", "depth", "n", "m", "vector_length", "dtype", "precision"),
    *("epilogue", "requested", "implementation", "kernel", *MS, "error_over_bound"),
    *("timing", "sm_clock_mhz"),
}
META = {
    *("gpu", "driver", "jax", "jaxlib", "jax_nm", "commit", "command", "date"),
    *("xla_flags", "copy_bandwidth_gbs", "dense_tflops_float32_default"),
}


@pytest.fixture
def small_roofs(monkeypatch):
    """The machine's peaks take seconds to measure and are not what is tested here."""
    monkeypatch.setattr(machine, "peak_flops", lambda dtype, precision: 1e12)
    monkeypatch.setattr(machine, "bandwidth", lambda: 1e11)


def numbers(point: Point, **changes) -> dict:
    """A measured point, without measuring it."""
    plain = dict.fromkeys(POINT, 0.5) | {"kernel": "k", "implementation": "sparse"}
    return plain | point.as_json() | changes


def test_info(capsys):
    assert _cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"jax_nm   {jax_nm.__version__}" in out
    assert f"{_cpu.isa()} will run" in out
    for op in ("spmm", "spmm_t", "sddmm"):
        assert f"Plan: {op} on " in out


@pytest.mark.parametrize("op", OPS)
def test_bench_of_one_problem(small_roofs, monkeypatch, capsys, tmp_path, op):
    monkeypatch.setenv("XLA_FLAGS", "")
    file, picture = (tmp_path / "deep" / f"points.{kind}" for kind in ("json", "png"))
    command = [*ONE, "--op", op, "--json", str(file), "--plot", str(picture)]
    assert _cli.main(command) == 0
    out, err = capsys.readouterr()
    assert "[1/1]" in err
    assert "x dense" in out
    assert "4:8:16" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    saved = json.loads(file.read_text())
    assert set(saved["meta"]) >= META
    (point,) = saved["points"]
    assert set(point) >= POINT
    assert (point["op"], point["rows"], point["vector_length"]) == (op, 64, 16)
    assert 0 < point["error_over_bound"] <= 1
    assert all(point[name] > 0 for name in MS)


def test_any_option_of_a_problem_selects_it(monkeypatch, small_roofs):
    measured = []

    def note(points, repeats, roofs):
        measured.extend(points)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", note)
    options = {
        **{"cols": 64, "dtype": "bfloat16", "op": "step"},
        "epilogue": "bias+gelu",
    }
    for option, value in options.items():
        with pytest.raises(KeyboardInterrupt):
            _cli.main(["bench", f"--{option}", str(value)])
        assert getattr(measured[-1], option) == value


@pytest.mark.parametrize("asked", [None, "sparse", "dense"])
@pytest.mark.parametrize("op", OPS)
def test_points_say_what_ran(small_roofs, tmp_path, op, asked):
    file = tmp_path / "points.json"
    command = [*ONE, "--op", op, "--json", str(file)]
    command += [] if asked is None else ["--implementation", asked]
    assert _cli.main(command) == 0
    (point,) = report.load(file)["points"]
    assert point["requested"] == asked
    assert point["implementation"] == (asked or "sparse")
    assert (point["kernel"] == "dense") == (asked == "dense")
    assert 0 < point["error_over_bound"] <= 1


@pytest.mark.parametrize(
    ("op", "kernels", "asked", "ran"),
    [
        ("spmm", ["k"], None, "sparse"),
        ("spmm", ["k"], "k", "k"),
        ("spmm", ["dense"], None, "dense"),
        ("step", ["k", "dense", "j"], None, "mixed"),
        ("step", ["k", "i", "j"], "k", "k"),
    ],
)
def test_what_ran_is_that_of_the_plans(op, kernels, asked, ran):
    point = Point(op, 1, 1, 1, Pattern(1, 2), "float32", implementation=asked)
    plans = [jax_nm.Plan("spmm", "cuda", "sm_90", "", k, (), "") for k in kernels]
    assert measure.what_ran(point, plans) == ran


def test_a_suite_is_asked_for_as_a_whole(small_roofs, monkeypatch):
    measured = []

    def note(points, *_):
        measured.extend(points)
        return [numbers(point) for point in points]

    monkeypatch.setattr(measure, "measure", note)
    assert _cli.main(["bench", "--suite", "quick", "--implementation", "dense"]) == 0
    assert {point.implementation for point in measured} == {"dense"}
    assert len(measured) == 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_epilogue_and_ragged_sizes(small_roofs, dtype):
    """Right results, and each point beside its own limit but one dense product."""
    patterns = (Pattern(8, 32, 128), Pattern(3, 32, 16))
    shape = ("spmm", 67, 150, 70)
    points = [Point(*shape, patterns[0], dtype, "default", "bias+gelu")]
    points += [Point(*shape, pattern, dtype) for pattern in patterns]
    roofs = machine.roofs(points, {})
    results = measure.measure(points, 1, roofs)
    assert [report.key(result) for result in results] == [
        report.key(point.as_json()) for point in points
    ]
    fused, plain, other = results
    assert fused["ms"] != plain["ms"]
    assert fused["limit_ms"] == plain["limit_ms"] != other["limit_ms"]
    assert fused["dense_ms"] == plain["dense_ms"] == other["dense_ms"]
    for result in results:
        assert 0 < result["error_over_bound"] <= 1


@pytest.mark.parametrize("op", OPS)
def test_the_check_finds_a_wrong_program(op):
    point = Point(op, 20, 40, 70, Pattern(3, 8, 16), "float32")
    product = Product.sparse(point, False)
    compiled = programs.compile_program(product)
    program = programs.build(product, compiled, operands.Stock())
    assert 0 < check.error_over_bound(point, [program]) <= 1
    for wrong in (float("nan"), 0.0, 1.1):
        program.compiled = lambda *each, wrong=wrong: jax.tree.map(
            lambda result: result * wrong, compiled(*each)
        )
        assert check.error_over_bound(point, [program]) == float("inf")


@pytest.mark.parametrize(("n", "depth"), [(8, 64), (8, 68), (3, 42), (32, 40)])
def test_drawn_operands_are_a_valid_weight(n, depth):
    pattern, cols = Pattern(n, 32, 16), 150
    product = Product("spmm", 64, cols, depth, "float32", "default", False, pattern)
    stock = operands.Stock()
    program = programs.build(product, None, stock)
    _, values, indices, _, _ = program.sets[0]
    for each in zip(values, indices, strict=True):
        jax_nm.validate(jax_nm.NMArray(*each, pattern, depth, cols))
    assert (indices[0] != indices[1]).any() or n == 32
    assert values[0].shape == (pattern.kept(depth), cols)
    everything = np.concatenate(stock.numbers("x", (64, 256), "float32", True, 4))
    # Mean and variance of 65536 draws, ten of their standard deviations around.
    assert abs(everything.mean()) < 10 / 256
    assert abs(everything.var() - 1) < 10 * 2**0.5 / 256


def test_layouts_hold_the_same_numbers():
    stock = operands.Stock()
    rows, features = (stock.numbers("x", (6, 4), "float32", fm, 2) for fm in (0, 1))
    assert features[0].format.layout.major_to_minor == (1, 0)
    np.testing.assert_array_equal(rows, features)
    assert (rows[0] != rows[1]).any()


def test_busy_is_the_union():
    events = [Event("a", 0, 4), Event("b", 2, 3), Event("c", 3, 6), Event("d", 8, 9)]
    assert timing.busy(reversed(events)) == 7
    assert timing.busy([]) == 0


def turn(start, *lengths):
    """Events one after another with gaps of 1, then the marker."""
    events = []
    for length in lengths:
        events.append(Event("kernel", start, start + length))
        start += length + 1
    return [*events, Event("mark", start + 1, start + 2)]


def test_events_are_told_apart_by_markers():
    turns = ["a", "b", "a", "b", "a", "b"]
    lengths = [(5, 1), (7,), (5, 3), (9,), (5, 5), (8,)]
    before = [Event("leftover", -9, -5), Event("mark", -4, -3)]
    trace = [*before]
    for number, each in enumerate(lengths):
        trace += turn(100 * number, *each)
    trace += [Event("leftover", 1000, 1001)]
    of = timing.busy_per_turn(trace[::-1], "mark", turns)
    assert of == {"a": 8, "b": 8}
    # A turn that lost an event does not count,
    lost = [event for event in trace if event.start_ns != 200]
    assert timing.busy_per_turn(lost, "mark", turns) == {"a": 8, "b": 8}
    lost = [event for event in trace if event.start_ns not in (0, 400)]
    with pytest.raises(timing.TraceError, match=r"\[1, 1, 2\] events in the turns"):
        timing.busy_per_turn(lost, "mark", turns)
    # and neither does a trace that lost a marker or every event.
    lost = [event for event in trace if event not in turn(0, 5, 1)[-1:]]
    with pytest.raises(timing.TraceError, match="6 markers where 7 ran"):
        timing.busy_per_turn(lost, "mark", turns)
    with pytest.raises(timing.TraceError, match="0 markers where 2 ran"):
        timing.busy_per_turn([], "mark", ["a"])


def test_trace_keeps_the_streams_of_the_gpu(monkeypatch):
    done = []
    assert timing.trace(lambda: done.append(1)) == []
    assert done == [1]

    def line(name):
        event = SimpleNamespace(name=name, start_ns=2.0, duration_ns=3.0)
        return SimpleNamespace(name=name, events=[event])

    def plane(name):
        lines = [line("Stream #7(Kernel)"), line("XLA Ops")]
        return SimpleNamespace(name=name, lines=lines)

    data = SimpleNamespace(planes=[plane("/host:CPU"), plane("/device:GPU:0")])
    read = SimpleNamespace(from_file=lambda path: data)
    monkeypatch.setattr(jax.profiler, "ProfileData", read)
    assert timing.trace(lambda: None) == [Event("Stream #7(Kernel)", 2.0, 5.0)]


class FakeProfiler:
    """A GPU on which a call takes as long as the test says, and so does its memset."""

    def __init__(self, monkeypatch, nanoseconds):
        self.now, self.events, self.tracing, self.lose = 0.0, [], False, 0
        run, mark = programs.Program.run, timing.mark

        def noted_run(program):
            for _ in range(program.calls):
                self.note("kernel", nanoseconds(self.products[id(program)]))
                self.note("Memset", 50)
            return run(program)

        def noted_mark():
            self.note("popcnt", 10)
            mark()

        build = programs.build

        def noted_build(product, *rest):
            program = build(product, *rest)
            self.products[id(program)] = product
            return program

        self.products = {}
        monkeypatch.setattr(programs.Program, "run", noted_run)
        monkeypatch.setattr(programs, "build", noted_build)
        monkeypatch.setattr(timing, "mark", noted_mark)
        monkeypatch.setattr(timing, "trace", self.trace)
        timing.marker_name.cache_clear()

    def note(self, name, length):
        self.now += 1000  # a launch
        self.events.append(Event(name, self.now, self.now + length))
        self.now += length

    def trace(self, work):
        self.events = []
        work()
        self.lose, lost = 0, self.lose
        return self.events[lost:]


@pytest.fixture
def gpu(monkeypatch):
    """The way of a GPU on this machine: its layouts, rotation and traced times."""
    monkeypatch.setattr(programs, "on_gpu", lambda: True)
    monkeypatch.setattr(programs, "ROTATED_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "sm_clock", lambda: 1500)
    yield
    timing.marker_name.cache_clear()


def test_gpu_points_carry_device_times(gpu, monkeypatch, small_roofs, capsys):
    def nanoseconds(product):
        sparse = product.pattern is not None
        own = 0 if product.feature_major else 300 if sparse else -200
        length = product.pattern.vector_length if sparse else 0
        return 10 * product.kept + own + length + 7 * (product.epilogue is not None)

    profiler = FakeProfiler(monkeypatch, nanoseconds)
    shape = ("spmm", 72, 96, 128)
    patterns = (Pattern(16, 32, 16), Pattern(8, 32, 16), Pattern(8, 32, 32))
    points = [Point(*shape, pattern, "bfloat16") for pattern in patterns]
    points.append(Point(*shape, patterns[0], "bfloat16", epilogue="bias+gelu"))
    assert timing.marker_name() == "popcnt"
    profiler.lose = 1  # the first try at tracing
    results = measure.measure(points, 3, machine.roofs(points, {}))
    assert "markers where" in capsys.readouterr().err
    for point, result in zip(points, results, strict=True):
        fused = 7 * (point.epilogue is not None)
        length = point.pattern.vector_length + fused + 50
        assert result["ms"] == pytest.approx(1e-6 * (10 * point.kept + length))
        assert result["ms_row_major"] == pytest.approx(result["ms"] + 300e-6)
        assert result["dense_ms"] == pytest.approx(1e-6 * (1280 - 200 + 50))
        assert result["limit_ms"] == pytest.approx(1e-6 * (10 * point.kept - 150))
        assert result["wall_ms"] > 0
        assert (result["timing"], result["sm_clock_mhz"]) == ("device", 1500)
        assert 0 < result["error_over_bound"] <= 1
    # Dense and two limits in both layouts, four sparse products in both.
    assert len(profiler.products) == 14


def test_by_way_of_dense_the_row_major_layout_is_its_own(
    gpu, monkeypatch, small_roofs, capsys
):
    """It runs so inside a model: only kernels ask for another."""
    profiler = FakeProfiler(monkeypatch, lambda p: 100 + 900 * p.feature_major)
    pattern = Pattern(16, 32, 16)
    points = [
        Point("spmm", 72, 96, 128, pattern, "bfloat16", implementation=asked)
        for asked in ("dense", "sparse")
    ]
    dense, sparse = measure.measure(points, 3, machine.roofs(points, {}))
    assert dense["kernel"] == "dense"
    assert dense["ms"] == dense["ms_row_major"] < sparse["ms"]
    # Dense and its limit in both layouts, and so the sparse product by a kernel.
    assert len(profiler.products) == 7


def test_gpu_rotates_past_the_cache(gpu, monkeypatch):
    monkeypatch.setattr(programs, "ROTATED_BYTES", 160 << 20)
    for point in SUITES["hopper"]():
        for layout in (False, True):
            product = Product.sparse(point, layout)
            elements = sum(np.prod(shape) for shape, _ in product.numbers.values())
            assert product.buffers * elements * 2 >= programs.ROTATED_BYTES
            assert 2 <= product.calls <= programs.MAX_CALLS


def test_a_trace_that_stays_unreadable_is_a_missing_point(
    gpu, monkeypatch, small_roofs, capsys
):
    profiler = FakeProfiler(monkeypatch, lambda product: 100)
    assert timing.marker_name() == "popcnt"
    trace = profiler.trace
    monkeypatch.setattr(timing, "trace", lambda work: trace(work)[1:])
    assert _cli.main(ONE) == 1
    err = capsys.readouterr().err
    assert err.count("; once more") == timing.TRACES - 1
    assert "1 points could not be timed" in err


def test_resume_keeps_what_is_there(small_roofs, monkeypatch, tmp_path):
    """Points of later shapes and the first run's meta survive an interruption."""
    file = tmp_path / "points.json"
    first, second = (Point("spmm", r, 8, 8, Pattern(1, 2), "float32") for r in (1, 2))
    monkeypatch.setitem(SUITES, "quick", lambda: [first, second])
    meta = machine.metadata() | {"date": "the first", "copy_bandwidth_gbs": 5.0}
    other = numbers(Point("spmm", 3, 8, 8, Pattern(1, 2), "float32"))
    done = numbers(second)
    report.save(file, meta, [other, done])

    def interrupted(points, repeats, roofs):
        assert points == [first]
        assert roofs["copy_bandwidth_gbs"] == 5
        raise KeyboardInterrupt

    command = ["bench", "--json", str(file), "--resume"]
    monkeypatch.setattr(measure, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _cli.main(command)
    assert report.load(file)["points"] == [other, done]
    new = numbers(first, ms=0.25)
    monkeypatch.setattr(measure, "measure", lambda *_: [new])
    assert _cli.main(command) == 0
    saved = report.load(file)
    assert saved["points"] == [new, done, other]
    assert saved["meta"] == meta | {"dense_tflops_float32_default": 1.0}


def test_resume_measures_a_shape_as_a_whole(small_roofs, monkeypatch, tmp_path):
    file = tmp_path / "points.json"
    points = list(SUITES["quick"]())
    report.save(file, machine.metadata(), [numbers(points[0], ms=9.0)])

    def all_of_them(group, repeats, roofs):
        assert group == points
        return [numbers(point) for point in group]

    monkeypatch.setattr(measure, "measure", all_of_them)
    assert _cli.main(["bench", "--json", str(file), "--resume"]) == 0
    assert [point["ms"] for point in report.load(file)["points"]] == [0.5] * 6


def test_resume_refuses_other_code(tmp_path, capsys):
    file = tmp_path / "points.json"
    report.save(file, machine.metadata() | {"commit": "abc", "jax": "0"}, [])
    before = file.read_text()
    assert _cli.main(["bench", "--json", str(file), "--resume"]) == 2
    assert "jax '0' there" in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"), [("{", "Expecting"), ("[]", "'meta' and 'points'")]
)
def test_resume_refuses_another_file(tmp_path, capsys, text, message):
    file = tmp_path / "points.json"
    file.write_text(text)
    assert _cli.main(["bench", "--json", str(file), "--resume"]) == 2
    assert message in capsys.readouterr().err
    assert file.read_text() == text
    assert _cli.main(["bench", "--json", str(tmp_path)]) == 2
    assert "got the directory" in capsys.readouterr().err


def test_shards_cover_the_suite(small_roofs, monkeypatch, tmp_path):
    shapes = [Point("spmm", r, 8, 8, Pattern(1, 2), "float32") for r in range(1, 8)]
    monkeypatch.setitem(SUITES, "quick", lambda: shapes)
    file, measured = tmp_path / "points.json", []

    def note(points, *_):
        measured.append([point.rows for point in points])
        return [numbers(point) for point in points]

    monkeypatch.setattr(measure, "measure", note)
    for shard in ("1/3", "0/3", "2/3"):
        command = ["bench", "--json", str(file), "--resume", "--shard", shard]
        assert _cli.main(command) == 0
    assert measured == [[2], [5], [1], [4], [7], [3], [6]]
    assert [point["rows"] for point in report.load(file)["points"]] == [*range(1, 8)]


def test_a_wrong_result_fails_the_bench(small_roofs, monkeypatch, capsys):
    for wrong in (float("nan"), float("inf"), 1.5):
        monkeypatch.setattr(check, "error_over_bound", lambda *_, e=wrong: e)
        assert _cli.main(ONE) == 1
        assert "1 results exceed the error bound" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "quick", "--rows", "5"], "--suite names a list"),
        (["--resume"], "--resume needs the --json FILE"),
        (["--rows", "0"], "must be an integer of at least 1, got 0"),
        (["--rows", "many"], "must be an integer of at least 1, got many"),
        (["--pattern", "8/32"], "text must read 'n:m'"),
        (["--pattern", "9:8"], "n must be between 1 and m"),
        (["--dtype", "int8"], "invalid choice"),
        (["--suite", "nothing"], "invalid choice"),
        (["--shard", "3/3"], "must read I/K with I from 0 to K - 1"),
        (["--shard", "1"], "must read I/K with I from 0 to K - 1"),
        (["--epilogue", "bias+gelu", "--op", "step"], "fused into spmm alone"),
        (["--implementation", "cublas"], "invalid choice"),
        (
            ["--dtype", "float32", "--implementation", "spmm_hopper_128x128"],
            "cannot run: spmm: implementation='spmm_hopper_128x128'",
        ),
    ],
)
def test_bad_options(capsys, options, message):
    try:
        status = _cli.main(["bench", *options])
    except SystemExit as error:  # argparse's own
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("suite", SUITES)
def test_points_of_a_suite_are_distinct(suite):
    points = list(SUITES[suite]())
    assert all(isinstance(point, Point) for point in points)
    assert len({report.key(point.as_json()) for point in points}) == len(points)


def test_hopper_is_the_sweep_and_more():
    points = list(SUITES["hopper"]())
    sizes = collections.Counter((p.rows, p.cols, p.depth) for p in points[:800])
    assert len(sizes) == 100
    assert set(sizes.values()) == {8}
    assert {(p.dtype, p.pattern.m) for p in points[:800]} == {("bfloat16", 32)}
    shapes = by_shape(points)
    assert len(shapes) == 110
    assert sum(map(len, shapes)) == len(points) == 842
    # The fused points are timed beside the plain ones of their shape.
    (fused,) = [shape for shape in shapes if any(p.epilogue for p in shape)]
    assert [p.epilogue for p in fused] == [None] * 8 + ["bias+gelu"] * 6


def test_small_and_decode():
    small, decode = (list(SUITES[name]()) for name in ("small", "decode"))
    half = [p for p in small if p.dtype == "bfloat16"]
    assert {p.pattern.vector_length for p in half} == {16, 32, 64}
    assert {(p.precision, p.pattern.m) for p in small} == {("default", 32)}
    assert all(p.rows >= 1024 for p in small)
    assert len(decode) == 5 * 4 * 2 * 3
    # Rows so few that the call itself wants x row-major.
    assert not any(_lowering.has_many_rows(p.rows) for p in decode)


def test_dispatch_is_the_sweep_and_decoding_and_shapes_unheard_of():
    points = list(SUITES["dispatch"]())
    assert points == list(SUITES["dispatch"]())
    full = [
        p
        for p in points[:-100]
        if p.pattern.n in (16, 4) and p.pattern.vector_length in (64, 128)
    ]
    assert len(full) == (100 + 20) * 2 * 2
    assert 800 <= len(points) <= 1100
    assert sum(p.rows % 2 for p in points[-100:]) >= 25


def test_summary_counts():
    point = Point("spmm", 512, 8, 8, Pattern(8, 32), "bfloat16")
    slow = {"dense_ms": 4.0, "limit_ms": 1.0, "ms": 1.31, "ms_row_major": 4.1}
    # Below 10 us a point may miss its limit by 2 us more.
    short = {"dense_ms": 0.04, "limit_ms": 0.009, "ms_row_major": 0.01}
    points = [
        numbers(point, **slow),
        numbers(point, **short, ms=0.0136),
        numbers(point, **short, ms=0.0138),
        numbers(point, **slow | {"ms": 4.5, "rows": 256}),
    ]
    first, second, *more = report.summary([*points, numbers(point, epilogue="e")])
    assert "8:32:128" in first
    assert "4 points" in first
    assert "mean 2.19, min 0.89, max 3.05 (ideal 4.00)" in first
    assert "mean 1.922, max 4.50; over 1.30: 3; slower than dense: 1" in second
    assert second.endswith("more: 1")
    (asked, _) = report.summary([numbers(point, requested="sparse")])
    assert "sparse    1 points" in asked
    assert len(more) == 2
    assert re.search(r"e +1 points", more[0])
    # A file of before knows no epilogues, and nobody was asked for anything.
    old = numbers(point)
    del old["epilogue"], old["requested"]
    assert report.summary([old]) == report.summary([numbers(point)])
    assert report.key(old) == report.key(numbers(point))


def test_tables_of_the_readme(tmp_path):
    root = pathlib.Path(__file__).parent.parent
    spec = importlib.util.spec_from_file_location(
        "tables", root / "benchmarks" / "tables.py"
    )
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    file = tmp_path / "points.json"
    square = (16, 16, 16)
    points = [
        *(numbers(Point("spmm", *square, Pattern(n, 8), "float32")) for n in (2, 4)),
        numbers(Point("spmm", 4, 16, 16, Pattern(2, 8), "float32"), ms=0.125),
        numbers(Point("spmm", *square, Pattern(2, 8), "float16", "highest", "gelu")),
    ]
    del points[0]["epilogue"]  # as in files of before
    report.save(file, {"device": "D", "jax": "1", "date": "today"}, points)
    assert tables.table(file, ["16,16,16"]).splitlines() == [
        "D, JAX 1, today:",
        "",
        "| product | rows, cols, depth | dtype | L | 4:8 (ideal 2) | 2:8 (ideal 4) |",
        "|---|---|---|---|---|---|",
        "| spmm | 16, 16, 16 | float32 | 128 | 1.00 | 1.00 |",
        "| spmm, gelu | 16, 16, 16 | float16 highest | 128 |  | 1.00 |",
    ]
    assert "| spmm | 4, 16, 16 | float32 | 128 |  | 4.00 |" in tables.table(file, [])
    kinds = tables.summary(file, []).splitlines()[4:]
    assert kinds == [
        "| spmm | float32 | 128 | 1 to 2 | 1.00 (1.00 to 1.00) | 2.00 (1.00 to 4.00) |",
        "| spmm, gelu | float16 highest | 128 | 1 |  | 1.00 (1.00 to 1.00) |",
    ]
    assert "| 4 | spmm | float32 | 128 | 1 |  | 4.00 (4.00 to 4.00) |" in tables.rows(
        file, []
    )
    layer = {"model": "M", "train": False, "rows": 8, "n": 2, "m": 8}
    layers = [layer | {"ms": 0.5, "dense_ms": 1.5}]
    report.save(file, {"device": "D", "jax": "1", "date": "today"}, layers)
    assert "| M | inference | 8 | 3.00 |" in tables.layer(file, [])
    text = "<!-- table: a/b.json 16,16,16 4,16,16 -->\n| old |\n<!-- end -->"
    assert tables.BLOCK.fullmatch(text)[4].split() == ["16,16,16", "4,16,16"]


# A layer of a model.

LAYER = [
    "layer",
    "--model",
    "tiny",
    "--repeats",
    "1",
    "--pattern",
    "16:32:32",
    "8:32:32",
]


@pytest.mark.parametrize("part", layer.PARTS)
@pytest.mark.parametrize("train", [False, True])
def test_layer(monkeypatch, capsys, tmp_path, part, train):
    monkeypatch.setenv("XLA_FLAGS", "")
    file, picture = (tmp_path / "deep" / f"layer.{kind}" for kind in ("json", "png"))
    command = [*LAYER, "--part", part, "--rows", "1", "70", "--json", str(file)]
    command += ["--plot", str(picture), *(["--train"] if train else [])]
    assert _cli.main(command) == 0
    assert picture.stat().st_size > 1000
    points = report.load(file)["points"]
    assert [(p["rows"], p["n"]) for p in points] == [(1, 16), (1, 8), (70, 16), (70, 8)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    for point, line in zip(points, lines[1:], strict=True):
        assert line.split()[:3] == ["tiny", part, str(point["rows"])]
        assert set(point["kernels"]) == set(layer.MODELS["tiny"].weights(part))
        assert point["ms"] > 0 and point["dense_ms"] > 0
        assert 0 <= point["relative_error"] < layer.LARGEST_ERROR
        assert point["train"] is train


def test_a_wrong_layer_fails(monkeypatch, capsys):
    monkeypatch.setattr(layer, "LARGEST_ERROR", 0.0)
    assert _cli.main([*LAYER, "--part", "mlp", "--rows", "2"]) == 1
    assert "2 results are not those of the dense layer" in capsys.readouterr().err


def test_layers_of_the_models_are_those_of_llama():
    sizes = {
        name: sum(depth * cols for depth, cols in model.weights("layer").values())
        for name, model in layer.MODELS.items()
    }
    # 32 and 80 such layers, and the embeddings, are 8 and 70 billion.
    assert sizes["llama-8b"] * 32 == pytest.approx(7.0e9, rel=0.01)
    assert sizes["llama-70b"] * 80 == pytest.approx(68.5e9, rel=0.01)


@pytest.mark.parametrize(
    ("option", "value"), [("--rows", "0"), ("--pattern", "5:4"), ("--model", "gpt")]
)
def test_wrong_arguments_of_layer(capsys, option, value):
    with pytest.raises(SystemExit):
        _cli.main(["layer", option, value])
    assert f"argument {option}" in capsys.readouterr().err
