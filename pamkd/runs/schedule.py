"""Learning rates over the epochs."""

import math


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """Learning rate of an epoch: `start` in the first, towards `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2
