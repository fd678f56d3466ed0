"""Learning rates over the epochs."""

import math


def linear(start: float, epoch: int, epochs: int) -> float:
    """A line from `start` towards 0 at 5 epochs before the end; in these last 5 it falls from a fifth of the line's last steps.

    P-DARTS, PC-DARTS and others on ImageNet: start (E - 5 - e) / (E - 5), at the end start (E - e) / (5 (E - 5)).
    """
    left = epochs - epoch
    return start * (left - 5) / (epochs - 5) if left > 5 else start * left / (5 * (epochs - 5))


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """Learning rate of an epoch: `start` in the first, towards `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2
