"""Equal weights ("L2W" in Fig. 2): the student's encoder is drawn to the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pamkd.distributed import ALL_HERE, Rows
from pamkd.spaces.supernet import Output, Supernet
from pamkd.transfer.instances import Instances


@dataclass
class EncoderWeights(Instances):
    """||w_k - v_j||^2 / (2 P) over the P weights of the encoder: everything before the classifier.

    `encoder` is P, the position of the classifier in the flat vector (None: all weights). The sum, without 1 / P, is the
    proximal term of implicit MAML; the mean keeps lambda in the range of other transfers. Learners must share one layout.
    """

    encoder: int | None = None

    def fit(self, networks: Sequence[Supernet], rows: Rows = ALL_HERE) -> None:
        """Find the encoder. Raises ValueError where the learners' supernets have become different ones."""
        layouts = rows.objects([network.layout.entries for network in networks])
        if any(layout != layouts[0] for layout in layouts):
            raise ValueError("transfer l2w compares weights one by one and these learners' supernets differ: take another transfer")
        self.encoder = networks[0].encoder_size

    def publish(self, output: Output, weights: Tensor, context: None) -> Tensor:
        """[P]."""
        return weights[: self.encoder]

    def loss(self, published: Tensor, output: Output, weights: Tensor, context: None) -> Tensor:
        """published [K, P] -> [K]."""
        return (published - weights[: self.encoder]).square().mean(1) / 2
