"""Compiles device code for the CPU."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "tests/cuda_host"
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cuh"))
COMPILER = shutil.which("g++")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = ["-std=c++20", "-O1", "-g1", *SANITIZERS, "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def build(name: str) -> Path:
    """The program of tests/cuda_host/<name>.cpp, compiled once for all workers of a parallel run."""
    parts = [HOST / f"{name}.cpp", HOST / "cuda_host.h", *SOURCES]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in parts) + " ".join(FLAGS).encode()).hexdigest()[:16]
    program = ROOT / "build/cuda_host" / f"{name}-{digest}"
    program.parent.mkdir(parents=True, exist_ok=True)
    with open(program.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            command = [COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", f"-I{HOST}", HOST / f"{name}.cpp", "-o", f"{program}.new"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            Path(f"{program}.new").rename(program)
    return program
