"""The step of methods with two weight sets: V, trained alone, teaches W (Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pamkd.methods.method import Method, Phase, StepTensors, SupernetLearner
from pamkd.trilevel.exact import exact_hypergradient
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Lesson, Measurement, Teaching, TriLevelStep, Update


@dataclass
class TwoSets(Method):
    """Stages I to III for K learners. With K = 1 nobody teaches, V has no role, and the step is DARTS's."""

    two_sets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.parts = TriLevelStep(self.passes, self.teaching(), sgd=self.sgd, fd_step=self.fd_step, rows=self.rows)

    def teaching(self) -> Teaching:
        """How V teaches W."""
        raise NotImplementedError

    def draw(self, train: Batch, valid: Batch, *, phase: Phase, learners: int, seed: int) -> Any:
        """The transfer's draws for the batch on which V teaches."""
        if phase == "warmup-v" or learners == 1:
            return None
        teaching = self.parts.teaching
        return teaching.transfer.draw(train if teaching.batch == "train" else valid, seed)

    def take(
        self, learners: Sequence[SupernetLearner], train: Batch, valid: Batch, *, lr: float, phase: Phase, drawn: Any
    ) -> tuple[StepTensors, list[Tensor] | None]:
        parts, teaching, rows = self.parts, self.parts.teaching, self.rows
        mutual = rows.count(len(learners)) > 1
        if phase == "warmup-v":
            return StepTensors(train_loss_v=torch.stack(parts.train_v(learners, train, lr)[0])), None

        second_order = phase == "search" and self.order == "second"
        exact = None
        if second_order and self.exact:
            exact = exact_hypergradient(teaching, learners, train, valid, drawn, lr=lr, sgd=self.sgd)

        students: list[int] = []
        v_updates: list[Update] = []
        measured: Measurement | None = None
        lesson: Lesson | None = None
        of_v: dict[str, Tensor] = {}
        if mutual:
            losses, v_updates = parts.train_v(learners, train, lr)
            measured = parts.measure(learners, train, valid, drawn)
            lesson = Lesson.of(measured, drawn, rows)
            flow = teaching.scrutiny(lesson.losses)
            students = self._students(flow)
            of_v = {"train_loss_v": torch.stack(losses), "flow": flow}
            if teaching.batch == "valid":
                of_v["valid_loss_v"] = torch.stack([loss.detach() for loss in measured.losses])

        losses, taught, w_updates = parts.train_w(learners, train, valid, lesson, students, lr)
        found = StepTensors(train_loss=torch.stack(losses), distill_loss=torch.stack(taught), **of_v)
        if phase == "warmup-w":
            return found, None
        losses, accuracy, u, direct = parts.validate_w(learners, valid)
        found = replace(found, valid_loss=torch.stack(losses), valid_accuracy=torch.stack(accuracy))
        if not second_order:
            return found, direct
        if exact is not None:
            return found, exact
        hypergradient = parts.hypergradient(learners, train, valid, measured, lesson, students, v_updates, w_updates, u, direct)
        for name, terms in vars(hypergradient).items():
            for learner, term in zip(learners, terms, strict=False):  # a term is empty where nobody was taught
                self.passes.watch.term([term], name, learner.number, "the hypergradient")
        return found, hypergradient.total()

    def _students(self, flow: Tensor) -> list[int]:
        """The learners that somebody teaches; with static passes all, whose teachers may then have weights of zero."""
        if not self.parts.teaching.weight:
            return []
        if self.passes.static:
            return list(range(len(flow)))
        return [k for k, taught in enumerate((flow > 0).any(1).tolist()) if taught]
