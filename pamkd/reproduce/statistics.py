"""Means over seeds, and paired comparisons of two rows seed by seed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
        size = abs(sum(self.differences)) - 1e-12
        flips = list(itertools.product((1, -1), repeat=len(self.differences)))
        return sum(abs(sum(s * d for s, d in zip(signs, self.differences, strict=True))) >= size for signs in flips) / len(flips)

    def __str__(self) -> str:
        if not self.differences:
            return "–"
        better, worse = (sum(sign * d > 1e-12 for d in self.differences) for sign in (-1, 1))
        ties = len(self.differences) - better - worse
        equal = f", {ties} equal" if ties else ""
        return f"{statistics.mean(self.differences):+.2f} ({better} lower, {worse} higher{equal}; p = {self.p:.2f})"


def paired(values: dict[int, float], reference: dict[int, float]) -> Paired:
    return Paired(tuple(values[seed] - reference[seed] for seed in sorted(values) if seed in reference))
