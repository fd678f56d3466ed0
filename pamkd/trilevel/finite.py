"""Numbers that went wrong: which learner, pass and term of a step made them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_LOSS = 1e4  # a cross-entropy from which no search comes back


class Diverged(RuntimeError):
    """A number of a step became NaN, infinite, or a loss larger than `LARGEST_LOSS`; `after` so many exchanges with other processes."""

    def __init__(self, message: str, after: int = 0) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True)
class Note:
    """What a watched number is."""

    term: str
    learner: int
    where: str  # the pass, or the part of the step
    limit: float
    after: int

    def check(self, value: float) -> None:
        """Raises Diverged where the value is not finite or beyond the limit."""
        if not abs(value) <= self.limit:
            what = f"the {self.term} of learner {self.learner} in {self.where} is {value:.6g}"
            raise Diverged(f"{what}: the search diverged; lower the learning rate or the clipping norm", self.after)


@dataclass(frozen=True)
class Noted:
    """The watched numbers of a step in the order in which they were made: `values` [len(notes)] on the device."""

    notes: Sequence[Note]
    values: Tensor | None

    def check(self) -> None:
        """Reads the numbers from the device, all at once. Raises Diverged for the first that is wrong."""
        if self.values is not None:
            for note, value in zip(self.notes, self.values.tolist(), strict=True):
                note.check(value)


class Watch:
    """Looks at numbers as they are made: on the CPU at once, on other devices, or where `later` is set, when the step is over.

    `exchanges` counts those with other processes until now: of several that see a step diverge, the one after the fewest saw it first.
    """

    def __init__(self, *, later: bool = False, exchanges: Callable[[], int] = int) -> None:
        self.later, self._exchanges = later, exchanges
        self._notes: list[Note] = []
        self._values: list[Tensor] = []

    def loss(self, value: Tensor, learner: int, where: str) -> None:
        """A scalar, which may not be larger than `LARGEST_LOSS` either."""
        self._see(value, Note("loss", learner, where, LARGEST_LOSS, self._exchanges()))

    def term(self, values: Sequence[Tensor], term: str, learner: int, where: str) -> None:
        """Tensors of any shapes, by the sum of their norms."""
        norms = [torch.linalg.vector_norm(value.detach()) for value in values]
        self._see(torch.stack(norms).sum(), Note(term, learner, where, math.nextafter(math.inf, 0), self._exchanges()))

    def take(self) -> Noted:
        """What is not yet read, and forget it."""
        noted = Noted(self._notes, torch.stack(self._values) if self._values else None)
        self._notes, self._values = [], []
        return noted

    def _see(self, value: Tensor, note: Note) -> None:
        if value.device.type == "cpu" and not self.later:
            note.check(value.item())
        else:
            self._notes.append(note)
            self._values.append(value.detach())
