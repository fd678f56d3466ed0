"""A worker that is killed once: torchrun starts all of them again, and they end as a search that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.multiprocessing
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pamkd.cli import main
from pamkd.distributed import Mesh
from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.folder import CHECKPOINT, continued, open_folder
from pamkd.runs.search_state import SearchState

OPTIONS = "search --dataset digits --channels 2 --cells 3 --epochs 2 --batch-size 256 --group-pairs 8 --order first --no-tensorboard"


def torchrun(_, out: Path) -> None:
    """torchrun --standalone --nproc-per-node 2 --max-restarts 1, without its imports."""
    config = LaunchConfig(1, 1, 2, run_id="killed", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=1, start_method="fork")
    elastic_launch(config, command)(out)


def command(out: Path) -> None:
    """The second process kills itself in the second epoch. The first one then starts late: the second must not take its old address,
    which torchrun's store still has, for the new one."""
    torch.set_num_threads(1)
    first, second_process, take = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0", os.environ["RANK"] == "1", SearchState.take

    def killed(state, step):
        if state.epoch == 1 and second_process and first:
            out.with_suffix(".killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return take(state, step)

    SearchState.take = killed
    if not (first or second_process):
        time.sleep(0.5)
    assert main([*OPTIONS.split(), "--out", str(out)]) == 0


def whole(_, out: Path) -> None:
    torch.set_num_threads(1)
    assert main([*OPTIONS.split(), "--out", str(out)]) == 0


def test_killed_worker(tmp_path):
    for work in (whole, torchrun):
        context = torch.multiprocessing.start_processes(work, (tmp_path / work.__name__,), 1, join=False, start_method="fork")
        try:
            assert context.join(timeout=60)
        finally:
            context.processes[0].terminate()  # torchrun then ends its workers
    assert (tmp_path / "torchrun.killed").exists()
    runs = [tmp_path / work.__name__ for work in (whole, torchrun)]
    (one, meta), (two, _) = (checkpoint.load(run / CHECKPOINT) for run in runs)
    assert meta["epoch"] == 2 and one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    one, two = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    assert [(row["kind"], row["epoch"]) for row in one] == [(row["kind"], row["epoch"]) for row in two]


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
