"""A search that is killed again and again ends as the one that nobody disturbed."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
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


def assert_same_end(whole, other):
    """Bit for bit, the last checkpoint being whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = (checkpoint.load(folder / CHECKPOINT)[0] for folder in (whole, other))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    for name in ("genotype.json", "result.json"):
        assert (whole / name).read_bytes() == (other / name).read_bytes()


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
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


class FullDisk:
    """An augmentation at whose n-th call no file can grow beyond `size` bytes any more, as if the disk were full then."""

    def __init__(self, call: int, size: int) -> None:
        self.call, self.size, self.calls = call, size, 0

    def __call__(self, images, generator):
        self.calls += 1
        if self.calls == self.call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))
        return images


def test_full_disks(pictures, tiny, tmp_path, capsys):
    """Each ends the run with one sentence, and the next run goes on from the last checkpoint to the undisturbed end."""
    tiny |= {"epochs": 5, "tensorboard": False}

    def search(folder, disk, said=None):
        def work():
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (pytest's is a file, and can be full too)
            run = tmp_path / folder / CHECKPOINT
            config = SearchConfig(out=tmp_path / folder, resume=run.exists() or checkpoint.previous(run).exists(), **tiny)
            try:
                Search(config).run(*pictures, augment=disk)
            except OSError as error:
                os.write(said, str(error).encode())  # a pipe is no file
                os._exit(3)

        return work

    assert os.waitpid(in_a_process(search("whole", None)), 0)[1] == 0
    size, random_ = (tmp_path / "whole" / CHECKPOINT).stat().st_size, random.Random(0)
    sentences = []
    for disk in [FullDisk(random_.randrange(1, 16), random_.randrange(1, (size, 400)[i % 2])) for i in range(5)] + [None]:
        read, write = os.pipe()
        status = os.waitpid(in_a_process(search("full", disk, write)), 0)[1]
        os.close(write)
        if status:
            assert os.WEXITSTATUS(status) == 3
            sentences.append(os.read(read, 4096).decode())
        os.close(read)
    assert len(sentences) >= 3 and status == 0
    for sentence in sentences:
        assert sentence.startswith(f"could not write {tmp_path / 'full'}") and "\n" not in sentence and "continue with --resume" in sentence
    assert len({sentence.split(":")[0] for sentence in sentences}) > 1  # checkpoints and metrics
    assert_same_end(tmp_path / "whole", tmp_path / "full")


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
