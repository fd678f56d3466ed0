"""Ablation "2nd-KDCL" (Table 5): PAMKD whose second stage is collaborative learning without scrutiny."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pamkd.methods.method import SupernetLearner
from pamkd.methods.two_sets import TwoSets
from pamkd.transfer.ensemble import Ensemble, Rule, covariance_weights
from pamkd.trilevel.passes import predictions
from pamkd.trilevel.step import Teaching, together


@dataclass
class SecondKdcl(TwoSets):
    """CE_k + weight T^2 KL(softmax(z_t / T) || softmax(z(W_k) / T)) on the training batch, z_t formed by all V'_j as in `kdcl`."""

    rule: Rule = "minlogit"
    temperature: float = 2.0
    weight: float = 1.0

    learners = (2, math.inf)

    def teaching(self) -> Teaching:
        self._ensemble = Ensemble(self.rule, self.temperature)
        return Teaching(self._ensemble, self.weight, together, "train")

    def measure(self, learners: Sequence[SupernetLearner], valid: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        if self.rule == "general":
            self._ensemble.shares = covariance_weights(predictions(learners, "v", valid(), self.rows))

    def state(self) -> dict[str, Tensor]:
        return {} if self._ensemble.shares is None else {"shares": self._ensemble.shares}

    def load(self, state: dict[str, Tensor]) -> None:
        self._ensemble.shares = state.get("shares")
