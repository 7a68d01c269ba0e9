"""The console script: `jax-nm info` and `jax-nm bench` (the demo has its own file)."""

from __future__ import annotations

import json

import pytest

import jax_nm
from jax_nm import _bench, _cli, _cpu
from jax_nm._bench import measure, programs, report
from jax_nm._bench.points import OPS, SUITES, Point

ONE = [
    *("bench", "--rows", "64", "--cols", "48", "--depth", "64"),
    *("--pattern", "4:8:16", "--repeats", "1"),
]
POINT = {
    *("op", "rows", "cols", "depth", "n", "m", "vector_length", "dtype", "precision"),
    *("implementation", "kernel", "ms", "ms_row_major", "dense_ms", "limit_ms"),
    *("floor_ms", "error_over_bound"),
}
META = {"gpu", "driver", "jax", "jaxlib", "jax_nm", "commit", "command", "date"}


@pytest.fixture
def small_roofs(monkeypatch):
    """The machine's peaks take seconds to measure and are not what is tested here."""
    monkeypatch.setattr(measure, "peak_flops", lambda dtype, precision: 1e12)
    monkeypatch.setattr(measure, "bandwidth", lambda: 1e11)
    yield
    programs.dense.cache_clear()


def test_info(capsys):
    assert _cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"jax_nm   {jax_nm.__version__}" in out
    assert f"{_cpu.isa()} will run" in out
    for op in ("spmm", "spmm_t", "sddmm"):
        assert f"Plan: {op} on " in out


@pytest.mark.parametrize("op", OPS)
def test_bench_of_one_problem(small_roofs, capsys, tmp_path, op):
    file, picture = tmp_path / "deep" / "points.json", tmp_path / "points.png"
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
    for name in ("ms", "ms_row_major", "dense_ms", "limit_ms", "floor_ms"):
        assert point[name] > 0


def test_any_option_of_a_problem_selects_it(monkeypatch):
    measured = []

    def note(point, repeats):
        measured.append(point)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", note)
    monkeypatch.setattr(_bench, "_peaks", lambda points: {})
    for option, value in (("--cols", 64), ("--dtype", "bfloat16"), ("--op", "step")):
        with pytest.raises(KeyboardInterrupt):
            _cli.main(["bench", option, str(value)])
        assert getattr(measured[-1], option[2:]) == value


def test_resume_keeps_what_is_there(small_roofs, monkeypatch, tmp_path):
    """Points that come later in the suite survive an interruption of the second run."""
    file = tmp_path / "points.json"
    first, second = list(SUITES["quick"]())[:2]
    monkeypatch.setitem(SUITES, "quick", lambda: [first, second])
    numbers = dict.fromkeys(POINT - set(first.as_json()), 0.5) | {"kernel": "k"}
    done = {**second.as_json(), **numbers, "implementation": "sparse"}
    report.save(file, {}, [done])

    def interrupted(point, repeats):
        assert point == first
        raise KeyboardInterrupt

    command = ["bench", "--json", str(file), "--resume"]
    monkeypatch.setattr(measure, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _cli.main(command)
    assert report.load(file) == [done]
    other = {**done, **first.as_json()}
    monkeypatch.setattr(measure, "measure", lambda point, repeats: other)
    assert _cli.main(command) == 0
    assert report.load(file) == [other, done]


def test_a_wrong_result_fails_the_bench(small_roofs, monkeypatch, capsys):
    for wrong in (float("nan"), float("inf"), 1.5):
        monkeypatch.setattr(measure, "error_over_bound", lambda *_, e=wrong: e)
        assert _cli.main(ONE) == 1
        assert "1 results exceed the error bound" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "quick", "--rows", "5"], "--suite names a list"),
        (["--resume"], "--resume needs the --json FILE"),
        (["--rows", "0"], "must be at least 1, got 0"),
        (["--rows", "many"], "invalid"),
        (["--pattern", "8/32"], "text must read 'n:m'"),
        (["--pattern", "9:8"], "n must be between 1 and m"),
        (["--dtype", "int8"], "invalid choice"),
        (["--suite", "nothing"], "invalid choice"),
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
