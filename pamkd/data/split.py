"""Cutting a training set into the half that trains weights and the half that trains architectures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pamkd.data.randomness import generator

IMAGENET_SHARES = (0.1, 0.025)  # paper, Sec. 4.1: 10 % of the training images as D(tr), 2.5 % as D(val)


def halves(labels: Tensor | Sequence[int], seed: int, portion: float | tuple[float, float] = 0.5) -> tuple[Tensor, Tensor]:
    """Two disjoint, ascending index tensors (int64) into `labels` [n], drawn at random and fixed by the seed.

    The first holds round(portion * n) images, the second the rest; with a pair of shares (a, b) the first holds
    round(a * n) and the second round((a + b) * n) less those. Both are stratified: a class of m images gives each of them
    its share of m within one image. (DARTS cuts the training set in file order, without regard to classes.)

    Raises ValueError when a share lies outside (0, 1), when both exceed the whole, or when one side would be empty.
    """
    labels = torch.as_tensor(labels)
    first, second = portion if isinstance(portion, tuple) else (portion, 1 - portion)
    if not (first > 0 and second > 0 and first + second <= 1 + 1e-9):
        raise ValueError(f"shares of the two halves are {first:g} and {second:g}: needed are positive numbers of sum 1 at most")
    count = len(labels)
    cut, end = round(first * count), min(count, round((first + second) * count))
    if not 0 < cut < end:
        raise ValueError(f"{count} images cannot be cut into shares {first:g} and {second:g}: one of them would be empty")
    order = torch.randperm(count, generator=generator(seed, "halves"))
    place = torch.empty(count, dtype=torch.float64)  # of an image within its own class, in (0, 1)
    for label in labels.unique():
        rows = order[labels[order] == label]
        place[rows] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    order = order[place[order].argsort(stable=True)]
    return order[:cut].sort().values, order[cut:end].sort().values
