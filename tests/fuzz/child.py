"""Fuzzing happens in child processes: their exit status says whether anything crashed, and a file what they did last."""

from __future__ import annotations

import functools
import mmap
import os
import subprocess
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

import pamkd

HERE = Path(__file__).parent
# Times as many examples, and others in every run, than the fixed ones of the test suite.
FACTOR = int(os.environ.get("PAMKD_FUZZ", "0"))
_SIZE = 4096


def examples(count: int) -> settings:
    return settings(
        max_examples=count * (FACTOR or 1),
        derandomize=not FACTOR,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


def trace(case: object) -> None:
    """Remember what is about to be tried, in memory that outlives the process."""
    _trace()[:] = repr(case).encode()[:_SIZE].ljust(_SIZE, b"\0")


@functools.cache
def _trace() -> mmap.mmap | bytearray:
    if "PAMKD_FUZZ_TRACE" not in os.environ:
        return bytearray(_SIZE)
    with open(os.environ["PAMKD_FUZZ_TRACE"], "r+b") as file:
        return mmap.mmap(file.fileno(), _SIZE)


def run_in_child(file: str, folder: Path) -> str:
    """pytest on a file of this folder in a process of its own; returns its output."""
    last = folder / "last"
    last.write_bytes(b"\0" * _SIZE)
    environment = os.environ | {"PYTHONPATH": str(Path(pamkd.__file__).parents[1]), "PAMKD_FUZZ_TRACE": str(last)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    environment["OMP_NUM_THREADS"] = "1"
    # Started elsewhere: `python -m` puts the current folder before the package under test.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / file)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    tried = last.read_bytes().rstrip(b"\0").decode(errors="replace")
    said = done.stdout if done.returncode == 1 else done.stderr  # 1: a test failed
    assert done.returncode == 0, f"{file} ended with {done.returncode}; the last that it tried: {tried}\n{said[-6000:]}"
    return done.stdout
