"""Timing: the device's own clock through the profiler, and the host's."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jax_nm._bench import machine
from jax_nm._bench.programs import Program

SAMPLE_SECONDS = 0.006  # work of one program before the next has its turn
MAX_RUNS = 16
WALL_ROUNDS = 3  # where device time is what counts
TRACES = 3  # tries, if the profiler loses events

K = TypeVar("K", bound=Hashable)


class Event(NamedTuple):
    """A kernel, copy or memset on the device."""

    name: str
    start_ns: float
    end_ns: float


class TraceError(RuntimeError):
    """A trace that does not tell which events belong to which program."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Milliseconds per call of each program, and the clock while they ran.

    `wall_ms` is host time, launches included. `ms` is device time if `timing` is
    'device'. Where the profiler shows no GPU it is 'wall', and both are the same.
    """

    ms: dict[Any, float]
    wall_ms: dict[Any, float]
    timing: str
    sm_clock_mhz: int | None


def measure(programs: Mapping[Any, Program], repeats: int) -> Times:
    """Median times of programs that take turns for `repeats` rounds.

    The rounds on the host's clock come first, so that the traced ones find the device
    at work, and warm.
    """
    marker = marker_name()
    runs = {key: _runs(program) for key, program in programs.items()}
    samples: dict[Any, list[float]] = {key: [] for key in programs}
    for _ in range(repeats if marker is None else min(repeats, WALL_ROUNDS)):
        for key, program in programs.items():
            start = time.perf_counter()
            _run(program, runs[key])
            seconds = time.perf_counter() - start
            samples[key].append(1e3 * seconds / (runs[key] * program.calls))
    wall_ms = {key: statistics.median(times) for key, times in samples.items()}
    if marker is None:
        return Times(wall_ms, wall_ms, "wall", machine.sm_clock())
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reading = pool.submit(machine.sm_clock)
        ms = _device_ms(programs, runs, repeats, marker)
        return Times(ms, wall_ms, "device", reading.result())


def _runs(program: Program) -> int:
    """Runs that take about SAMPLE_SECONDS; the first ones compile and record graphs."""
    _run(program, 2)
    start = time.perf_counter()
    _run(program, 3)
    seconds = (time.perf_counter() - start) / 3
    return max(1, min(MAX_RUNS, round(SAMPLE_SECONDS / seconds)))


def _run(program: Program, runs: int) -> None:
    for _ in range(runs):
        results = program.run()
    jax.block_until_ready(results)


def _device_ms(
    programs: Mapping[K, Program], runs: Mapping[K, int], repeats: int, marker: str
) -> dict[K, float]:
    turns = list(programs) * repeats

    def work() -> None:
        mark()
        for key in turns:
            _run(programs[key], runs[key])
            mark()

    for attempt in range(1, TRACES + 1):
        try:
            busy_ns = busy_per_turn(trace(work), marker, turns)
            break
        except TraceError as error:
            if attempt == TRACES:
                raise
            print(f"{error}; once more", file=sys.stderr, flush=True)
    return {
        key: 1e-6 * ns / (runs[key] * programs[key].calls)
        for key, ns in busy_ns.items()
    }


def busy_per_turn(
    events: Iterable[Event], marker: str, turns: Sequence[K]
) -> dict[K, float]:
    """Median busy time of the device, in ns, in the turns of each program.

    One kernel named `marker` ran before the first turn and after each, and the host
    waited in between: what lies between two markers belongs to one turn. Busy time is
    the union of the intervals of its events: transposes and memsets count, gaps do
    not, since they are the host's. A turn that lost events has fewer than the others
    of its program and is left out; at least half of them must be whole.

    Raises:
      TraceError: If there are fewer or more markers, or too few whole turns.
    """
    segments: list[list[Event]] = [[]]
    for event in sorted(events, key=lambda event: event.start_ns):
        if event.name == marker:
            segments.append([])
        else:
            segments[-1].append(event)
    if len(segments) != len(turns) + 2:
        raise TraceError(
            f"the trace has {len(segments) - 1} markers where {len(turns) + 1} ran"
        )
    by_program: dict[K, list[list[Event]]] = {}
    for key, segment in zip(turns, segments[1:-1], strict=True):
        by_program.setdefault(key, []).append(segment)
    medians = {}
    for key, mine in by_program.items():
        most = max(map(len, mine))
        whole = [segment for segment in mine if len(segment) == most]
        if most == 0 or 2 * len(whole) < len(mine):
            counts = sorted(map(len, mine))
            raise TraceError(f"the trace shows {counts} events in the turns of {key}")
        medians[key] = statistics.median(map(busy, whole))
    return medians


def busy(events: Iterable[Event]) -> float:
    """The length of the union of the events' intervals, in ns."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start_ns):
        total += max(0.0, event.end_ns - max(event.start_ns, until))
        until = max(until, event.end_ns)
    return total


def trace(work: Callable[[], None]) -> list[Event]:
    """What the GPU did during `work`; nothing where the profiler shows no GPU."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 0
    options.enable_hlo_proto = False
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            work()
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    return [
        Event(event.name, event.start_ns, event.start_ns + event.duration_ns)
        for plane in data.planes
        if "GPU" in plane.name
        for line in plane.lines
        if "Stream" in line.name
        for event in line.events
    ]


def mark() -> None:
    """Runs the marker and waits for it."""
    program, operand = _marker()
    program(operand).block_until_ready()


@functools.cache
def _marker() -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """One small kernel of an operation that no measured program has."""
    operand = jax.device_put(np.arange(32, dtype=np.uint32), jax.local_devices()[0])
    return jax.jit(jax.lax.population_count).lower(operand).compile(), operand


@functools.cache
def marker_name() -> str | None:
    """What the profiler calls the marker's kernel; None if it shows no kernels."""
    mark()

    def marks() -> None:
        for _ in range(5):
            mark()

    names = collections.Counter(event.name for event in trace(marks))
    kernels = [name for name, _ in names.most_common() if not name.startswith("Mem")]
    if kernels:
        return kernels[0]
    if jax.default_backend() == "gpu":
        print(
            "the profiler shows no kernels: times are the host's, launches included",
            file=sys.stderr,
            flush=True,
        )
    return None
