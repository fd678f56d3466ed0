"""The mesh of processes that torchrun starts: rows of learners, columns of parts of their batches."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from pamkd.distributed.columns import Columns
from pamkd.distributed.group import Group
from pamkd.distributed.rows import Rows


@dataclass(frozen=True)
class Mesh:
    """The place of this process; by default the only one."""

    rows: Rows = field(default_factory=Rows)
    columns: Columns = field(default_factory=Columns)
    world: Group = field(default_factory=Group)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes logs and checkpoints."""
        return self.world.rank == 0

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.world.all_reduce(torch.tensor([float(here)])))

    def wait(self) -> None:
        """Until all processes are here."""
        self.world.objects(None)


@contextmanager
def open_mesh(learners: int, *, learner_rows: int | None = None, device: str = "cpu", synchronised: bool = False) -> Iterator[Mesh]:
    """The mesh of this program's processes: those of an initialised `torch.distributed`, else those that torchrun started, else one.

    gloo connects CPUs, NCCL GPUs, of which each process takes the one of its LOCAL_RANK; logs and other numbers of the host go over
    gloo there too, so a program that initialises `torch.distributed` itself does so with "cpu:gloo,cuda:nccl".

    Raises ValueError where the processes make no mesh with `learner_rows` rows, and for a device that all processes would share.
    """
    ours = not dist.is_initialized() and started_with_others()
    processes = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    rows = number_of_rows(processes, learners) if learner_rows is None else learner_rows
    if processes % rows or rows > learners:
        raise ValueError(
            f"{rows} learner rows with {processes} processes and {learners} learners: needed is a divisor of the processes, "
            "and not more rows than learners"
        )
    if not ours and not dist.is_initialized():
        yield Mesh()
        return
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r} with {processes} processes: needed is cpu, or cuda for one GPU each")
    if ours:
        if device == "cuda":
            local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= count:
                found = f"LOCAL_RANK is {local} and PyTorch finds {count} CUDA device{'' if count == 1 else 's'} here"
                raise ValueError(f"{found}: start no more processes on a machine than it has GPUs (--nproc-per-node)")
            torch.cuda.set_device(local)
        store, rank, _ = next(rendezvous("env://"))
        # torchrun keeps one store for all its starts: there the addresses of processes that have died would be found again.
        name = f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store = dist.PrefixStore(name, store)  # type: ignore[attr-defined]  # public, but not among the names that it exports
        dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=processes)
    try:
        mesh = init_device_mesh(device, (rows, processes // rows), mesh_dim_names=("learner", "data"))
        columns = Columns(Group(mesh.get_group("data")), synchronised=synchronised)
        yield Mesh(Rows(Group(mesh.get_group("learner")), learners), columns, Group(dist.group.WORLD))
    finally:
        if ours:
            dist.destroy_process_group()


def number_of_rows(processes: int, learners: int) -> int:
    """The rows with which the busiest process has least to do, ceil(K / rows) learners on rows / processes of a batch; of
    several such numbers the largest, which splits batches least."""
    possible = [rows for rows in range(1, min(processes, learners) + 1) if processes % rows == 0]
    return min(possible, key=lambda rows: (math.ceil(learners / rows) * rows, -rows))


def started_with_others() -> bool:
    """Whether torchrun started this process among several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this is the process of torchrun's that speaks for all, or one without torchrun."""
    return os.environ.get("RANK", "0") == "0"
