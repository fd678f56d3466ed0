"""The step of methods with two weight sets: V, trained alone, teaches W (Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pamkd.methods.method import Method, Phase, StepReport
from pamkd.trilevel.exact import exact_hypergradient
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner, Lesson, Teaching, TriLevelStep


@dataclass
class TwoSets(Method):
    """Stages I to III for K learners. With K = 1 nobody teaches, V has no role, and the step is DARTS's."""

    two_sets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.parts = TriLevelStep(self.passes, self.teaching(), sgd=self.sgd, fd_step=self.fd_step, rows=self.rows)

    def teaching(self) -> Teaching:
        """How V teaches W."""
        raise NotImplementedError

    def step(
        self, learners: Sequence[Learner], train: Batch, valid: Batch, *, lr: float, phase: Phase, seed: int
    ) -> tuple[StepReport, list[Tensor] | None]:
        parts, teaching, rows = self.parts, self.parts.teaching, self.rows
        count, here = rows.count(len(learners)), rows.indices(len(learners))
        mutual = count > 1
        flow = torch.zeros(count, count)
        if phase == "warmup-v":
            losses_v = [parts.train_v(learner, train, lr)[0] for learner in learners]
            return StepReport.of(rows, flow, train_loss_v=losses_v), None

        second_order = phase == "search" and self.order == "second"
        context = teaching.transfer.draw(train if teaching.batch == "train" else valid, seed) if mutual else None
        exact = None
        if second_order and self.exact:
            exact = exact_hypergradient(teaching, learners, train, valid, context, lr=lr, sgd=self.sgd)

        losses_v, losses_teach, students, v_updates, measured, lesson = None, None, [], [], None, None
        if mutual:
            trained = [parts.train_v(learner, train, lr) for learner in learners]
            losses_v, v_updates = [loss for loss, _ in trained], [update for _, update in trained]
            measured = parts.measure(learners, train, valid, context)
            lesson = Lesson.of(measured, context, rows)
            flow = teaching.scrutiny(lesson.losses)
            losses_teach = measured.losses if teaching.batch == "valid" else None
            students = [k for k in range(count) if teaching.weight and bool((flow[k] > 0).any())]

        train_losses, w_updates, taught = [], [], []
        for k, learner in zip(here, learners, strict=True):
            loss, term, update = parts.train_w(k, learner, train, valid, lesson if k in students else None, lr)
            train_losses.append(loss)
            taught.append(term)
            w_updates.append(update)
        numbers = {"train_loss": train_losses, "train_loss_v": losses_v, "valid_loss_v": losses_teach, "distill_loss": taught}
        if phase == "warmup-w":
            return StepReport.of(rows, flow, **numbers), None

        valid_losses, accuracy, u, direct = parts.validate_w(learners, valid)
        report = StepReport.of(rows, flow, **numbers, valid_loss=valid_losses, valid_accuracy=accuracy)
        if not second_order:
            return report, direct
        if exact is not None:
            return report, exact
        hypergradient = parts.hypergradient(learners, train, valid, measured, lesson, students, v_updates, w_updates, u, direct)
        return report, hypergradient.total()
