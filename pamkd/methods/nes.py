"""Neural ensemble search, "NES" (Zaidi et al., NeurIPS 2021), with gradients instead of a pool of trained networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pamkd.methods.method import SupernetLearner
from pamkd.methods.one_set import OneSet
from pamkd.spaces.supernet import Output
from pamkd.trilevel.passes import Batch, predictions


@dataclass
class Nes(OneSet):
    """Weights by CE_k alone; architectures by the ensemble's loss, -mean log((1 / K) sum_k p_k(y | x)) on the validation batch.

    Zaidi et al. train 400 architectures and select among them, which the search cost that the paper reports excludes. What
    selection would do with the learners of a search is in its result (`forward_selection`).
    """

    def objective(self, outputs: Output, batch: Batch) -> Tensor:
        return ensemble_loss(outputs.logits, batch.labels)

    def summary(self, learners: Sequence[SupernetLearner], valid: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> dict[str, Any]:
        logits, labels = zip(*predictions(learners, "w", valid(), self.rows), strict=True)
        chosen, losses = forward_selection(torch.cat(logits, 1), torch.cat(labels), self.rows.count(len(learners)))
        return {"forward_selection": chosen, "ensemble_loss": losses}


def ensemble_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """logits [K, n, classes] -> the mean negative log-likelihood of the averaged predictions."""
    chosen = logits.log_softmax(2).gather(2, labels.expand(len(logits), -1)[..., None])
    return (math.log(len(logits)) - torch.logsumexp(chosen, 0)).mean()


def forward_selection(logits: Tensor, labels: Tensor, size: int) -> tuple[list[int], list[float]]:
    """Members chosen one by one, each that lowers the ensemble's loss most, without repetition; and the losses on the way.

    logits [M, n, classes], size <= M. The first is the best single model.
    """
    chosen: list[int] = []
    losses: list[float] = []
    for _ in range(size):
        rest = [k for k in range(len(logits)) if k not in chosen]
        values = [ensemble_loss(logits[[*chosen, k]], labels).item() for k in rest]
        best = min(range(len(rest)), key=values.__getitem__)
        chosen.append(rest[best])
        losses.append(values[best])
    return chosen, losses
