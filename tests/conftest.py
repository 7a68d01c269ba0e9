"""What every test runs under: devices, strict modes, platforms, and no silent skips.

`JAX_NM_REQUIRE` says what this machine must be able to test:

  cuda  a GPU and the CUDA kernels; the session fails without them, and if any test was
        skipped for want of them.
  cpu   everything that needs no GPU; the session fails if any such test was skipped.
"""

from __future__ import annotations

import os

import jax
import pytest

# Before the backends start: sharding is tested on four host devices.
jax.config.update("jax_num_cpu_devices", 4)

from problems import cuda_stub

from jax_nm import _lowering, _measured

NO_CUDA = "needs a CUDA GPU and the CUDA kernels"
REQUIRE = os.environ.get("JAX_NM_REQUIRE", "")


def has_cuda() -> bool:
    if _lowering.cuda_module() is None:
        return False
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


PLATFORMS = ("cpu", "cuda") if has_cuda() else ("cpu",)


def pytest_configure(config):
    if REQUIRE not in ("", "cpu", "cuda"):
        raise pytest.UsageError(f"JAX_NM_REQUIRE must be cpu or cuda, got {REQUIRE!r}")
    if REQUIRE == "cuda" and "cuda" not in PLATFORMS:
        raise pytest.UsageError(
            f"JAX_NM_REQUIRE=cuda, but a test {NO_CUDA}: the backend is "
            f"{jax.default_backend()}, jax_nm._cuda is {_lowering.cuda_module()}"
        )
    config.pluginmanager.register(SkipGuard(), "jax_nm-skip-guard")


class SkipGuard:
    """Fails the session for skips that `JAX_NM_REQUIRE` rules out."""

    def __init__(self) -> None:
        self.unwanted: list[str] = []

    def _note(self, report) -> None:
        if not report.skipped:
            return
        reason = report.longrepr[2] if report.longrepr else ""
        if REQUIRE and (NO_CUDA in reason) == (REQUIRE == "cuda"):
            self.unwanted.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report):
        self._note(report)

    def pytest_collectreport(self, report):
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if self.unwanted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.unwanted:
            terminalreporter.section(f"skipped in spite of JAX_NM_REQUIRE={REQUIRE}")
            for line in self.unwanted:
                terminalreporter.write_line(line, red=True)


@pytest.fixture(autouse=True, scope="session")
def no_measurements(tmp_path_factory):
    """What `autotune` has measured on this machine changes no test."""
    empty = tmp_path_factory.mktemp("autotune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_measured, "directory", lambda: empty)
        yield


@pytest.fixture(params=PLATFORMS)
def platform(request):
    """Runs the test once per platform that has kernels here, on its first device."""
    with jax.default_device(jax.devices(request.param)[0]):
        yield request.param


@pytest.fixture
def cuda():
    """For tests that mean something on a GPU only."""
    if "cuda" not in PLATFORMS:
        pytest.skip(NO_CUDA)
    with jax.default_device(jax.devices("cuda")[0]):
        yield "cuda"


@pytest.fixture
def with_cuda(monkeypatch):
    """Lowers to the CUDA kernels as a build with them does; nothing is run."""
    monkeypatch.setattr(_lowering, "cuda_module", cuda_stub)
    monkeypatch.setattr(_lowering, "dense_pays", lambda *_: False)


@pytest.fixture
def strict():
    """JAX's strict modes: no implicit promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def highest():
    """No TF32 anywhere, so that integers stay exact on tensor cores too."""
    with jax.default_matmul_precision("highest"):
        yield
