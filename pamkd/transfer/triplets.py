"""Triple-wise similarity ("TS" in Fig. 2): is x more like y, or more like z?"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pamkd.data.groups import sample_rows
from pamkd.spaces.supernet import Output
from pamkd.transfer.instances import Instances
from pamkd.trilevel.passes import Batch


@dataclass
class Triplets(Instances):
    """mean over triplets of max(0, epsilon - delta_j delta_k), delta = cos(e(x), e(y)) - cos(e(z), e(y)): Eq. (7) with three images.

    After You et al. (KDD 2017), who compare distances in hidden layers. `pairs` triplets are drawn (0: the batch size).
    """

    epsilon: float = 0.01
    pairs: int = 0

    def draw(self, batch: Batch, seed: int) -> Tensor:
        """[triplets, 3] distinct rows x, y, z."""
        count = len(batch.labels)
        return sample_rows(count, 3, self.pairs or count, seed, batch.images.device)

    def publish(self, output: Output, weights: Tensor, context: Tensor) -> Tensor:
        """[triplets], delta of each."""
        x, y, z = (output.embedding[rows] for rows in context.T)
        return F.cosine_similarity(x, y) - F.cosine_similarity(z, y)

    def loss(self, published: Tensor, output: Output, weights: Tensor, context: Tensor) -> Tensor:
        """published [K, triplets] -> [K]."""
        return (self.epsilon - published * self.publish(output, weights, context)).relu().mean(1)
