"""Which run the processes that torchrun has started again continue."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from pamkd.distributed import Mesh
from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.folder import CHECKPOINT, continued, open_folder


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
