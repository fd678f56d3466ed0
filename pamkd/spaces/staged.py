"""Spaces that are searched in stages: every stage has fewer operations on each edge, and a network of other size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pamkd.spaces.supernet import Candidates, Supernet


class Staged(Supernet):
    """The operations that are left for each edge, as data of an instance.

    A subclass stands before the class of the space that it prunes, and says in `enter_stage` what else changes.
    """

    def __init__(self, **options: Any) -> None:
        self.stage = 0
        self._kept: tuple[Candidates, ...] | None = None
        self.enter_stage()
        super().__init__(**options)

    def enter_stage(self) -> None:
        """Set what depends on `stage`, before the network is laid out."""

    def candidates(self, reduction: bool) -> Candidates:
        if self._kept is not None:
            return self._kept[reduction]
        return super().candidates(reduction)  # type: ignore[safe-super]  # of the space that stands behind this class

    def at_stage(self, stage: int, kept: Sequence[Sequence[Sequence[str]]]) -> Supernet:
        """The supernet of that stage with these operations, for each type of cell."""
        twin = copy.copy(self)
        twin.stage, twin._kept = stage, tuple(tuple(map(tuple, cell)) for cell in kept)
        twin.enter_stage()
        twin.lay_out()
        return twin

    def pruned(self, columns: Sequence[Sequence[Sequence[int]]]) -> Supernet:
        """The next stage, in which every edge of every type of cell keeps these columns."""
        old = [self.candidates(bool(i)) for i in range(len(self.cell_types))]
        kept = [
            [[names[o] for o in keep] for names, keep in zip(cell, keeps, strict=True)] for cell, keeps in zip(old, columns, strict=True)
        ]
        return self.at_stage(self.stage + 1, kept)

    @property
    def structure(self) -> dict[str, Any]:
        return {"stage": self.stage, "kept": self._kept}

    def restructured(self, structure: dict[str, Any]) -> Supernet:
        return self if structure["kept"] is None else self.at_stage(structure["stage"], structure["kept"])


def strongest_columns(alphas: Tensor, count: int) -> list[list[list[int]]]:
    """The columns of the `count` largest entries of every edge, in their order. alphas [cells, edges, operations]."""
    return alphas.topk(count, -1).indices.sort(-1).values.tolist()
