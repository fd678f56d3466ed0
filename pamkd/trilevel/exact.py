"""The same hypergradient without finite differences: double backward through both unrolled updates.

The oracle of the schedule in tests, and `--hypergradient exact` for those who want it. Clipping coefficients count as
constants, as in the schedule. Costs the memory of both updates' graphs, for all learners at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.trilevel.passes import Batch
from pamkd.trilevel.sgd import SGD
from pamkd.trilevel.step import Learner, Transfer, pairwise_gaps


def exact_hypergradient(
    transfer: Transfer,
    learners: Sequence[Learner],
    train: Batch,
    valid: Batch,
    context: Any,
    *,
    lr: float,
    weight: float,
    sgd: SGD,
) -> list[Tensor]:
    """dJ/dA_k for every learner, at learners that have not yet taken this step's updates."""
    transfer = transfer.twice_differentiable()
    networks = [learner.network.twice_differentiable() for learner in learners]

    def loss_of(k: int, weights: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        output = networks[k].forward(weights, learners[k].alphas, batch.images)
        return F.cross_entropy(output.logits, batch.labels), output

    losses, published = [], []
    for k, learner in enumerate(learners):
        v = learner.v.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(k, v, train)[0], v, create_graph=True)
        v, _, _ = sgd.update(v, learner.v_momentum, grad, lr)
        loss, output = loss_of(k, v, valid)
        losses.append(loss)
        published.append(transfer.publish(output, context))
    gaps = pairwise_gaps(torch.stack(losses))
    objective = 0.0
    for k, learner in enumerate(learners):
        w = learner.w.detach().requires_grad_()
        stage_two = loss_of(k, w, train)[0]
        if weight and bool((gaps[k] > 0).any()):
            _, output = loss_of(k, w, valid)
            stage_two = stage_two + weight * (gaps[k] * transfer.loss(torch.stack(published), output, context)).sum()
        (grad,) = torch.autograd.grad(stage_two, w, create_graph=True)
        w, _, _ = sgd.update(w, learner.w_momentum, grad, lr)
        objective = objective + loss_of(k, w, valid)[0]
    return list(torch.autograd.grad(objective, [learner.alphas for learner in learners]))
