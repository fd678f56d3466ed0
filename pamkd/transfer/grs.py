"""Group-wise relative similarity (Sec. 3.1, Eq. 2, 3 and 7): which of two groups of images is more alike."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pamkd import ops, reference
from pamkd.data.groups import sample_groups
from pamkd.spaces.supernet import Output
from pamkd.trilevel.passes import Batch


class Groups(NamedTuple):
    """Pairs of groups of rows of a batch."""

    x: Tensor  # [pairs, R] row indices
    y: Tensor  # [pairs, R]


@dataclass
class GroupRelativeSimilarity:
    """A teacher publishes s(X), s(Y) for sampled pairs of groups; a student pays for ordering them otherwise.

    `group_size` is the paper's R, `pairs` the number of sampled pairs (0: the batch size), `epsilon` the hinge's
    margin; `reduction` "sum" is the paper's, "mean" makes lambda independent of the number of pairs.
    """

    epsilon: float = 0.01
    group_size: int = 5
    pairs: int = 0
    reduction: str = "sum"

    def __post_init__(self) -> None:
        self._ops = ops

    def draw(self, batch: Batch, seed: int) -> Groups:
        """Pairs of groups of 2R distinct rows of a batch."""
        count = len(batch.labels)
        return Groups(*sample_groups(count, self.group_size, self.pairs or count, seed, batch.images.device))

    def publish(self, output: Output, weights: Tensor, context: Groups) -> Tensor:
        """[pairs, 2]: the similarities of both groups of each pair."""
        similarity, _ = self._ops.group_min_similarity(output.embedding[None], torch.cat(context))
        return similarity.view(2, -1).T

    def loss(self, published: Tensor, output: Output, weights: Tensor, context: Groups) -> Tensor:
        """published [K, pairs, 2] -> [K]: the hinge of Eq. (7) against each teacher."""
        hinge = self._ops.grs_hinge(published, self.publish(output, weights, context)[None], self.epsilon)[0]
        return hinge / len(context.x) if self.reduction == "mean" else hinge

    def twice_differentiable(self) -> GroupRelativeSimilarity:
        """The same over `pamkd.reference`."""
        twin = copy.copy(self)
        twin._ops = reference
        return twin
