"""Knowledge distillation via collaborative learning, "KDCL" (Guo et al., CVPR 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pamkd.methods.method import SupernetLearner
from pamkd.methods.one_set import OneSet
from pamkd.spaces.supernet import Output
from pamkd.transfer.divergence import divergence
from pamkd.transfer.ensemble import Rule, covariance_weights, ensemble
from pamkd.trilevel.passes import Batch, predictions


@dataclass
class Kdcl(OneSet):
    """CE_k + weight T^2 KL(sg[softmax(z_t / T)] || softmax(z_k / T)): all learners learn from one teacher z_t that they form.

    `rule` says how (`pamkd.transfer.ensemble`). The sources leave open which one the paper took; "minlogit" has no
    parameter. "general" weighs predictions by their errors' covariance on the validation labels, once per epoch. All
    learners see the same augmented image, where Guo et al. give each its own.
    """

    rule: Rule = "minlogit"
    temperature: float = 2.0
    weight: float = 1.0

    learners = (2, math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shares: Tensor | None = None  # of "general"

    def measure(self, learners: Sequence[SupernetLearner], valid: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        if self.rule == "general":
            self._shares = covariance_weights(predictions(learners, "w", valid(), self.rows))

    def targets(self, outputs: Output, batch: Batch, seed: int) -> Tensor:
        return ensemble(self.rule, outputs.logits, batch.labels, self._shares, self.temperature)[0]

    def loss(self, outputs: Output, batch: Batch, targets: Tensor) -> Tensor:
        return self.weight * self.temperature**2 * divergence(targets, outputs.logits, self.temperature)

    def flow(self, outputs: Output, batch: Batch) -> Tensor:
        shares = ensemble(self.rule, outputs.logits, batch.labels, self._shares, self.temperature)[1]
        return shares.expand(len(shares), -1)

    def state(self) -> dict[str, Tensor]:
        return super().state() | ({} if self._shares is None else {"shares": self._shares})

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self._shares = state.get("shares")
