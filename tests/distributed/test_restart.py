"""A worker that is killed once: torchrun starts all of them again, and they end as a search that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pamkd.distributed import Mesh
from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.folder import CHECKPOINT, continued, open_folder

# `python -m pamkd search` whose second process kills itself after the first epoch, the first time.
KILLED = """
import os, signal, sys
from pamkd.cli import main
from pamkd.runs.search_state import SearchState

take = SearchState.take

def killed(state, step):
    if state.epoch == 1 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return take(state, step)

SearchState.take = killed
sys.exit(main(sys.argv[1:]))
"""
OPTIONS = "search --dataset digits --channels 2 --cells 3 --epochs 2 --batch-size 256 --group-pairs 8 --order first --no-tensorboard"


def run(*command: str | Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, env=environment, check=False)


def test_killed_worker(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    done = run(*torchrun, script, *OPTIONS.split(), "--out", tmp_path / "killed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("retained learner") == 1
    assert run("pamkd", *OPTIONS.split(), "--out", tmp_path / "whole").returncode == 0
    (one, meta), (two, _) = (checkpoint.load(tmp_path / name / CHECKPOINT) for name in ("whole", "killed"))
    assert meta["epoch"] == 2 and one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    rows = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "killed")]
    assert [(row["kind"], row["epoch"], row.get("step")) for row in rows[0]] == [
        (row["kind"], row["epoch"], row.get("step")) for row in rows[1]
    ]


def test_run_of_another_command_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config = SearchConfig(out=tmp_path / "run", overwrite=True)
    open_folder(config, {})
    assert continued(config, Mesh()) == config  # nothing saved yet: it begins again
    checkpoint.save(config.out / CHECKPOINT, {"w": torch.zeros(1)}, {})
    assert continued(config, Mesh()) == replace(config, resume=True, overwrite=False)
    monkeypatch.setattr(os, "getppid", lambda: 0)
    assert continued(config, Mesh()) == config
