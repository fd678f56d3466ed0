"""Sampling pairs of groups of images from a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_groups(batch: int, group_size: int, pairs: int, seed: int, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """X and Y of Sec. 3.1: int64 [pairs, group_size] row indices each, on `device`; the 2R rows of a pair are distinct.

    Every choice is equally likely and a function of the seed (0 to 2^64 - 1) alone.

    Raises ValueError for a group size below 2, no pairs, or a batch of fewer than 2 * group_size images.
    """
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}: needed are 2 or more images per group")
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}: needed is at least one pair of groups")
    if batch < 2 * group_size:
        needed = f"a pair of groups takes 2 * {group_size} different ones"
        raise ValueError(f"a batch of {batch} images is too small: {needed}; take larger batches or smaller groups")
    rows = sample_rows(batch, 2 * group_size, pairs, seed, device)
    return rows[:, :group_size], rows[:, group_size:]


def sample_rows(batch: int, size: int, count: int, seed: int, device: str | torch.device = "cpu") -> Tensor:
    """int64 [count, size] row indices below `batch`, those of a row distinct; every choice equally likely, a function of the seed.

    Raises ValueError for a batch of fewer than `size` images.
    """
    from pamkd import _host

    if batch < size:
        raise ValueError(f"a batch of {batch} images is too small: needed are {size} different ones; take larger batches")
    return torch.from_numpy(_host.sample_rows(batch, size, count, seed)).to(device)
