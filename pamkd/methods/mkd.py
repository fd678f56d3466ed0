"""Mutual knowledge distillation, "MKD" in the paper: deep mutual learning (Zhang et al., CVPR 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pamkd.methods.one_set import OneSet
from pamkd.spaces.supernet import Output
from pamkd.transfer.divergence import divergence
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import everybody


@dataclass
class Mkd(OneSet):
    """CE_k + weight / (K - 1) sum_{j != k} KL(sg[p_j] || p_k), all learners updated at once from one forward pass each.

    As Zhang et al. have it: temperature 1, no factor T^2, no ramp. Their code does not divide by K - 1; with K = 2 it is the same.
    """

    temperature: float = 1.0
    weight: float = 1.0

    learners = (2, math.inf)

    def targets(self, outputs: Output, batch: Batch, seed: int) -> Tensor:
        return outputs.logits

    def loss(self, outputs: Output, batch: Batch, targets: Tensor) -> Tensor:
        pairs = divergence(targets[None], outputs.logits[:, None], self.temperature)  # [student, teacher]
        return self.weight * (everybody(pairs.detach()[0]) * pairs).sum(1)

    def flow(self, outputs: Output, batch: Batch) -> Tensor:
        return everybody(torch.zeros(len(outputs.logits)))
