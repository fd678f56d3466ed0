"""What transfers by plain PyTorch functions of single images, or of nothing drawn at all, have in common."""

from __future__ import annotations

from pamkd.trilevel.passes import Batch


class Instances:
    """Draws nothing; can be differentiated twice as it is."""

    def draw(self, batch: Batch, seed: int) -> None:
        return None

    def twice_differentiable(self) -> Instances:
        return self
