"""What OKDDip and ONE have in common: temperature 3, and distillation that grows in the first epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pamkd.methods.one_set import OneSet


@dataclass
class Ramped(OneSet):
    """`ramp_epochs` None: 80 of the 300 epochs of the original papers, so 13 of 50."""

    temperature: float = 3.0
    weight: float = 1.0
    ramp_epochs: int | None = None

    learners = (2, math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._scale = self.weight * self.temperature**2

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        length = round(80 / 300 * epochs) if self.ramp_epochs is None else self.ramp_epochs
        self._scale = self.weight * ramp(epoch, length) * self.temperature**2


def ramp(epoch: int, length: int) -> float:
    """exp(-5 (1 - min(epoch, length) / length)^2): nearly 0 in epoch 0, 1 from epoch `length` on."""
    return math.exp(-5 * (1 - min(epoch, length) / length) ** 2) if length else 1.0
