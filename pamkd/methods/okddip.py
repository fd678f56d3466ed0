"""Online knowledge distillation with diverse peers, "OKDDip" (Chen et al., AAAI 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pamkd.methods.method import SupernetLearner
from pamkd.methods.ramp import Ramped
from pamkd.spaces.supernet import Output
from pamkd.transfer.divergence import divergence
from pamkd.trilevel.passes import Batch

REDUCTION = 8  # projections to d / 8


@dataclass
class Okddip(Ramped):
    """CE_a + weight r T^2 KL(softmax(t_a / T) || softmax(z_a / T)) for each peer, t_a = sum_b softmax_b(<Q e_a, K e_b>) z_b.

    With a leader, the last learner, the peers are the others, and it has CE_m + weight r T^2 KL(softmax(mean of the peers' z / T)
    || softmax(z_m / T)) and is the one retained. Q, K are [d / 8, d], shared by the peers and trained with W. Nothing is
    detached. r grows over the first epochs. A single peer is its own teacher: 3 learners or more with
    a leader. The paper of the search does not say whether it has one; its cost in Table 1 suggests so.
    """

    leader: bool = True

    def start(self, learners: Sequence[SupernetLearner]) -> None:
        width = learners[0].network.embedding_size
        random = torch.Generator().manual_seed(self.seed)
        bound = 1 / math.sqrt(width)
        weights = torch.empty(2 * max(1, width // REDUCTION) * width, dtype=learners[0].w.dtype).uniform_(-bound, bound, generator=random)
        self._set_modules(weights.to(learners[0].w.device))

    def loss(self, outputs: Output, batch: Batch, targets: Any) -> Tensor:
        peers, rest = self._split(outputs.logits)
        taught = divergence(torch.einsum("nab,bnc->anc", self._attention(outputs), peers), peers, self.temperature)
        taught = torch.cat([taught, divergence(peers.mean(0)[None], rest, self.temperature)])
        return self._scale * taught

    def flow(self, outputs: Output, batch: Batch) -> Tensor:
        attention = self._attention(outputs).mean(0)
        flow = attention.new_zeros(len(outputs.logits), len(outputs.logits))
        flow[: len(attention), : len(attention)] = attention
        flow[len(attention) :, : len(attention)] = 1 / len(attention)
        return flow

    def retained(self, valid_loss: Sequence[float]) -> int:
        return len(valid_loss) - 1 if self.leader else super().retained(valid_loss)

    def _split(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        return (stacked[:-1], stacked[-1:]) if self.leader else (stacked, stacked[:0])

    def _attention(self, outputs: Output) -> Tensor:
        """[n, a, b]: how much peer a hears of peer b, for each image."""
        embedding, _ = self._split(outputs.embedding)
        query, key = self.modules.view(2, -1, embedding.shape[2])
        return torch.einsum("and,bnd->nab", embedding @ query.T, embedding @ key.T).softmax(2)
