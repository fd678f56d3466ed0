"""The step of methods with one weight set per learner, measured and trained at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.methods.method import Method, Phase, StepTensors, SupernetLearner
from pamkd.spaces.supernet import Output
from pamkd.trilevel.bilevel import BiLevelStep
from pamkd.trilevel.exact import exact_bilevel_hypergradient
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner


@dataclass
class OneSet(Method):
    """K learners that minimise cross-entropy plus what a subclass makes of their outputs; here nothing."""

    teaches_on: ClassVar[Literal["train", "valid"]] = "train"

    def __post_init__(self) -> None:
        self.shared = 0  # so many leading weights are one tensor for all learners
        self.parts = BiLevelStep(self.passes, sgd=self.sgd, fd_step=self.fd_step, rows=self.rows)
        self._set_modules(torch.empty(0))

    def _set_modules(self, weights: Tensor) -> None:
        """Flat weights of the method's own networks: what `loss` reads as `self.modules`, trained with W by the same SGD."""
        self.modules, self._momentum = weights.requires_grad_(), torch.zeros_like(weights)

    def targets(self, outputs: Output, batch: Batch, seed: int) -> Any:
        """What is taught and what is drawn: constants, from outputs stacked over the learners and without graph."""

    def loss(self, outputs: Output, batch: Batch, targets: Any) -> Tensor:
        """[K], what each learner adds to its cross-entropy."""
        return outputs.logits.new_zeros(len(outputs.logits))

    def flow(self, outputs: Output, batch: Batch) -> Tensor:
        """[K, K], who is taught by whom with what weight: for the report alone."""
        return outputs.logits.new_zeros(len(outputs.logits), len(outputs.logits))

    def objective(self, outputs: Output, batch: Batch) -> Tensor:
        """What the architectures minimise: the sum of the learners' cross-entropies."""
        return cross_entropies(outputs.logits, batch.labels).sum()

    def added_gradients(self, learners: Sequence[SupernetLearner], train: Batch, *, lr: float, seed: int) -> list[Tensor] | None:
        """Gradients by W of losses that do not depend on the architectures."""

    def finish_step(self, learners: Sequence[SupernetLearner], train: Batch) -> None:
        """Further updates after the step."""

    def seen(self, learners: Sequence[SupernetLearner]) -> Sequence[Learner]:
        """The learners as the step passes through them: a method that needs other outputs gives them another network."""
        return learners

    def twice_differentiable(self) -> OneSet:
        return self

    def take(
        self, learners: Sequence[SupernetLearner], train: Batch, valid: Batch, *, lr: float, phase: Phase, drawn: int
    ) -> tuple[StepTensors, list[Tensor] | None]:
        parts, seen = self.parts, self.seen(learners)
        second_order = phase == "search" and self.order == "second"
        added = self.added_gradients(learners, train, lr=lr, seed=drawn)
        exact = None
        if second_order and self.exact:
            exact = exact_bilevel_hypergradient(self, seen, train, valid, lr=lr, seed=drawn, sgd=self.sgd, added=added)
        done = parts.train(seen, train, valid, self, lr=lr, seed=drawn, added=added)
        with torch.no_grad():
            flow = self.flow(done.outputs, train if self.teaches_on == "train" else valid)
        here = self.rows.indices(len(learners))
        taught = torch.stack([done.taught[k] for k in here])
        found = StepTensors(train_loss=torch.stack(done.losses), distill_loss=taught, flow=flow.to(taught.device))
        hypergradient = None
        if phase == "search":
            losses, correct, u, hypergradient = parts.validate(seen, valid, self)
            found = replace(found, valid_loss=torch.stack(losses), valid_accuracy=torch.stack(correct))
            if second_order:
                hypergradient = exact or parts.hypergradient(seen, train, valid, self, done, u, hypergradient)
            for learner, grad in zip(learners, hypergradient, strict=True):
                self.passes.watch.term([grad], "architecture's gradient", learner.number, "the hypergradient")
        if len(self.modules):
            modules, self._momentum, _ = self.sgd.update(self.modules.detach(), self._momentum, done.modules_grad, lr)
            self.modules = modules.requires_grad_()
        for learner, trained in zip(learners, seen, strict=True):
            learner.w, learner.w_momentum = trained.w, trained.w_momentum
        self.finish_step(learners, train)
        return found, hypergradient

    def state(self) -> dict[str, Tensor]:
        return {"modules": self.modules, "modules_momentum": self._momentum}

    def load(self, state: dict[str, Tensor]) -> None:
        self.modules = state["modules"].requires_grad_()
        self._momentum = state["modules_momentum"]


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """logits [K, n, classes], labels [n] -> [K], each learner's mean cross-entropy."""
    return torch.stack([F.cross_entropy(rows, labels) for rows in logits])
