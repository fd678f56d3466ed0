"""A search that is killed again and again ends as the one that nobody disturbed."""

from __future__ import annotations

import json
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

SEARCHES = {
    "darts": (20, {"epochs": 16}),
    "stages": (6, {"space": "pdarts", "epochs": 6, "space_options": ("growth=1",), "order": "first"}),
}


def kill_myself(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def before(name, call):
    """Kill the process before the n-th call of a function of the operating system for a checkpoint, in place of it."""
    function, calls = getattr(os, name), []

    def counted(*arguments, **options):
        if isinstance(arguments[0], int) or ".safetensors" in str(arguments[0]):  # a descriptor, or a path
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
@pytest.mark.parametrize("name", SEARCHES)
def test_kills(name, pictures, tiny, tmp_path, monkeypatch):
    """At each of the moments above, and between them at random ones: after a few steps, in the middle of whatever is done then."""
    kills, options = SEARCHES[name]
    tiny |= {"tensorboard": False} | options
    run, metrics = tmp_path / "killed" / CHECKPOINT, tmp_path / "killed" / "metrics.jsonl"

    def search(folder):
        resume = run.exists() or checkpoint.previous(run).exists()
        return lambda: Search(SearchConfig(out=tmp_path / folder, resume=resume, **tiny)).run(*pictures)

    assert os.waitpid(in_a_process(search("whole")), 0)[1] == 0
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    epoch, moments = min(row["seconds"] for row in rows if row["kind"] == "epoch"), random.Random(0)
    for kill in range(kills):
        with monkeypatch.context() as patch:
            if kill % 2 and kill // 2 < len(MOMENTS):
                MOMENTS[kill // 2](patch)
                process = in_a_process(search("killed"))
            else:
                written = size(metrics)
                process = in_a_process(search("killed"))
                changes = moments.randrange(4)
                while changes:
                    assert os.waitpid(process, os.WNOHANG) == (0, 0)
                    changes -= written != (written := size(metrics))
                    time.sleep(0.002)
                time.sleep(moments.uniform(0, 0.5 * epoch))
                os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert os.waitpid(in_a_process(search("killed")), 0)[1] == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def size(path):
    return path.stat().st_size if path.exists() else 0


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
