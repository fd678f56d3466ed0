"""The DARTS space (Liu et al. 2019): eight candidate operations on each of fourteen edges, softmax mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd.spaces.genotype import Gene, Genotype
from pamkd.spaces.supernet import Supernet

PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
INPUTS, NODES = 2, 4
EDGES = sum(INPUTS + node for node in range(NODES))


class Darts(Supernet):
    """alphas [2, 14, 8]: normal and reduction cell, edge, operation."""

    def candidates(self, reduction: bool) -> tuple[tuple[str, ...], ...]:
        return (PRIMITIVES,) * EDGES

    def init_alphas(self, generator: torch.Generator) -> Tensor:
        return 1e-3 * torch.randn(2, EDGES, len(PRIMITIVES), generator=generator)

    def mixtures(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        normal, reduce = alphas.softmax(-1)
        return normal, reduce

    def genotype(self, alphas: Tensor) -> Genotype:
        normal, reduce = (derive_cell(mix, PRIMITIVES) for mix in self.mixtures(alphas.detach()))
        states = tuple(range(INPUTS, INPUTS + NODES))
        return Genotype(normal, states, reduce, states)


def derive_cell(mix: Tensor, operations: tuple[str, ...]) -> tuple[Gene, ...]:
    """Two incoming edges per node: those with the largest weight of an operation other than `none`, and that operation.

    mix [edges, operations]. Genes of a node stand in the order of decreasing weight; ties go to the lower index.
    """
    allowed = [i for i, name in enumerate(operations) if name != "none"]
    genes: list[Gene] = []
    edge = 0
    for node in range(NODES):
        rows = mix[edge : edge + INPUTS + node, allowed].tolist()
        best = sorted(range(len(rows)), key=lambda state: -max(rows[state]))[:2]
        genes += [(operations[allowed[rows[state].index(max(rows[state]))]], state) for state in best]
        edge += INPUTS + node
    return tuple(genes)
