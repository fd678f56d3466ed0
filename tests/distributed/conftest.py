"""Work done by several processes over gloo, and a search and an evaluation in float64 that take a second."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

STEPS = {"epochs": 2, "batch_size": 8, "lr": 0.05, "seed": 3, "tensorboard": False}


def _process(rank: int, size: int, folder: Path, work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        torch.save(work(*arguments), folder / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # else the others would wait
    dist.destroy_process_group()


@pytest.fixture
def in_processes(tmp_path):
    """in_processes(size, work, *arguments) -> what `work(*arguments)` returned in each of so many processes."""
    runs = iter(range(100))

    def run(size: int, work: Callable, *arguments: Any) -> list[Any]:
        folder = tmp_path / f"processes-{next(runs)}"
        folder.mkdir()
        torch.multiprocessing.start_processes(_process, (size, folder, work, arguments), size, start_method="fork")
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]

    return run
