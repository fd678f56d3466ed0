"""How much memory there is, how much this process has taken at most, and how much a pass needs at least."""

from __future__ import annotations

import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pamkd.data import generator
from pamkd.runs.config import SearchConfig
from pamkd.spaces.supernet import Supernet


def available(device: str) -> int | None:
    """Bytes that a process can still take: on a GPU what is free, else the least of what the system and its control groups give.

    None where none of them says it.
    """
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return min((*_system(Path("/proc/meminfo")), *_control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))), default=None)


def peak(device: str) -> int:
    """Bytes that this process held at most: of the GPU's memory what PyTorch allocated, else resident."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # the system's own count goes on from that of the process that started this one
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def warn_if_short(config: SearchConfig, supernet: Supernet, images: Tensor) -> None:
    """Warn where what the forward passes that are made at once keep for their backward passes, a lower bound of what a step needs, exceeds
    what is available."""
    there = available(config.device)
    if there is None:
        return
    count = len(images)
    weights, alphas = (make(generator(0)).to(config.device) for make in (supernet.init_weights, supernet.init_alphas))
    at_once = config.stacked_passes if supernet.stacks_with(supernet) else 1
    least = at_once * kept_bytes(supernet, weights, alphas, images) * config.batch_size // count
    if least > there:
        warnings.warn(
            f"a step with a batch of {config.batch_size} images needs at least {gigabytes(least)} of memory, and {gigabytes(there)} are "
            "available: pamkd plan with the same options proposes a batch size",
            stacklevel=2,
        )


def kept_bytes(supernet: Supernet, weights: Tensor, alphas: Tensor, images: Tensor) -> int:
    """What a forward pass keeps for its backward pass, the weights left out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = weights.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        supernet.forward(weights, alphas.requires_grad_(), images)
    kept.pop(weights.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _system(path: Path) -> Iterator[int]:
    if path.is_file():
        yield from (1024 * int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("MemAvailable"))


def _control_groups(own: Path, root: Path) -> Iterator[int]:
    """What is left below the limit of this process's group and of those above it (version 2; version 1 has its own folder `memory`).

    Pages of files that nobody has used lately count as free: they give way.
    """
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, name = line.split(":", 2)
        first = controllers.split(",") == ["memory"]
        if controllers and not first:
            continue
        base = root / "memory" if first else root
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
        group = base / name.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base) and (folder / limit).is_file() and (text := (folder / limit).read_text().strip()) != "max":
                statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                idle = int(statistics.get("total_inactive_file" if first else "inactive_file", 0))
                yield int(text) - int((folder / used).read_text()) + idle
