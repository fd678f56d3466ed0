"""Learners on rows of the mesh: which ones are here, and what they tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pamkd.distributed.group import Group


class Rows:
    """Learner k of `learners` lives on row k mod (number of rows). By default there is one row, with all learners.

    Methods take what belongs to the learners that are here, in the order of `indices`, and give what belongs to all.
    """

    def __init__(self, group: Group | None = None, learners: int | None = None) -> None:
        self.group = group or Group()
        self._learners = learners

    def count(self, here: int) -> int:
        """K, where `here` learners are here."""
        return here if self._learners is None else self._learners

    def indices(self, here: int) -> range:
        """The numbers k of the learners that are here."""
        return range(self.group.rank, self.count(here), self.group.size)

    def gather(self, parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """For each learner here a few tensors, of one dtype and of the same shapes for all -> for each of them [K, *shape].

        One collective. Without graph where there are several rows.
        """
        if self.group.size == 1:
            return [torch.stack(tensors) for tensors in zip(*parts, strict=True)]
        here = torch.stack([torch.cat([tensor.detach().reshape(-1) for tensor in tensors]) for tensors in parts])
        count = self.count(len(parts))
        padded = here.new_zeros(-(-count // self.group.size), here.shape[1])
        padded[: len(here)] = here
        everybody = self.group.all_gather(padded).transpose(0, 1).flatten(0, 1)[:count]
        pieces = everybody.split([tensor.numel() for tensor in parts[0]], 1)
        return [piece.reshape(len(piece), *tensor.shape) for piece, tensor in zip(pieces, parts[0], strict=True)]

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of these tensors, of one dtype, over all rows: one collective."""
        if self.group.size == 1:
            return list(tensors)
        flat = self.group.all_reduce(torch.cat([tensor.detach().reshape(-1) for tensor in tensors]))
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    def objects(self, values: Sequence[Any]) -> list[Any]:
        """One value for each learner here -> one for each of all K, pickled on the way."""
        rows = self.group.objects(list(values))
        return [rows[k % len(rows)][k // len(rows)] for k in range(sum(map(len, rows)))]


ALL_HERE = Rows()
