"""Ablation "2nd-MKD" (Table 5): PAMKD whose second stage is mutual distillation without scrutiny."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pamkd.methods.two_sets import TwoSets
from pamkd.transfer.pseudo_labels import PseudoLabels
from pamkd.trilevel.step import Teaching, everybody


@dataclass
class SecondMkd(TwoSets):
    """CE_k + weight / (K - 1) sum_{j != k} KL(p(V'_j) || p(W_k)) on the training batch: the objective of `mkd` with V' as teachers.

    The paper replaces the objective; taking W_j as teachers instead would leave V without a use and equal `mkd`.
    """

    temperature: float = 1.0
    weight: float = 1.0

    learners = (2, math.inf)

    def teaching(self) -> Teaching:
        return Teaching(PseudoLabels(self.temperature), self.weight, everybody, "train")
