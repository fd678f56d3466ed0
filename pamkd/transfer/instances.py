"""What transfers by plain PyTorch functions of single images, or of nothing drawn at all, have in common."""

from __future__ import annotations

from typing import Any, TypeVar

from pamkd.trilevel.passes import Batch

Self = TypeVar("Self")


class Instances:
    """Draws nothing; can be differentiated twice as it is."""

    def draw(self, batch: Batch, seed: int) -> Any:
        return None

    def twice_differentiable(self: Self) -> Self:
        return self
