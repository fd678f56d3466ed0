"""Workers that are killed: torchrun starts all of them again, and they end as a search that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pamkd.distributed import Mesh
from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import Interrupted
from pamkd.runs.folder import CHECKPOINT, continued, open_folder
from pamkd.runs.search import Search
from pamkd.runs.search_state import SearchState
from tests.runs.conftest import TINY, Pictures
from tests.runs.interrupted import InterruptedAt


def whole(_, out: Path) -> None:
    torch.set_num_threads(1)
    Search(**TINY, out=out, tensorboard=False).run(Pictures(16, seed=0), Pictures(16, seed=1))


def restarted(_, out: Path) -> None:
    """As torchrun --standalone --nproc-per-node 2 --max-restarts 2, without its imports."""
    here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    config = LaunchConfig(1, 1, 2, run_id="killed", max_restarts=2, start_method="fork", **here)
    elastic_launch(config, process)(out)


def process(out: Path) -> None:
    """The second process kills itself in the second epoch, and the first one after the restart in the middle of its next checkpoint.

    Started again it is late: the second must not take its old address, which torchrun's store still has, for the new one.
    """
    start, main, take, write = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"] == "0", SearchState.take, checkpoint.save_file

    def killed(state, step):
        if state.epoch == 1:
            out.with_suffix(".killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return take(state, step)

    def half_written(tensors, path, header):
        write(tensors, path, header)
        os.truncate(path, os.path.getsize(path) // 2)
        out.with_suffix(".half").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    if start == "0" and not main:
        SearchState.take = killed
    if start == "1" and main:
        checkpoint.save_file = half_written
    if start != "0" and main:
        time.sleep(1)
    whole(0, out)


def test_killed_worker(tmp_path):
    runs = [tmp_path / work.__name__ for work in (whole, restarted)]
    for work, out in zip((whole, restarted), runs, strict=True):
        context = torch.multiprocessing.start_processes(work, (out,), 1, join=False, start_method="fork")
        try:
            assert context.join(timeout=60), f"{out.name} hangs"
        finally:
            context.processes[0].terminate()  # torchrun then ends its workers
    assert (tmp_path / "restarted.killed").exists() and (tmp_path / "restarted.half").exists()
    (one, meta), (two, _) = (checkpoint.load(run / CHECKPOINT) for run in runs)
    assert meta["epoch"] == 2 and one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    one, two = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    assert [(row["kind"], row["epoch"], row.get("step")) for row in one] == [(row["kind"], row["epoch"], row.get("step")) for row in two]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}


@pytest.mark.parametrize(
    "names", [TORCHRUN, SLURM, SLURM | TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "0"}], ids=["torchrun", "slurm", "both"]
)
def test_run_of_another_command_is_left_alone(names, tmp_path, monkeypatch):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    config = SearchConfig(out=tmp_path / "run", overwrite=True)
    open_folder(config, {})
    assert continued(config, Mesh()) == config  # nothing saved yet: it begins again
    checkpoint.save(config.out / CHECKPOINT, {"w": torch.zeros(1)}, {})
    assert continued(config, Mesh()) == replace(config, resume=True, overwrite=False)
    monkeypatch.setattr(os, "getppid", lambda: 0)  # another torchrun, and another job
    assert continued(config, Mesh()) == (config if names == TORCHRUN else replace(config, resume=True, overwrite=False))
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert continued(config, Mesh()) == config


def test_a_job_that_slurm_starts_again_goes_on(tmp_path, monkeypatch):
    """The same command, whatever it says of --resume."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    config = SearchConfig(**TINY, out=tmp_path / "run", tensorboard=False, threads=1)
    pictures = Pictures(16, seed=0), Pictures(16, seed=1)
    with pytest.raises(Interrupted):
        Search(config).run(*pictures, augment=InterruptedAt(3, signal.SIGUSR1))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    steps = [row["global_step"] for row in Search(config).run(*pictures).history if row["kind"] == "step"]
    assert steps == list(range(4))
