"""The DARTS space (Liu et al. 2019): eight candidate operations on each of fourteen edges, softmax mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pamkd.spaces.genotype import Gene, Genotype
from pamkd.spaces.supernet import Candidates, Supernet

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
STATES = tuple(range(INPUTS, INPUTS + NODES))


class Darts(Supernet):
    """alphas [2, 14, operations]: normal and reduction cell, edge, operation."""

    def candidates(self, reduction: bool) -> Candidates:
        return (PRIMITIVES,) * EDGES

    def init_alphas(self, generator: torch.Generator) -> Tensor:
        return 1e-3 * torch.randn(2, EDGES, len(self.candidates(False)[0]), generator=generator)

    def mixtures(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        normal, reduce = alphas.softmax(-1)
        return normal, reduce

    def genotype(self, alphas: Tensor) -> Genotype:
        normal, reduce = (derive_cell(mix.tolist(), self.candidates(bool(i))) for i, mix in enumerate(self.mixtures(alphas.detach())))
        return Genotype(normal, STATES, reduce, STATES)


def derive_cell(mix: Sequence[Sequence[float]], candidates: Candidates, by_state: bool = False) -> tuple[Gene, ...]:
    """Two incoming edges per node: those with the largest weight of an operation other than `none`, and that operation.

    mix [edges, operations]. Genes of a node stand in the order of decreasing weight, or with `by_state` of the states that
    they read; among equal weights the lower index wins.
    """
    best = [
        max(((weight, name) for weight, name in zip(row, names, strict=True) if name != "none"), key=lambda pair: pair[0])
        for row, names in zip(mix, candidates, strict=True)
    ]
    genes: list[Gene] = []
    for edges in incoming_edges():
        weights = [best[edge][0] for edge in edges]
        kept = sorted(range(len(edges)), key=weights.__getitem__, reverse=True)[:2]
        genes += [(best[edges[state]][1], state) for state in (sorted(kept) if by_state else kept)]
    return tuple(genes)


def incoming_edges() -> list[range]:
    """The edges that enter each node, in the order of the states that they leave."""
    starts = [sum(INPUTS + node for node in range(count)) for count in range(NODES + 1)]
    return [range(start, end) for start, end in pairwise(starts)]
