"""A second-order PAMKD step on 1, 2 and 4 processes over gloo: time and numbers sent; and what a collective costs by its size.

docs/scaling.md fits its cost model to these rows. The processes share this machine's cores, one thread each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from bench._harness import Bench
from pamkd.distributed import open_mesh
from pamkd.distributed.group import Group
from pamkd.methods.pamkd import Pamkd
from pamkd.spaces.darts import Darts
from pamkd.spaces.supernet import Moment
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner

BATCH, CELLS, IMAGE = 32, 3, 16
# learners, processes, rows, channels, pairs of groups, synchronised BatchNorm
CASES = [
    (2, 1, 1, 8, 32, False),
    (2, 2, 2, 8, 32, False),
    (2, 2, 1, 8, 32, False),
    (2, 4, 2, 8, 32, False),
    (4, 1, 1, 8, 32, False),
    (4, 4, 4, 8, 32, False),
    (2, 2, 2, 8, 1024, False),
    (2, 1, 1, 16, 32, False),
    (2, 4, 2, 16, 32, False),
    (2, 2, 1, 8, 32, True),
]
SIZES = (1, 10_000, 1_000_000)


def step(learners: int, rows: int, channels: int, pairs: int, synchronised: bool, rounds: int) -> dict[str, Any]:
    """Median seconds of a step, and the numbers and calls of one, between learners and along columns."""
    random = torch.Generator().manual_seed(0)
    supernet = Darts(channels=channels, cells=CELLS)
    images, labels = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=random), torch.randint(0, 10, (BATCH,), generator=random)
    with open_mesh(learners, learner_rows=rows, synchronised=synchronised) as mesh:
        network = supernet.at(Moment(columns=mesh.columns))
        every = [[supernet.init_alphas(random), *(supernet.init_weights(random) for _ in "vw")] for _ in range(learners)]
        here = [Learner.create(network, *every[k], number=k) for k in range(mesh.rows.group.rank, learners, rows)]
        method = Pamkd(rows=mesh.rows)
        method.parts.teaching.transfer.pairs = pairs
        batch = Batch(mesh.columns.part(images), labels)

        def take() -> float:
            start = time.perf_counter()
            method.step(here, batch, batch, lr=0.01, phase="search", seed=0)
            return time.perf_counter() - start

        take()
        sent = {
            name: (group.numbers.total(), group.calls.total())
            for name, group in (("rows", mesh.rows.group), ("columns", mesh.columns.group))
        }
        times = [take() for _ in range(1 if synchronised else rounds)]
        return {"seconds": statistics.median(times), "weights": supernet.num_weights} | sent


def collective(numbers: int, rounds: int) -> dict[str, Any]:
    """Median seconds of an all-reduce."""
    group, x = Group(dist.group.WORLD), torch.ones(numbers)
    seconds = []
    for _ in range(10 * rounds):
        start = time.perf_counter()
        group.all_reduce(x)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds)}


def _process(rank: int, size: int, folder: str, work: Any, arguments: tuple) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    found = work(*arguments)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    if size > 1:
        dist.destroy_process_group()


def in_processes(size: int, work: Any, *arguments: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(_process, (size, folder, work, arguments), size, start_method="fork")
        return torch.load(Path(folder) / "found.pt")


def main() -> None:
    bench = Bench("scaling", argparse.ArgumentParser(description=__doc__), rounds=5)
    for processes in (2, 4):
        for numbers in SIZES:
            seconds = in_processes(processes, collective, numbers, bench.options.rounds)["seconds"]
            bench.row(f"all-reduce of {numbers}, {processes} processes", "time", "s", seconds, {"bytes / 10 GB/s": 4e-10 * numbers})
    alone: dict[tuple[int, int], float] = {}
    for learners, processes, rows, channels, pairs, synchronised in CASES:
        found = in_processes(processes, step, learners, rows, channels, pairs, synchronised, bench.options.rounds)
        one = alone.setdefault((learners, channels), found["seconds"])
        case = f"K={learners} on {rows} x {processes // rows}, {found['weights']} weights, {pairs} pairs" + (
            ", sync" if synchronised else ""
        )
        bench.row(case, "step", "s", found["seconds"], {"one process": one})
        for name in ("rows", "columns"):
            numbers, calls = found[name]
            bench.row(case, f"numbers along {name}", "1", numbers, {"calls": calls})
    bench.finish()


if __name__ == "__main__":
    main()
