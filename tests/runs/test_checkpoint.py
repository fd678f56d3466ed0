"""Checkpoints: whole or refused, atomic, and nothing in them is executed."""

from __future__ import annotations

import errno
import os
import pickle
import resource

import pytest
import torch
from safetensors.torch import save_file

from pamkd.runs import checkpoint
from pamkd.runs.errors import CheckpointError
from pamkd.runs.logs import naming


@pytest.fixture
def tensors():
    return {"w": torch.randn(3, 5), "step": torch.tensor(7), "half": torch.randn(4).bfloat16(), "empty": torch.zeros(0)}


@pytest.fixture
def saved(tmp_path, tensors):
    path = tmp_path / "folder" / "last.safetensors"
    checkpoint.save(path, tensors, {"epoch": 3, "config": {"lr": 0.025}})
    return path


def test_round_trip(saved, tensors):
    loaded, meta = checkpoint.load(saved)
    assert meta == {"epoch": 3, "config": {"lr": 0.025}}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_cut_short(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(saved)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bit(saved, tensors, seed):
    """Any changed bit is noticed, unless it only changes white space or the order of the header."""
    data = bytearray(saved.read_bytes())
    random = torch.Generator().manual_seed(seed)
    place = int(torch.randint(8 * len(data), (), generator=random))
    data[place // 8] ^= 1 << (place % 8)
    saved.write_bytes(data)
    try:
        loaded, meta = checkpoint.load(saved)
    except CheckpointError:
        return
    assert meta == {"epoch": 3, "config": {"lr": 0.025}} and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_foreign_files(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.load(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of this program"):
        checkpoint.load(path)


def test_pickled_code_is_not_executed(tmp_path):
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (marker.write_text, ("x",))

    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not marker.exists()


def test_full_disk_keeps_the_old_checkpoint(saved, tensors):
    """A limit on file size gives the writer the same short write that a full disk does."""
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="previous checkpoint is intact"):
            checkpoint.save(saved, tensors | {"large": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_whoever_may_read_the_run_may_read_its_checkpoint(saved, tmp_path):
    (tmp_path / "other").touch()
    assert saved.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(("number", "then"), [(errno.ENOSPC, "make room, then continue with --resume"), (errno.EACCES, r"\(--out\)")])
def test_what_cannot_be_written_is_named(number, then, tmp_path):
    with pytest.raises(OSError, match=f"could not write .*page: .*; .*{then}"), naming(tmp_path / "page"):
        raise OSError(number, os.strerror(number))
