"""Pseudo-labels ("PL" in Fig. 2): the student fits the teacher's predictions, image by image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pamkd.spaces.supernet import Output
from pamkd.transfer.divergence import divergence
from pamkd.transfer.instances import Instances


@dataclass
class PseudoLabels(Instances):
    """mean_x KL(softmax(z(x; V_j) / T) || softmax(z(x; W_k) / T)), as in deep mutual learning (Zhang et al. 2018)."""

    temperature: float = 1.0

    def publish(self, output: Output, weights: Tensor, context: None) -> Tensor:
        """[n, classes]."""
        return output.logits

    def loss(self, published: Tensor, output: Output, weights: Tensor, context: None) -> Tensor:
        """published [K, n, classes] -> [K]."""
        return divergence(published, output.logits[None], self.temperature)
