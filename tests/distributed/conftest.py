"""Work done by several processes over gloo, in float64, and a space whose searches take a second there."""

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

from pamkd.spaces import SPACES
from pamkd.spaces.nasbench201 import NasBench201


class OneCell(NasBench201):
    """One cell of NAS-Bench-201: BatchNorm synchronised among processes that share a core takes a millisecond each."""

    def candidates(self, reduction):
        return (("none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3"),) * 6

    def _cells(self):
        return [next(iter(super()._cells()))]

    def _cell_shapes(self):
        return [("cells.0._ops", (self.cells[0].spec.num_weights,))]


def _process(rank: int, size: int, folder: Path, work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    SPACES["one-cell"] = OneCell
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        torch.save(work(*arguments), folder / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the others wait for this one
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
