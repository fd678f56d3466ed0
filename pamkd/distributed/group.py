"""Collectives over a group of processes, counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Group:
    """A group of processes, by default of this one alone, for which every collective is the identity.

    `calls` and `numbers` count the collectives of tensors by name, and the numbers that this process put into them.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        self.calls: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()

    def all_gather(self, x: Tensor) -> Tensor:
        """[size, *x.shape]: everybody's x, all of one shape."""
        if self.size == 1:
            return x[None]
        self._count("all_gather", x)
        out = x.new_empty(self.size, *x.shape)
        dist.all_gather(list(out.unbind()), x.contiguous(), self._group)
        return out

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of everybody's x."""
        if self.size == 1:
            return x
        self._count("all_reduce", x)
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=self._group)
        return x

    def objects(self, value: Any) -> list[Any]:
        """Everybody's value, pickled: for what is exchanged once per epoch or checkpoint."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self._group)
        return values

    def _count(self, name: str, x: Tensor) -> None:
        self.calls[name] += 1
        self.numbers[name] += x.numel()
