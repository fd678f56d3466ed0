"""The rules by which the published vectors fill weights, inputs and architecture parameters (float64, flat index k)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor


def _index(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(shape))


@pytest.fixture
def published_weight():
    """w_k = ((31 k^2 + 7919 k + 13) mod 1009 / 1008 - 0.5) * 2 sqrt(3 / fan), fan = elements per output channel."""

    def rule(shape: tuple[int, ...]) -> Tensor:
        k = _index(shape)
        values = ((31 * k * k + 7919 * k + 13) % 1009).double() / 1008 - 0.5
        return (values * 2 * math.sqrt(3 / math.prod(shape[1:]))).view(shape)

    return rule


@pytest.fixture
def published_input():
    """x_k = ((17 k^2 + 101 k + 7) mod 1013) / 1012 * 2 - 1."""

    def rule(shape: tuple[int, ...]) -> Tensor:
        k = _index(shape)
        return (((17 * k * k + 101 * k + 7) % 1013).double() / 1012 * 2 - 1).view(shape)

    return rule


@pytest.fixture
def published_alphas():
    """a_k = ((29 (k + q)^2 + 53 (k + q) + 11) mod 997) / 997 - 0.5 with offset q."""

    def rule(shape: tuple[int, ...], offset: int) -> Tensor:
        k = _index(shape) + offset
        return (((29 * k * k + 53 * k + 11) % 997).double() / 997 - 0.5).view(shape)

    return rule
