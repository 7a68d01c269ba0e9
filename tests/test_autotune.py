"""`autotune`: what is measured, where it is kept, and which lowerings it reaches."""

from __future__ import annotations

import json
import re
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.experimental import multihost_utils
from problems import OPS, Problem, integers

import jax_nm
from jax_nm import Pattern, _autotune, _lowering, _measured, _plan, _tuning

SHAPE = jax.ShapeDtypeStruct
GPU = "NVIDIA Test 9000"
ROWS, DEPTH, COLS = 1024, 512, 512
PATTERN = Pattern(8, 32, 128)
DIRECTORY = _measured.directory  # conftest.py puts another in its place
TARGETS = dict(zip(OPS, map(_lowering.target_name, OPS), strict=True))


def weight(dtype="bfloat16", *batch):
    kernel = SHAPE((*batch, DEPTH, COLS), dtype)
    return jax.eval_shape(lambda kernel: jax_nm.compress(kernel, PATTERN), kernel)


class Timer:
    """In place of the measurement: kernels are the slower, the later they come."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, arguments, kernels):
        self.calls.append(arguments)
        # What the estimate prefers is the slowest.
        chosen = _tuning.choose(*_measured.with_kernel(arguments, 0, 90))["kernel"]
        assert len(kernels) > 1
        return {
            name: 900.0 if name == chosen else 10.0 + number
            for number, name in enumerate(kernels)
        }


@pytest.fixture
def timer(monkeypatch, tmp_path, with_cuda):
    """A process with one GPU, an empty cache, and a stub of the timer."""
    monkeypatch.setattr(_measured, "directory", DIRECTORY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = types.SimpleNamespace(
        platform="gpu", id=0, device_kind=GPU, compute_capability="9.0"
    )
    monkeypatch.setattr(_plan, "default_device", lambda: device)
    monkeypatch.setattr(_lowering, "local_gpu", lambda: GPU)
    monkeypatch.setattr(_lowering, "local_arch", lambda: 90)
    monkeypatch.setattr(_tuning, "dense_pays", lambda *_: False)
    timer = Timer()
    monkeypatch.setattr(_autotune, "measure", timer)
    _measured.clear()
    yield timer
    _measured.clear()


def file():
    (file,) = _measured.directory().iterdir()
    return file


def autotune(op="spmm", **options):
    return jax_nm.autotune((ROWS, DEPTH), weight(), op, **options)


def kernel_ids(rows=ROWS, dtype="bfloat16", export=False, **options) -> dict[str, int]:
    """The kernel attribute of the product and of its gradients, lowered anew."""
    w = weight(dtype)

    def run(x, values, indices, dy):
        def call(x, values):
            w_ = jax_nm.NMArray(values, indices, PATTERN, DEPTH, COLS)
            return jax_nm.spmm(x, w_, **options)

        y, pull = jax.vjp(call, x, values)
        return y, pull(dy)

    shapes = (
        SHAPE((rows, DEPTH), dtype),
        w.values,
        w.indices,
        SHAPE((rows, COLS), dtype),
    )
    if export:
        checks = jax_nm.export_disabled_checks()
        exported = jax.export.export(
            jax.jit(run), platforms=("cuda",), disabled_checks=checks
        )(*shapes)
        text = exported.mlir_module()
    else:
        text = jax.jit(run).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @jax_nm\.(\w+)\.v1\(.*kernel = (\d+) : i32", text)
    assert calls
    return {op: int(kernel) for op, kernel in calls}


AUTO = {"spmm": 0, "spmm_t": 0, "sddmm": 0}


@pytest.mark.parametrize("op", OPS)
def test_products_run_the_measured_kernel(timer, op):
    assert kernel_ids() == AUTO
    found = autotune(op)
    kernel = _tuning.kernels(op)[found.kernel]
    assert kernel_ids() == AUTO | {op: kernel}
    # Other problems keep theirs.
    assert kernel_ids(rows=ROWS + 8) == AUTO
    assert kernel_ids(dtype="float16") == AUTO
    assert kernel_ids(precision="highest") == AUTO
    assert kernel_ids(result_layout="row")["spmm"] == 0
    # Rows are padded for the call: as the kernel sees it, this is the same problem.
    assert kernel_ids(rows=ROWS - 3) == AUTO | {op: kernel}


def test_fused_products_run_it_too(timer):
    kernel = _tuning.kernels("spmm")[autotune().kernel]
    ids = kernel_ids(bias=jnp.ones(COLS), activation="gelu")
    assert ids == {"spmm_fused": kernel, "spmm_t": 0, "sddmm": 0}


def test_it_is_left_out_where_it_cannot_compute_the_product(timer, monkeypatch):
    autotune()
    choose = _tuning.choose

    def no_epilogue(*arguments):
        if arguments[13] and (arguments[15] or arguments[16]):
            raise ValueError("no epilogue")
        return choose(*arguments)

    monkeypatch.setattr(_tuning, "choose", no_epilogue)
    assert kernel_ids(activation="gelu")["spmm_fused"] == 0
    assert kernel_ids()["spmm"] != 0


def test_what_is_asked_for_wins(timer):
    found = autotune()
    other = next(name for name, _ in found.us if name != found.kernel)
    assert kernel_ids(implementation=other)["spmm"] == _tuning.kernels()[other]
    assert kernel_ids(implementation="sparse") == AUTO


def test_exported_programs_may_run_on_another_gpu(timer):
    autotune()
    assert kernel_ids()["spmm"] != 0
    assert kernel_ids(export=True) == AUTO


def test_dense_stays_dense(timer, monkeypatch):
    monkeypatch.setattr(_lowering, "dense_pays", lambda *_: True)
    found = autotune()
    assert "calls stay dense" in found.note and found.kernel in found.note
    assert "in none of them" in autotune("sddmm").note
    traced = jax.jit(lambda x: jax_nm.spmm(x, jax.tree.map(jnp.zeros_like, weight())))
    text = traced.trace(SHAPE((ROWS, DEPTH), "bfloat16")).lower(
        lowering_platforms=("cuda",)
    )
    assert "@jax_nm.spmm." not in text.as_text()


@pytest.mark.parametrize("op", OPS)
def test_the_plan_says_what_was_measured(timer, op):
    def explain(**options):
        return jax_nm.explain(SHAPE((ROWS, DEPTH), "bfloat16"), weight(), op, **options)

    before = explain()
    found = autotune(op)
    plan = explain()
    assert plan.kernel == found.kernel != before.kernel
    assert f"measured by jax_nm.autotune on {found.date}" in plan.why
    assert f"the fastest of {len(found.us)}, 1" in plan.why
    rejected = dict(plan.rejected)
    assert rejected[before.kernel] == "measured at 900 us"
    assert set(rejected) == set(_tuning.kernels(op)) - {found.kernel}
    # Not of another machine, and not where something was asked for.
    assert explain(arch=90) == before
    assert explain(implementation="sparse") == before


def test_the_value_is_readable(timer):
    first, again = autotune(), autotune()
    assert (first.cached, again.cached, len(timer.calls)) == (False, True, 1)
    assert first.us == again.us
    assert sorted(us for _, us in first.us) == [us for _, us in first.us]
    text = repr(again)
    assert text.startswith(f"Measurement: spmm on {GPU}, {first.date} (from the cache)")
    assert f"kernel   {first.kernel}: 1" in text
    assert "rows 1024, depth 512, cols 512, pattern 8:32:128, batch 1, bfloat16" in text
    for name, _ in first.us:
        assert name in text
    assert not autotune(refresh=True).cached
    assert len(timer.calls) == 2


def test_candidates_are_the_legal_kernels(timer):
    found = dict(autotune("spmm", precision="highest").us)
    plan = jax_nm.explain(SHAPE((ROWS, DEPTH), "bfloat16"), weight(), arch=90)
    slower = {name for name, reason in plan.rejected if "estimated at" in reason}
    assert set(found) == slower | {plan.kernel}


# The file.


def test_a_later_process_finds_the_file(timer):
    found = autotune()
    autotune("sddmm")
    _measured.clear()
    ids = kernel_ids()
    assert ids["spmm"] == _tuning.kernels()[found.kernel] != 0
    assert ids["sddmm"] != 0 == ids["spmm_t"]
    assert autotune() == _as_cached(found)
    content = json.loads(file().read_text())
    assert content["gpu"] == GPU and content["jax_nm"] == jax_nm.__version__
    assert content["problems"][found.problem] == {
        "kernel": found.kernel,
        "us": dict(found.us),
        "date": found.date,
    }


def _as_cached(found):
    return _autotune.dataclasses.replace(found, cached=True)


def test_the_file_lies_in_the_home_directory_by_default(timer, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _measured.directory() == tmp_path / ".cache" / "jax_nm" / "autotune"


def _broken(change):
    def edit(text):
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edit


def _entry(content):
    (entry,) = content["problems"].values()
    return entry


BROKEN = {
    "nothing": (lambda text: "", "Expecting value"),
    "half": (lambda text: text[: len(text) // 2], "JSON|Expecting|Unterminated|delim"),
    "a list": (lambda text: "[]", "an object"),
    "another version": (
        _broken(lambda c: c.update(jax_nm="0.0.1")),
        f"it has jax_nm '0.0.1', here it is '{jax_nm.__version__}'",
    ),
    "another gpu": (_broken(lambda c: c.update(gpu="A100")), "it has gpu 'A100'"),
    "another build": (_broken(lambda c: c.update(kernels="ab")), "it has kernels"),
    "another format": (_broken(lambda c: c.update(format=2)), "it has format 2"),
    "no problems": (_broken(lambda c: c.update(problems=3)), "hold problems"),
    "no kernel": (_broken(lambda c: _entry(c).pop("kernel")), "must hold kernel"),
    "a list for a kernel": (_broken(lambda c: _entry(c).update(kernel=[])), "kernel"),
    "unknown kernel": (
        _broken(lambda c: _entry(c).update(kernel="k", us={"k": 1.0})),
        "there is no kernel 'k' of spmm",
    ),
    "not a time": (
        _broken(lambda c: _entry(c)["us"].update({_entry(c)["kernel"]: float("nan")})),
        "has the time nan",
    ),
}


@pytest.mark.parametrize(("edit", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_wrong_is_ignored_and_replaced(timer, edit, reason):
    found = autotune()
    file().write_text(edit(file().read_text()))
    _measured.clear()
    with pytest.warns(UserWarning, match=f"are ignored: .*({reason}).*autotune"):
        assert kernel_ids() == AUTO
    assert kernel_ids() == AUTO  # and says so once
    with pytest.warns(UserWarning, match="are ignored"):
        again = autotune()
    assert (again.cached, len(timer.calls)) == (False, 2)
    _measured.clear()
    assert kernel_ids()["spmm"] == _tuning.kernels()[found.kernel]


def test_a_file_that_is_no_text(timer):
    autotune()
    file().write_bytes(b"\xff\xfe")
    _measured.clear()
    with pytest.warns(UserWarning, match="it cannot be read"):
        assert kernel_ids() == AUTO


def test_other_gpus_versions_and_builds_have_their_own(timer, monkeypatch):
    autotune()
    with monkeypatch.context() as patch:
        patch.setattr(_lowering, "local_gpu", lambda: "NVIDIA Other")
        assert kernel_ids() == AUTO
        assert jax_nm.explain(SHAPE((ROWS, DEPTH), "bfloat16"), weight()).kernel
    for name in ("_version", "_digest"):
        with monkeypatch.context() as patch:
            patch.setattr(_measured, name, lambda *_: "other")
            _measured.clear()
            assert kernel_ids() == AUTO
    # Without a GPU, or with GPUs of several kinds, nothing is known.
    monkeypatch.setattr(_lowering, "local_gpu", lambda: None)
    assert kernel_ids() == AUTO


def test_entries_of_several_writers_stay(timer):
    """Each writer merges with what it finds, and readers never find half a file."""
    entry = _measured.Entry("spmm_64x64_window", (("spmm_64x64_window", 1.0),), "now")
    place = _measured.path(GPU, None)
    for number in range(3):
        assert _measured.write(place, GPU, None, f"spmm, {number}", entry) is None
    others = [
        threading.Thread(
            target=_measured.write, args=(place, GPU, None, f"spmm, t{k}", entry)
        )
        for k in range(4)
    ]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    names = set(_measured.read(place, GPU, None))
    assert {f"spmm, {number}" for number in range(3)} < names
    assert list(_measured.directory().iterdir()) == [place]  # nothing temporary


def test_a_cache_that_cannot_be_written(timer, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(UserWarning, match="not stored, .* set XDG_CACHE_HOME"):
        found = autotune()
    assert "not stored" in repr(found)
    assert kernel_ids()["spmm"] == _tuning.kernels()[found.kernel]


# Several processes.


class Cluster:
    """Two processes, one after the other: what process 0 sends the other receives."""

    def __init__(self, monkeypatch) -> None:
        self.index, self.sent = 0, None
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda: self.index)
        monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", self.broadcast)

    def broadcast(self, message):
        if self.index == 0:
            self.sent = message
        assert self.sent.shape == message.shape
        assert self.index == 0 or not message.any()
        return self.sent.astype(np.uint32)  # as the sum over processes has it

    def enter(self, index):
        self.index = index
        _measured.clear()


def test_process_0_measures_for_all(timer, monkeypatch):
    cluster = Cluster(monkeypatch)
    found = autotune()
    ids = kernel_ids()
    cluster.enter(1)
    assert kernel_ids() == AUTO  # before the call, whatever its own file says
    assert autotune() == found
    assert len(timer.calls) == 1
    assert kernel_ids() == ids != AUTO
    # In the next run process 0 reads its file, and still has to tell the others.
    cluster.enter(0)
    assert kernel_ids() == AUTO
    assert autotune() == _as_cached(found)
    assert kernel_ids() == ids
    assert len(timer.calls) == 1


def test_a_failure_reaches_all(timer, monkeypatch):
    cluster = Cluster(monkeypatch)

    def measure(*_):
        raise ZeroDivisionError("no time")

    monkeypatch.setattr(_autotune, "measure", measure)
    with pytest.raises(ZeroDivisionError):
        autotune()
    cluster.enter(1)
    with pytest.raises(RuntimeError, match="process 0: ZeroDivisionError: no time"):
        autotune()


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (((ROWS, DEPTH), weight(), "matmul"), {}, ValueError, "op must be 'spmm'"),
        (((ROWS, 7), weight()), {}, ValueError, "x has depth 7 but w was .* 512"),
        (((0, DEPTH), weight()), {}, ValueError, "is empty, so no kernel"),
        (((-1, DEPTH), weight()), {}, ValueError, "no negative size"),
        ((7, weight()), {}, TypeError, "a sequence of ints, got 7"),
        ((("a", DEPTH), weight()), {}, TypeError, "a sequence of ints"),
        ((SHAPE((1, DEPTH), "float32"), weight()), {}, TypeError, "pass x.shape"),
        (((ROWS, DEPTH), "w"), {}, TypeError, "w must be a jax_nm.NMArray"),
        (((ROWS, DEPTH), weight()), {"dtype": "int8"}, TypeError, "dtype"),
        (((ROWS, DEPTH), weight()), {"precision": "fast"}, ValueError, "precision"),
    ],
    ids=str,
)
def test_mistakes(timer, arguments, options, error, message):
    with pytest.raises(error, match=f"autotune: .*{message}"):
        jax_nm.autotune(*arguments, **options)


def test_float64_has_no_cuda_kernels(timer):
    with jax.enable_x64(True), pytest.raises(ValueError, match="for float64; cast"):
        jax_nm.autotune((ROWS, DEPTH), weight("float64"))


def test_without_a_gpu():
    with (
        jax.default_device(jax.devices("cpu")[0]),
        pytest.raises(RuntimeError, match=r"an NVIDIA GPU, .* cpu:0.*; run it on"),
    ):
        autotune()


def test_without_the_cuda_kernels(timer, monkeypatch):
    monkeypatch.setattr(_lowering, "cuda_module", lambda: None)
    with pytest.raises(RuntimeError, match=r"without its CUDA kernels; reinstall"):
        autotune()


def test_gpus_of_several_kinds(timer, monkeypatch):
    monkeypatch.setattr(_lowering, "local_gpu", lambda: None)
    with pytest.raises(RuntimeError, match=r"of one kind.*CUDA_VISIBLE_DEVICES"):
        autotune()


# The clock.


def test_the_median_of_programs_in_turn(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_autotune.time, "perf_counter", lambda: now[0])
    costs = {"fast": 0.010, "slow": 0.015, "hopeless": 0.1}
    runs = dict.fromkeys(costs, 0)

    def program(name):
        def run():
            runs[name] += 1
            # One slow run does not move a median.
            now[0] += costs[name] * (50 if runs[name] == 6 else 1)

        return run

    us = _autotune.median_us({name: program(name) for name in costs}, 2, 9)
    assert us == pytest.approx({name: 1e6 * cost / 2 for name, cost in costs.items()})
    assert runs["fast"] == runs["slow"] == 3 + _autotune.ROUNDS
    assert runs["hopeless"] == 3 + 1  # one turn and no other


@pytest.mark.parametrize("op", OPS)
def test_programs_of_a_problem_run(op, monkeypatch):
    """On the CPU, whose kernels leave no choice; in both layouts, with a batch."""
    monkeypatch.setattr(_autotune, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(_autotune, "ROTATED_BYTES", 0)
    monkeypatch.setattr(_autotune, "MAX_CALLS", 5)
    arguments = (op, "float32", "float32", 2, 12, 22, 20, 3, 8, 4)
    arguments += (True, False, True, 0, 0, "", False, False)
    seen = []

    def traced(x):
        # What is measured while a program is traced becomes no part of it.
        seen.append(_autotune.measure(arguments, {"auto": 0}))
        return x

    with jax.default_device(jax.devices("cpu")[0]):
        jaxpr = jax.make_jaxpr(traced)(1.0)
    (us,) = seen
    assert us["auto"] > 0
    assert not jaxpr.eqns


def test_a_program_makes_all_its_calls():
    """Of calls that are the same XLA makes one."""
    arguments = ("spmm", "float32", "float32", 1, 8, 16, 8, 2, 4, 4)
    arguments += (False, False, True, 0, 0, "", False, False)
    with jax.default_device(jax.devices("cpu")[0]):
        columns = [
            [jnp.full((1, 8, 16), k) for k in (1.0, 2.0, 3.0)],
            [jnp.full((1, 8, 8), k) for k in (1.0, 2.0, 3.0)],
            [jnp.full((1, 2, 8), k, jnp.uint8) for k in (0, 1, 2)],
        ]
        compiled = _autotune._compile(arguments, 0, tuple(columns), 3)
        results = compiled(*columns)
    assert compiled.as_text().count('custom_call_target="jax_nm.spmm.v1"') == 9
    values = sorted({float(y[0, 0, 0]) for y in results})
    assert values == [8.0 * k for k in (1, 2, 3, 4, 6, 9)]


@pytest.mark.parametrize("text", ["1:1:4", "3:7:4", "8:32:128", "256:256:4", "5:12:1"])
def test_indices_do_not_repeat(text):
    pattern = Pattern.parse(text)
    n, m, length = pattern.n, pattern.m, pattern.vector_length
    arguments = ("spmm", "float32", "float32", 2, 8, 300, 20, n, m, length)
    indices = np.asarray(_autotune._indices(arguments)())
    assert indices.shape == (2, pattern.groups(20), pattern.kept(300))
    assert indices.dtype == np.uint8
    windows = indices.reshape(-1, n).astype(int)
    assert (windows < m).all() and (np.diff(windows) > 0).all()


@pytest.mark.parametrize("op", OPS)
def test_a_gpu_is_measured_and_stays_exact(cuda, monkeypatch, tmp_path, op, highest):
    """The kernel that was found runs, in a process that reads the file too."""
    monkeypatch.setattr(_measured, "directory", DIRECTORY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_lowering, "dense_pays", lambda *_: False)
    problem = Problem("autotuned", (136,), 520, 264, Pattern(8, 32, 128), "bfloat16")
    operands = integers(problem, 2)
    w = jax.tree.map(jnp.asarray, operands.weight(problem))

    def run(x, values, dy):
        def call(x, values):
            indices, pattern = w.indices, w.pattern
            return jax_nm.spmm(
                x, jax_nm.NMArray(values, indices, pattern, w.depth, w.cols)
            )

        y, pull = jax.vjp(call, x, values)
        dx, dvalues = pull(dy)
        return {"spmm": y, "spmm_t": dx, "sddmm": dvalues}[op]

    _measured.clear()
    try:
        found = jax_nm.autotune((136, 520), w, op)
        assert all(us > 0 for _, us in found.us)
        assert not found.cached
        _measured.clear()
        plan = jax_nm.explain(operands.x, w, op)
        lowered = jax.jit(run).lower(operands.x, w.values, operands.dy)
    finally:
        _measured.clear()
    assert plan.kernel == found.kernel
    assert f"measured by jax_nm.autotune on {found.date}" in plan.why
    call = (
        rf"@{re.escape(TARGETS[op])}\(.*kernel = {_tuning.kernels(op)[found.kernel]} :"
    )
    assert re.search(call, lowered.as_text())
    result = lowered.compile()(operands.x, w.values, operands.dy)
    exact = oracle.compute(op, problem, *operands.of(op))
    np.testing.assert_array_equal(result, exact.astype(result.dtype), strict=True)
