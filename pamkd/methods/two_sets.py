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
        self.parts = TriLevelStep(self.passes, self.teaching(), sgd=self.sgd, fd_step=self.fd_step)

    def teaching(self) -> Teaching:
        """How V teaches W."""
        raise NotImplementedError

    def step(
        self, learners: Sequence[Learner], train: Batch, valid: Batch, *, lr: float, phase: Phase, seed: int
    ) -> tuple[StepReport, list[Tensor] | None]:
        parts, teaching, count = self.parts, self.parts.teaching, len(learners)
        mutual = count > 1
        nothing = [float("nan")] * count
        flow = torch.zeros(count, count)
        if phase == "warmup-v":
            losses_v = [parts.train_v(learner, train, lr)[0].item() for learner in learners]
            return StepReport(nothing, losses_v, nothing, nothing, nothing, nothing, flow.tolist()), None

        second_order = phase == "search" and self.order == "second"
        context = teaching.transfer.draw(train if teaching.batch == "train" else valid, seed) if mutual else None
        exact = None
        if second_order and self.exact:
            exact = exact_hypergradient(teaching, learners, train, valid, context, lr=lr, sgd=self.sgd)

        losses_v, losses_teach, students, v_updates, measured, lesson = nothing, nothing, [], [], None, None
        if mutual:
            trained = [parts.train_v(learner, train, lr) for learner in learners]
            losses_v, v_updates = [loss.item() for loss, _ in trained], [update for _, update in trained]
            measured = parts.measure(learners, train, valid, context)
            lesson = Lesson.of(measured, context)
            losses_teach, flow = lesson.losses.tolist(), teaching.scrutiny(lesson.losses)
            students = [k for k in range(count) if teaching.weight and bool((flow[k] > 0).any())]

        train_losses, w_updates, taught = [], [], []
        for k, learner in enumerate(learners):
            loss, term, update = parts.train_w(k, learner, train, valid, lesson if k in students else None, lr)
            train_losses.append(loss.item())
            taught.append(term.item())
            w_updates.append(update)
        losses_teach = losses_teach if teaching.batch == "valid" else nothing

        if phase == "warmup-w":
            return StepReport(train_losses, losses_v, nothing, nothing, losses_teach, taught, flow.tolist()), None
        valid_losses, accuracy, u, direct = parts.validate_w(learners, valid)
        report = StepReport(
            train_losses,
            losses_v,
            [loss.item() for loss in valid_losses],
            [value.item() for value in accuracy],
            losses_teach,
            taught,
            flow.tolist(),
        )
        if not second_order:
            return report, direct
        if exact is not None:
            return report, exact
        hypergradient = parts.hypergradient(learners, train, valid, measured, lesson, students, v_updates, w_updates, u, direct)
        return report, hypergradient.total()
