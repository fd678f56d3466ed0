"""The memory that a plan foretells against what the search then takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pamkd.runs.config import SearchConfig
from pamkd.runs.plan import plan

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"channels": 8, "cells": 3, "batch_size": 240, "epochs": 1, "learners": 2, "order": "first", "threads": 1, "tensorboard": False}
MEASURED = "import sys; from pamkd.cli import main; from pamkd.runs.memory import peak; main(sys.argv[1:]); print('peak', peak('cpu'))"


def test_foretold_memory_is_what_a_search_takes(tmp_path, monkeypatch):
    """The digits' whole search in a process of its own, whose peak the system counts."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = plan(SearchConfig(**OPTIONS))
    assert made.measured == (30, 60) and made.images == (718, 719) and made.steps == 2 and made.stages == 1
    words = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items() if name != "tensorboard"]
    command = [sys.executable, "-c", MEASURED, "search", *words, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout.split("peak ")[1])
    assert abs(made.peak - peak) <= 0.1 * peak
    assert OPTIONS["batch_size"] * made.memory.slope > 0.05 * peak  # it is not the program's share alone
