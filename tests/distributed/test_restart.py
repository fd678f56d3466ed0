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

from pamkd.distributed import Mesh
from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.folder import CHECKPOINT, continued, open_folder
from pamkd.runs.search import Search
from pamkd.runs.search_state import SearchState
from tests.runs.conftest import TINY, Pictures


def whole(_, out: Path) -> None:
    torch.set_num_threads(1)
    Search(**TINY, out=out, tensorboard=False).run(Pictures(16, seed=0), Pictures(16, seed=1))


def restarted(_, out: Path) -> None:
    """As torchrun --standalone --nproc-per-node 2 --max-restarts 1, without its imports."""
    here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    config = LaunchConfig(1, 1, 2, run_id="killed", max_restarts=1, start_method="fork", **here)
    elastic_launch(config, process)(out)


def process(out: Path) -> None:
    """The second process kills itself in the second epoch. Then the first one starts late: the second must not take its old address,
    which torchrun's store still has, for the new one."""
    first, main, take = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0", os.environ["RANK"] == "0", SearchState.take

    def killed(state, step):
        if state.epoch == 1:
            out.with_suffix(".killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return take(state, step)

    if first and not main:
        SearchState.take = killed
    if main and not first:
        time.sleep(2)
    whole(0, out)


def test_killed_worker(tmp_path):
    runs = [tmp_path / work.__name__ for work in (whole, restarted)]
    for work, out in zip((whole, restarted), runs, strict=True):
        context = torch.multiprocessing.start_processes(work, (out,), 1, join=False, start_method="fork")
        try:
            assert context.join(timeout=60), f"{out.name} hangs"
        finally:
            context.processes[0].terminate()  # torchrun then ends its workers
    assert (tmp_path / "restarted.killed").exists()
    (one, meta), (two, _) = (checkpoint.load(run / CHECKPOINT) for run in runs)
    assert meta["epoch"] == 2 and one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    one, two = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    assert [(row["kind"], row["epoch"], row.get("step")) for row in one] == [(row["kind"], row["epoch"], row.get("step")) for row in two]


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
