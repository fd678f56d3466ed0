"""Ablation "No-1st" (Table 6): PAMKD without its first stage. The weights that are measured are those that are trained."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pamkd.methods.one_set import OneSet, cross_entropies
from pamkd.spaces.supernet import Output
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.transfer.weights import EncoderWeights
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Transfer, pairwise_gaps


@dataclass
class NoFirst(OneSet):
    """CE_k + lambda sum_j h(d_kj) G_kj with W in the place of V, and nothing detached: d_kj = L(W_k; val) - L(W_j; val).

    So training lowers d too: a worse learner is trained on validation labels, a better one is made worse, and teaching ends
    where all do equally well. That is what the ablation shows.
    """

    transfer: Transfer = field(default_factory=GroupRelativeSimilarity)
    weight: float = 1.0

    learners = (2, math.inf)
    teaches_on: ClassVar[Literal["train", "valid"]] = "valid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.transfer, EncoderWeights):
            raise ValueError("method no-1st teaches through outputs alone and cannot use the transfer l2w: take another, for example grs")

    def targets(self, outputs: Output, batch: Batch, seed: int) -> Any:
        return self.transfer.draw(batch, seed)

    def loss(self, outputs: Output, batch: Batch, targets: Any) -> Tensor:
        gaps = pairwise_gaps(cross_entropies(outputs.logits, batch.labels))
        each = [Output(*parts) for parts in zip(*outputs, strict=True)]
        weights = torch.empty(0)  # which no transfer but l2w reads
        published = torch.stack([self.transfer.publish(output, weights, targets) for output in each])
        against = torch.stack([self.transfer.loss(published, output, weights, targets) for output in each])
        return self.weight * (gaps * against).sum(1)

    def flow(self, outputs: Output, batch: Batch) -> Tensor:
        return pairwise_gaps(cross_entropies(outputs.logits, batch.labels))

    def twice_differentiable(self) -> NoFirst:
        twin = copy.copy(self)
        twin.transfer = self.transfer.twice_differentiable()
        return twin
