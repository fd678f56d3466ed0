"""The rules by which the published vectors fill weights, inputs and architecture parameters (float64, flat index k)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pamkd.spaces.genotype import short_genes


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


@pytest.fixture
def filled(published_weight):
    """filled(supernet) -> float64 flat weights by the published rule, BatchNorm weights 1, biases 0."""

    def fill(supernet):
        flat = torch.zeros(supernet.num_weights, dtype=torch.float64)
        for name, value in supernet.layout.views(flat).items():
            if name.endswith("._ops"):
                for piece in supernet.cells[int(name.split(".")[1])].spec.weights:
                    value[piece.offset : piece.offset + piece.size] = published_weight(piece.shape).flatten()
            elif value.dim() > 1:
                value.copy_(published_weight(value.shape))
            elif name.endswith("weight"):
                value.fill_(1.0)
        return flat

    return fill


@pytest.fixture
def genes():
    """genes("s3:0 sk:1") -> the genes that these short names stand for."""
    return short_genes
