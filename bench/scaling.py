"""A second-order PAMKD step on 1, 2 and 4 processes over gloo: time and numbers sent; and what a collective costs by its size.

docs/scaling.md fits its cost model to these rows. The processes share this machine's cores, one thread each. The processor time of the
busiest process is what a step would take on a core of its own, waiting left out; other programs hardly change it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

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

CELLS, IMAGE = 3, 16


class Case(NamedTuple):
    learners: int
    processes: int
    rows: int
    channels: int = 8
    pairs: int = 32
    batch: int = 32
    synchronised: bool = False

    @property
    def words(self) -> str:
        mesh, sync = f"{self.rows} x {self.processes // self.rows}", ", sync" if self.synchronised else ""
        return f"K={self.learners} on {mesh}, {self.channels} channels, {self.batch} images, {self.pairs} pairs{sync}"


# One process first, with the batch of the others and with their parts.
PARTS = {
    "rows": [Case(2, 1, 1), Case(2, 2, 2), Case(4, 1, 1), Case(4, 4, 4), Case(2, 2, 2, pairs=1024)],
    "columns": [
        *(Case(2, 1, 1, channels, batch=batch) for channels in (8, 16) for batch in (32, 16)),
        *(Case(2, 2, 1, channels) for channels in (8, 16)),
        Case(2, 4, 1),
        Case(2, 4, 2),
    ],
    "synchronised": [Case(2, 1, 1), Case(2, 2, 1, synchronised=True)],
}
SIZES = (1, 10_000, 1_000_000)


def step(case: Case, rounds: int) -> dict[str, Any]:
    """Median seconds and processor seconds of a step, and the numbers and calls of one, between learners and along columns."""
    random = torch.Generator().manual_seed(0)
    learners, rows = case.learners, case.rows
    supernet = Darts(channels=case.channels, cells=CELLS)
    images, labels = torch.randn(case.batch, 3, IMAGE, IMAGE, generator=random), torch.randint(0, 10, (case.batch,), generator=random)
    with open_mesh(learners, learner_rows=rows, synchronised=case.synchronised) as mesh:
        network = supernet.at(Moment(columns=mesh.columns))
        every = [[supernet.init_alphas(random), *(supernet.init_weights(random) for _ in "vw")] for _ in range(learners)]
        here = [Learner.create(network, *every[k], number=k) for k in range(mesh.rows.group.rank, learners, rows)]
        method = Pamkd(rows=mesh.rows)
        method.parts.teaching.transfer.pairs = case.pairs
        batch = Batch(mesh.columns.part(images), labels)

        def take() -> tuple[float, float]:
            start = time.perf_counter(), time.process_time()
            method.step(here, batch, batch, lr=0.01, phase="search", seed=0)
            return time.perf_counter() - start[0], time.process_time() - start[1]

        take()
        sent = {
            name: (group.numbers.total(), group.calls.total())
            for name, group in (("rows", mesh.rows.group), ("columns", mesh.columns.group))
        }
        times = zip(*(take() for _ in range(1 if case.synchronised else rounds)), strict=True)
        return dict(zip(("seconds", "processor"), map(statistics.median, times), strict=True)) | sent


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
    torch.save(found, Path(folder) / f"{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


def in_processes(size: int, work: Any, *arguments: Any) -> dict[str, Any]:
    """What the busiest process found."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(_process, (size, folder, work, arguments), size, start_method="fork")
        every = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]
        return max(every, key=lambda found: found.get("processor", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("collectives", *PARTS), help="a part of it")
    bench = Bench("scaling", parser, rounds=5)
    only, rounds = bench.options.only, bench.options.rounds
    for processes in (2, 4) if only in (None, "collectives") else ():
        for numbers in SIZES:
            seconds = in_processes(processes, collective, numbers, rounds)["seconds"]
            bench.row(f"all-reduce of {numbers}, {processes} processes", "time", "s", seconds, {"bytes / 10 GB/s": 4e-10 * numbers})
    alone: dict[tuple[int, int], dict[str, Any]] = {}
    cases = [case for name, part in PARTS.items() if only in (None, name) for case in part]
    for case in dict.fromkeys(cases):
        found = in_processes(case.processes, step, case, rounds)
        one = alone.setdefault((case.learners, case.channels), found)
        peer = "one process" if case.processes > 1 else "whole batch"
        for name in ("seconds", "processor"):
            bench.row(case.words, f"step, {name}", "s", found[name], {peer: one[name]})
        for name in ("rows", "columns"):
            numbers, calls = found[name]
            bench.row(case.words, f"numbers along {name}", "1", numbers, {"calls": calls})
    bench.finish()


if __name__ == "__main__":
    main()
