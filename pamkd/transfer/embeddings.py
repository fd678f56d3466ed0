"""Equal embeddings ("L2E" in Fig. 2): the student's embedding of an image is drawn to the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pamkd.spaces.supernet import Output
from pamkd.transfer.instances import Instances


@dataclass
class Embeddings(Instances):
    """mean_x ||e(x; W_k) - e(x; V_j)||^2 / d."""

    def publish(self, output: Output, weights: Tensor, context: None) -> Tensor:
        """[n, d]."""
        return output.embedding

    def loss(self, published: Tensor, output: Output, weights: Tensor, context: None) -> Tensor:
        """published [K, n, d] -> [K]."""
        return (published - output.embedding).square().mean((1, 2))
