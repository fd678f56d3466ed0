"""A search that is killed again and again ends as the one that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings

import pytest
import torch

from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.folder import CHECKPOINT
from pamkd.runs.search import Search

EPOCHS = 16


def kill_myself(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def before(name, call):
    """Kill the process before the n-th call of a function of the operating system, in place of it."""
    function, calls = getattr(os, name), []

    def counted(*arguments, **options):
        calls.append(arguments)
        return kill_myself() if len(calls) == call else function(*arguments, **options)

    return lambda patch: patch.setattr(os, name, counted)


def half_written(call):
    """Kill the process when half of the n-th checkpoint is on disk."""
    write, calls = checkpoint.save_file, []

    def save(tensors, path, header):
        calls.append(path)
        write(tensors, path, header)
        if len(calls) == call:
            os.truncate(path, os.path.getsize(path) // 2)
            kill_myself()

    return lambda patch: patch.setattr(checkpoint, "save_file", save)


# In a checkpoint: before it is complete, before the old one is moved aside, between both renamings, before the folder is synced.
MOMENTS = [half_written(1), half_written(2), before("fsync", 1), before("fsync", 2), before("replace", 1), before("replace", 2)]


def in_a_process(work) -> tuple[int, int]:
    """Process id of a fork that does `work` and ends."""
    process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return process


@pytest.mark.timeout(240)
def test_twenty_kills(pictures, tiny, tmp_path, monkeypatch):
    tiny |= {"epochs": EPOCHS, "tensorboard": False}

    def search(folder, resume):
        return lambda: Search(SearchConfig(out=tmp_path / folder, resume=resume, **tiny)).run(*pictures)

    start = time.monotonic()
    assert os.waitpid(in_a_process(search("whole", False)), 0)[1] == 0
    whole, kills, moments = time.monotonic() - start, 0, random.Random(0)
    run = tmp_path / "killed" / CHECKPOINT
    while True:
        with monkeypatch.context() as patch:
            if kills < 12 and kills % 2:
                MOMENTS[kills // 2](patch)
            process = in_a_process(search("killed", run.exists() or checkpoint.previous(run).exists()))
        end = time.monotonic() + moments.uniform(0.01, 0.1) * whole if kills < 20 else float("inf")
        while (done := os.waitpid(process, os.WNOHANG))[0] == 0 and time.monotonic() < end:
            time.sleep(0.01)
        if done[0] == 0:
            os.kill(process, signal.SIGKILL)
            done = os.waitpid(process, 0)
        if os.WIFEXITED(done[1]):
            assert os.WEXITSTATUS(done[1]) == 0
            break
        kills += 1
    assert kills > 12  # all moments above, and random ones
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the last checkpoint is whole
        one, two = (checkpoint.load(tmp_path / folder / CHECKPOINT)[0] for folder in ("whole", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    names = ("genotype.json", "result.json")
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes() for name in names)


def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path):
    path = tmp_path / "last.safetensors"
    for epoch in (1, 2):
        checkpoint.save(path, {"w": torch.full((3,), float(epoch))}, {"epoch": epoch})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"last.safetensors is damaged.*The one before it is used: .*last-previous.safetensors"):
        tensors, meta = checkpoint.load(path)
    assert meta == {"epoch": 1} and tensors["w"].tolist() == [1, 1, 1]
    checkpoint.previous(path).write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"last.safetensors is damaged"):
        checkpoint.load(path)
