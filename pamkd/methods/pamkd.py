"""Performance-aware mutual knowledge distillation: the paper's method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pamkd.trilevel.exact import exact_hypergradient
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner, TriLevelStep, pairwise_gaps

Phase = Literal["warmup-v", "warmup-w", "search"]
Order = Literal["first", "second"]


@dataclass(frozen=True)
class StepReport:
    """What happened in one step; K entries each, NaN where the phase or K = 1 leaves a number out."""

    train_loss: list[float]  # of W, before its update
    train_loss_v: list[float]  # of V, before its update
    valid_loss: list[float]  # of W'
    valid_accuracy: list[float]  # of W'
    valid_loss_v: list[float]  # of V': who may teach
    distill_loss: list[float]  # lambda * sum_j h(d_kj) G_kj
    flow: list[list[float]]  # h(d_kj): row k was taught by column j with this weight


class Pamkd:
    """Stages I to III for K learners. With K = 1 nobody teaches, V has no role, and the step is DARTS's.

    `order` "first" leaves out all terms of the hypergradient but the direct one (Darts1st); `exact` takes the
    second-order terms by double backward instead of finite differences.
    """

    def __init__(self, step: TriLevelStep, *, order: Order = "second", exact: bool = False) -> None:
        self.parts, self.order, self.exact = step, order, exact

    def step(
        self, learners: Sequence[Learner], train: Batch, valid: Batch, *, lr: float, phase: Phase, seed: int
    ) -> tuple[StepReport, list[Tensor] | None]:
        """Updates V and W of every learner; returns the hypergradient of each architecture in the phase "search"."""
        parts, count = self.parts, len(learners)
        mutual = count > 1
        nothing = [float("nan")] * count
        flow = torch.zeros(count, count)
        if phase == "warmup-v":
            losses_v = [parts.train_v(learner, train, lr)[0].item() for learner in learners]
            return StepReport(nothing, losses_v, nothing, nothing, nothing, nothing, flow.tolist()), None

        second_order = phase == "search" and self.order == "second"
        context = parts.transfer.draw(len(valid.labels), seed, valid.images.device) if mutual else None
        exact = None
        if second_order and self.exact:
            exact = exact_hypergradient(parts.transfer, learners, train, valid, context, lr=lr, weight=parts.weight, sgd=parts.sgd)

        losses_v, valid_v, students, v_updates, measured = nothing, nothing, [], [], None
        if mutual:
            trained = [parts.train_v(learner, train, lr) for learner in learners]
            losses_v, v_updates = [loss.item() for loss, _ in trained], [update for _, update in trained]
            measured = parts.measure(learners, valid, context)
            losses = torch.stack([loss.detach() for loss in measured.losses])
            published = torch.stack([p.detach() for p in measured.published])
            valid_v, flow = losses.tolist(), pairwise_gaps(losses)
            students = [k for k in range(count) if parts.weight and bool((flow[k] > 0).any())]

        train_losses, w_updates, taught = [], [], [0.0] * count
        for k, learner in enumerate(learners):
            distillation = None
            if k in students:

                def distillation(w: Tensor, k=k, learner=learner) -> Tensor:
                    term = parts.distillation(k, learner, w, valid, losses, published, context, "w_valid_student")
                    taught[k] = term.item()
                    return term

            loss, update = parts.train_w(learner, train, lr, distillation)
            train_losses.append(loss.item())
            w_updates.append(update)

        if phase == "warmup-w":
            return StepReport(train_losses, losses_v, nothing, nothing, valid_v, taught, flow.tolist()), None
        valid_losses, accuracy, u, direct = parts.validate_w(learners, valid)
        report = StepReport(
            train_losses,
            losses_v,
            [loss.item() for loss in valid_losses],
            [value.item() for value in accuracy],
            valid_v,
            taught,
            flow.tolist(),
        )
        if not second_order:
            return report, direct
        if exact is not None:
            return report, exact
        hypergradient = parts.hypergradient(learners, train, valid, measured, students, v_updates, w_updates, u, direct, context)
        return report, hypergradient.total()
