"""A worker that is killed once: torchrun starts all of them again, and they end as a search that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from pamkd.runs import checkpoint
from pamkd.runs.folder import CHECKPOINT

# `python -m pamkd search` whose second process kills itself after the first epoch, the first time.
KILLED = """
import os, signal, sys
from pamkd.cli import main
from pamkd.runs.search_state import SearchState

take = SearchState.take

def killed(state, step):
    if state.epoch == 1 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == os.environ.get("KILL_IN"):
        os.kill(os.getpid(), signal.SIGKILL)
    return take(state, step)

SearchState.take = killed
sys.exit(main(sys.argv[1:]))
"""
OPTIONS = "search --dataset digits --channels 2 --cells 3 --epochs 2 --batch-size 256 --group-pairs 8 --order first --no-tensorboard"


def torchrun(folder: Path, out: Path, *, kill_in: str = "never", restarts: int = 0) -> subprocess.CompletedProcess:
    script = folder / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    environment = os.environ | {"KILL_IN": kill_in, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [*command, str(script), *OPTIONS.split(), "--out", str(out)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=200)


def test_killed_worker(tmp_path):
    done = torchrun(tmp_path, tmp_path / "killed", kill_in="0", restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("retained learner") == 1
    assert torchrun(tmp_path, tmp_path / "whole").returncode == 0
    (one, meta), (two, _) = (checkpoint.load(tmp_path / name / CHECKPOINT) for name in ("whole", "killed"))
    assert meta["epoch"] == 2 and one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    rows = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "killed")]
    assert [(row["kind"], row["epoch"], row.get("step")) for row in rows[0]] == [
        (row["kind"], row["epoch"], row.get("step")) for row in rows[1]
    ]
    again = torchrun(tmp_path, tmp_path / "killed", restarts=1)  # another command's run is neither continued nor replaced
    assert again.returncode != 0 and "already holds a run" in again.stderr
