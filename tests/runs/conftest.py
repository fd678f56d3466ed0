"""A search that takes a second, and two small datasets for it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

TINY = {"epochs": 2, "channels": 2, "cells": 3, "batch_size": 8, "group_size": 2, "group_pairs": 4, "arch_lr": 0.05, "log_every": 1}


class Pictures(TensorDataset):
    """Images of three classes that differ in their mean."""

    classes = ("low", "middle", "high")

    def __init__(self, count: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 3, (count,), generator=random)
        images = torch.randn(count, 1, 8, 8, generator=random) + labels[:, None, None, None]
        super().__init__(images, labels)


@pytest.fixture
def pictures():
    return Pictures(28, seed=0), Pictures(24, seed=1)


@pytest.fixture
def tiny():
    return dict(TINY)
