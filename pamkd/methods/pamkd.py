"""Performance-aware mutual knowledge distillation: the paper's method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pamkd.methods.method import SupernetLearner
from pamkd.methods.two_sets import TwoSets
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.transfer.weights import EncoderWeights
from pamkd.trilevel.step import Teaching, Transfer, pairwise_gaps


@dataclass
class Pamkd(TwoSets):
    """CE_k + lambda sum_j h(d_kj) G_kj, Eq. (4), (6), (7): only better learners teach, by group-wise relative similarity.

    d_kj = L(V'_k; val) - L(V'_j; val). `--transfer` puts another loss in the place of G (Sec. 4.5).
    """

    transfer: Transfer = field(default_factory=GroupRelativeSimilarity)
    weight: float = 0.5

    def start(self, learners: Sequence[SupernetLearner]) -> None:
        if isinstance(self.transfer, EncoderWeights):
            self.transfer.fit([learner.network for learner in learners], self.rows)

    def teaching(self) -> Teaching:
        return Teaching(self.transfer, self.weight, pairwise_gaps, "valid")
