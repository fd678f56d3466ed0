"""PC-DARTS (Xu et al. 2020): operations on one of k parts of the channels, the others bypass them; edges weighed at each node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pamkd.spaces.darts import EDGES, PRIMITIVES, Darts, incoming_edges


class PcDarts(Darts):
    """alphas [2, 14, 8 + 1]: normal and reduction cell, edge; a logit for each operation, then the edge's own.

    An edge is softmax_node(beta) * shuffle(concat(sum_o softmax(alpha)_o o(x_first), x_rest)); `partial` is k.
    """

    def __init__(self, *, partial: int = 4, **options: Any) -> None:
        self.partial = partial
        super().__init__(**options)

    def init_alphas(self, generator: torch.Generator) -> Tensor:
        return 1e-3 * torch.randn(2, EDGES, len(PRIMITIVES) + 1, generator=generator)

    def mixtures(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        normal, reduce = (alphas[..., :-1].softmax(-1) * edge_weights(alphas[..., -1])[..., None]).unbind()
        return normal, reduce

    def sample(self, alphas: Tensor) -> tuple[Tensor, ...]:
        edges = edge_weights(alphas[..., -1])
        return tuple(torch.cat([mix, edges[i, :, None]], 1) for i, mix in enumerate(self.mixtures(alphas)))


def edge_weights(betas: Tensor) -> Tensor:
    """Softmax over the edges that enter each node. betas [..., 14]."""
    return torch.cat([betas[..., edges.start : edges.stop].softmax(-1) for edges in incoming_edges()], -1)
