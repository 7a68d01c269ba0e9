"""The version matrix: `nox` runs all of it, `nox -s lint` one session."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

# Oldest, middle and newest JAX; 0.10 is the last on Python 3.11.
MATRIX = [
    nox.param("3.11", "jax==0.10.2", id="jax-0.10"),
    nox.param("3.12", "jax==0.11.2", id="jax-0.11"),
    nox.param("3.13", "jax", id="jax-newest"),
]


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.install(".[dev,test]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    sources = [
        str(path)
        for folder in ("common", "cpu", "cuda")
        for path in Path(folder).iterdir()
    ]
    session.run("clang-format", "--dry-run", "-Werror", *sources)
    session.run("mypy")


@nox.session
@nox.parametrize("python,jax", MATRIX)
def tests(session: nox.Session, jax: str) -> None:
    """The test suite on one Python and one JAX; arguments go to pytest."""
    session.install("--upgrade", jax, ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python="3.11")
def cuda_build(session: nox.Session) -> None:
    """Compiles the CUDA kernels, which needs no GPU, and imports the result."""
    session.install(".", env={"JAX_NM_CUDA": "ON", "JAX_NM_CUDA_ARCHS": "80;90a"})
    session.chdir(session.create_tmp())
    session.run("python", "-c", "import jax_nm._cuda")
