"""Pairwise similarity ("PS" in Fig. 2): are two images alike or not?"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pamkd.data.groups import sample_rows
from pamkd.spaces.supernet import Output
from pamkd.transfer.instances import Instances
from pamkd.trilevel.passes import Batch


@dataclass
class Pairs(Instances):
    """mean over pairs of BCE(sigmoid((c_k - theta) / T), c_j >= theta), c = cos(e(x), e(y)), theta the teacher's median.

    The paper says that the teacher "annotates whether two images are similar or dissimilar"; threshold and temperature are
    this library's. `pairs` of images are drawn (0: the batch size).
    """

    temperature: float = 0.1
    pairs: int = 0

    def draw(self, batch: Batch, seed: int) -> Tensor:
        """[pairs, 2] distinct rows."""
        count = len(batch.labels)
        return sample_rows(count, 2, self.pairs or count, seed, batch.images.device)

    def publish(self, output: Output, weights: Tensor, context: Tensor) -> Tensor:
        """[pairs], the cosine of each pair."""
        x, y = (output.embedding[rows] for rows in context.T)
        return F.cosine_similarity(x, y)

    def loss(self, published: Tensor, output: Output, weights: Tensor, context: Tensor) -> Tensor:
        """published [K, pairs] -> [K]."""
        threshold = published.sort(1).values[:, (published.shape[1] - 1) // 2, None]  # the median's own kernel is not deterministic
        alike = (published >= threshold).to(published)
        student = (self.publish(output, weights, context) - threshold) / self.temperature
        return F.binary_cross_entropy_with_logits(student, alike, reduction="none").mean(1)
