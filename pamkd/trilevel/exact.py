"""The same hypergradients without finite differences: double backward through the unrolled updates.

The oracle of both schedules in tests, and `--hypergradient exact` for those who want it. Clipping coefficients count as
constants, as in the schedules. Costs the memory of the updates' graphs, for all learners at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.spaces.supernet import Output
from pamkd.trilevel.bilevel import Exchange, norms, tied
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.sgd import SGD
from pamkd.trilevel.step import Learner, Teaching


def exact_hypergradient(
    teaching: Teaching, learners: Sequence[Learner], train: Batch, valid: Batch, context: Any, *, lr: float, sgd: SGD
) -> list[Tensor]:
    """dJ/dA_k of the tri-level step, at learners that have not yet taken this step's updates."""
    loss_of, transfer = _losses(learners), teaching.transfer.twice_differentiable()
    batch = train if teaching.batch == "train" else valid
    losses, published = [], []
    for k, learner in enumerate(learners if len(learners) > 1 else []):
        v = learner.v.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(k, v, train)[0], v, create_graph=True)
        v, _, _ = sgd.update(v, learner.v_momentum, grad, lr)
        loss, output = loss_of(k, v, batch)
        losses.append(loss)
        published.append(transfer.publish(output, v, context))
    shares = teaching.scrutiny(torch.stack(losses)) if losses else torch.empty(0)
    finals = []
    for k, learner in enumerate(learners):
        w = learner.w.detach().requires_grad_()
        stage_two = loss_of(k, w, train)[0]
        if losses and teaching.weight and bool((shares[k] > 0).any()):
            _, output = loss_of(k, w, batch)
            stage_two = stage_two + teaching.weight * (shares[k] * transfer.loss(torch.stack(published), output, w, context)).sum()
        (grad,) = torch.autograd.grad(stage_two, w, create_graph=True)
        w, _, _ = sgd.update(w, learner.w_momentum, grad, lr)
        finals.append(loss_of(k, w, valid)[0])
    return list(torch.autograd.grad(sum(finals[1:], finals[0]), [learner.alphas for learner in learners]))


def exact_bilevel_hypergradient(
    exchange: Exchange,
    learners: Sequence[Learner],
    train: Batch,
    valid: Batch,
    *,
    lr: float,
    seed: int,
    sgd: SGD,
    added: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """dJ/dA_k of the step with one weight set, at learners that have not yet taken this step's update."""
    loss_of, exchange = _losses(learners), exchange.twice_differentiable()
    batch = train if exchange.teaches_on == "train" else valid
    weights = [learner.w.detach().requires_grad_() for learner in learners]
    total = sum(loss_of(k, w, train)[0] for k, w in enumerate(weights))
    outputs = _stack([loss_of(k, w, batch)[1] for k, w in enumerate(weights)])
    targets = exchange.targets(type(outputs)(*(part.detach() for part in outputs)), batch, seed)
    total = total + exchange.loss(outputs, batch, targets).sum()
    grads = list(torch.autograd.grad(total, weights, create_graph=True))
    if added is not None:
        grads = [grad + more for grad, more in zip(grads, added, strict=True)]
    grads = tied(grads, exchange.shared)
    trained = [
        sgd.update(w, learner.w_momentum, grad, lr, norm=norm)[0]
        for w, learner, grad, norm in zip(weights, learners, grads, norms(grads, exchange.shared), strict=True)
    ]
    outputs = _stack([loss_of(k, w, valid)[1] for k, w in enumerate(trained)])
    return list(torch.autograd.grad(exchange.objective(outputs, valid), [learner.alphas for learner in learners]))


def _losses(learners: Sequence[Learner]) -> Callable[[int, Tensor, Batch], tuple[Tensor, Output]]:
    """(k, weights, batch) -> cross-entropy and output of learner k's network, in a form that can be differentiated twice."""
    networks = [learner.network.twice_differentiable() for learner in learners]

    def loss_of(k: int, weights: Tensor, batch: Batch) -> tuple[Tensor, Output]:
        output = networks[k].forward(weights, learners[k].alphas, batch.images)
        return F.cross_entropy(output.logits, batch.labels), output

    return loss_of


def _stack(outputs: Sequence[Output]) -> Output:
    return type(outputs[0])(*(torch.stack(parts) for parts in zip(*outputs, strict=True)))
