"""Means over seeds, and paired comparisons of two rows seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def mean_std(values: Sequence[float], digits: int = 2) -> str:
    """mean ± sample standard deviation."""
    if not values:
        return "–"
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text}±{statistics.stdev(values):.{digits}f}"


@dataclass(frozen=True)
class Paired:
    """Differences of a row to the reference, by seed; p by exact sign flips, two-sided."""

    differences: tuple[float, ...]

    @property
    def p(self) -> float:
        """Share of the 2^n ways to flip signs that make the mean at least as large in size."""
        size, half = abs(sum(self.differences)) - 1e-12, len(self.differences) // 2
        if size <= 0:
            return 1.0
        # Sums of all flips of each half: 2^(n / 2) numbers, where all at once would be 2^n.
        first, second = (_flipped(part) for part in (self.differences[:half], self.differences[half:]))
        second.sort()
        above = len(second) - np.searchsorted(second, size - first)
        below = np.searchsorted(second, -size - first, side="right")
        return float((above + below).sum()) / 2 ** len(self.differences)

    def __str__(self) -> str:
        if not self.differences:
            return "–"
        better, worse = (sum(sign * d > 1e-12 for d in self.differences) for sign in (-1, 1))
        ties = len(self.differences) - better - worse
        equal = f", {ties} equal" if ties else ""
        return f"{statistics.mean(self.differences):+.2f} ({better} lower, {worse} higher{equal}; p = {self.p:.2f})"


def _flipped(differences: Sequence[float]) -> np.ndarray:
    """[2^n]: the sums under all choices of signs."""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def paired(values: dict[int, float], reference: dict[int, float]) -> Paired:
    return Paired(tuple(values[seed] - reference[seed] for seed in sorted(values) if seed in reference))
