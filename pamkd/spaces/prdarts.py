"""PR-DARTS (Zhou et al. 2020): two operations of an edge at a time, chosen by stochastic gates, and a path-depth regulariser."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from pamkd.spaces.darts import EDGES, STATES, Darts, incoming_edges
from pamkd.spaces.genotype import Gene, Genotype
from pamkd.spaces.supernet import Candidates

OPERATIONS = (
    "none",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "avg_pool_3x3",
    "max_pool_3x3",
)
SKIP, CONVOLUTIONS, POOLS, OTHERS = [1], [2, 3, 4, 5], [6, 7], [0, 2, 3, 4, 5]  # columns
PATH = [edges[-1] for edges in incoming_edges()]  # s1 -> node 0 -> node 1 -> node 2 -> node 3
ACTIVE = 2  # operations of an edge that are computed in a step
LOW, HIGH = -0.1, 1.1  # a gate is clamp(LOW + (HIGH - LOW) * sigmoid(...), 0, 1)
GATE_DROPOUT = 0.4
SKIP_WEIGHT, GROUP_WEIGHT, PATH_WEIGHT, THRESHOLD = 0.01, 0.005, 0.005, 0.2


class Gates(NamedTuple):
    """The gates of a step, and which of them are open."""

    values: Tensor  # [2, 14, 8], differentiable
    selected: Tensor  # [2, 14, 8] of 0 and 1, `ACTIVE` ones on every edge


class PrDarts(Darts):
    """alphas [2, 14, 8], the logits beta of the gates: normal and reduction cell, edge, operation.

    In each step u ~ U(0, 1) makes the hard-concrete gates g = clamp(a + (b - a) sigmoid((beta + logit u) / tau), 0, 1); each is
    dropped with probability 0.4 from the choice of an edge's two active operations, which get the weight 1 with the
    gradient of g (straight through). tau falls from 1 to 0.1 along a line.
    """

    pool_norm = False
    affine_tail = True

    def candidates(self, reduction: bool) -> Candidates:
        return (OPERATIONS,) * EDGES

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def temperature(self) -> float:
        return 1.0 - 0.9 * self.moment.epoch / max(1, self.moment.epochs - 1)

    def gates(self, betas: Tensor) -> Gates:
        """Gates and active operations of this step."""
        random = self.random("gates")
        u = torch.rand(betas.shape, generator=random, dtype=torch.float64).clamp_(1e-7, 1 - 1e-7).to(betas)
        concrete = torch.sigmoid((betas + torch.logit(u)) / self.temperature)
        values = (LOW + (HIGH - LOW) * concrete).clamp(0, 1)
        dropped = torch.empty(betas.shape).bernoulli_(GATE_DROPOUT, generator=random).to(betas)
        order = torch.randperm(betas.shape[-1], generator=random).to(betas.device)  # breaks ties, of which clamping makes many
        best = (values.detach() - dropped)[..., order].sort(dim=-1, descending=True, stable=True).indices[..., :ACTIVE]
        return Gates(values, torch.zeros_like(betas).scatter_(-1, order[best], 1.0))

    def sample(self, alphas: Tensor) -> tuple[Tensor, ...]:
        gates = self.gates(alphas)
        return tuple(gates.selected * (1 - gates.values.detach() + gates.values))

    def regulariser(self, alphas: Tensor) -> Tensor:
        return regulariser(alphas, self.gates(alphas).selected, self.temperature)

    def genotype(self, alphas: Tensor) -> Genotype:
        normal, reduce = (derive_pairs(mix.tolist(), self.candidates(bool(i))) for i, mix in enumerate(self.mixtures(alphas.detach())))
        return Genotype(normal, STATES, reduce, STATES)

    def _cell(self, i: int, left: Tensor, right: Tensor | None, weights: Tensor, mix: Tensor) -> Tensor:
        """Computes the active operations only: a cell of two candidates an edge over its part of the weights."""
        spec = self.cells[i].spec
        columns = mix.detach().ne(0).int().topk(ACTIVE, -1).indices.sort(-1).values
        chosen = columns.tolist()
        active = dataclasses.replace(spec, candidates=tuple(tuple(spec.candidates[e][o] for o in chosen[e]) for e in range(spec.edges)))
        everything = zip(spec.weights, weights.split([piece.size for piece in spec.weights]), strict=True)
        pieces = [values for piece, values in everything if piece.op in chosen[piece.edge]]
        part = torch.cat(pieces) if pieces else weights[:0]
        disturbance = self.draws(i, left)
        if disturbance is None:
            return self._mixed_cell(left, right, part, mix.gather(1, columns), active)
        return self._disturbed_cell(left, right, part, mix.gather(1, columns), active, disturbance)


def probability(betas: Tensor, temperature: float) -> Tensor:
    """Theta(beta) = P(gate != 0) = sigmoid(beta - tau ln(-a / b))."""
    return torch.sigmoid(betas - temperature * math.log(-LOW / HIGH))


def regulariser(betas: Tensor, selected: Tensor, temperature: float) -> Tensor:
    """l1 max(S - t, 0) + l2 (max(N - t, 0) + max(Q - t, 0)) - l3 P, of the mean probabilities of selected operations.

    S of skips, N of other operations, Q of pools, P the product along the path through all nodes of those of convolutions;
    means over both types of cell. betas, selected [2, 14, 8].
    """
    chosen = probability(betas, temperature) * selected

    def excess(columns: list[int]) -> Tensor:
        counts = selected[..., columns].sum((1, 2)).clamp(min=1)
        return (chosen[..., columns].sum((1, 2)) / counts).mean().sub(THRESHOLD).clamp(min=0)

    on_path, counts = chosen[:, PATH][..., CONVOLUTIONS].sum(-1), selected[:, PATH][..., CONVOLUTIONS].sum(-1)
    means = torch.where(counts > 0, on_path / counts.clamp(min=1), 1.0)
    path = (means.prod(1) * (counts.sum(1) > 0)).mean()
    return SKIP_WEIGHT * excess(SKIP) + GROUP_WEIGHT * (excess(OTHERS) + excess(POOLS)) - PATH_WEIGHT * path


def derive_pairs(mix: list[list[float]], candidates: Candidates) -> tuple[Gene, ...]:
    """The two strongest pairs of operation (but `none`) and edge of every node; both may lie on one edge."""
    genes: list[Gene] = []
    for edges in incoming_edges():
        pairs = [(mix[e][o], name, state) for state, e in enumerate(edges) for o, name in enumerate(candidates[e]) if name != "none"]
        genes += [(name, state) for _, name, state in sorted(pairs, key=lambda pair: -pair[0])[:2]]
    return tuple(genes)
