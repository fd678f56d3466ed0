"""One teacher out of several learners: the four rules of KDCL (Guo et al., CVPR 2020)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.spaces.supernet import Output
from pamkd.transfer.divergence import divergence
from pamkd.trilevel.passes import Batch

Rule = Literal["naive", "linear", "minlogit", "general"]


def ensemble(rule: Rule, logits: Tensor, labels: Tensor, weights: Tensor | None = None, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The teacher's logits z_t [n, classes] of learners' logits [K, n, classes], and each learner's part in it [K].

    naive     z_t = z_k of the learner with the smallest cross-entropy, for each image by itself
    linear    z_t = sum_k a_k z_k, a = argmin over the simplex of the batch's CE(z_t, labels); a is a constant
    minlogit  z_tj = min_k (z_kj - z_kc), c the label
    general   softmax(z_t / T) = sum_k w_k softmax(z_k / T), w from `covariance_weights` (None: equal)
    """
    count = len(logits)
    if rule == "naive":
        losses = torch.stack([F.cross_entropy(rows, labels, reduction="none") for rows in logits])
        best = losses.argmin(0)
        return logits[best, torch.arange(len(labels), device=best.device)], F.one_hot(best, count).to(logits).mean(0)
    if rule == "linear":
        shares = simplex_weights(logits.detach(), labels)
        return torch.einsum("k,knc->nc", shares, logits), shares
    if rule == "minlogit":
        lowest = (logits - logits.gather(2, labels.expand(count, -1)[..., None])).min(0)
        others = 1 - F.one_hot(labels, logits.shape[2])
        chosen = F.one_hot(lowest.indices, count) * others[..., None]
        return lowest.values, chosen.sum((0, 1)).to(logits) / (len(labels) * (logits.shape[2] - 1))
    weights = logits.new_full((count,), 1 / count) if weights is None else weights.to(logits)
    mixed = torch.logsumexp(weights.log()[:, None, None] + (logits / temperature).log_softmax(2), 0)  # finite where softmax is 0
    return temperature * mixed, weights


def simplex_weights(logits: Tensor, labels: Tensor, *, rounds: int = 20, halvings: int = 40) -> Tensor:
    """argmin of CE(sum_k a_k z_k, labels) over a >= 0, sum a = 1. logits [K, n, classes] -> a [K].

    Convex: mass is moved between two learners at a time, by bisection of the derivative, until nothing moves.
    """
    shares = logits.new_full((len(logits),), 1 / len(logits))
    for _ in range(rounds):
        before = shares.clone()
        for i, j in itertools.combinations(range(len(logits)), 2):
            mass = shares[i] + shares[j]
            rest = torch.einsum("k,knc->nc", shares, logits) - shares[i] * logits[i] - shares[j] * logits[j]
            step = logits[i] - logits[j]
            low, high = torch.zeros_like(mass), mass
            for _ in range(halvings):
                middle = (low + high) / 2
                error = (rest + mass * logits[j] + middle * step).softmax(1)
                slope = ((error * step).sum(1) - step.gather(1, labels[:, None])[:, 0]).sum()
                low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
            shares[i], shares[j] = (low + high) / 2, mass - (low + high) / 2
        if len(logits) == 2 or (shares - before).abs().max() < 1e-6:
            break
    return shares


@torch.no_grad()
def covariance_weights(batches: Iterable[tuple[Tensor, Tensor]], *, ridge: float = 1e-6) -> Tensor:
    """argmin of w^T C w with sum w = 1, C_ij = mean <f_i - t, f_j - t>, f = softmax(logits), t one-hot: the rows of C^-1 summed.

    `batches` yields logits [K, n, classes] and labels [n]. Negative weights become 0, the others sum to 1. C + ridge I is inverted.
    """
    total, images = torch.zeros((), dtype=torch.float64), 0
    for logits, labels in batches:
        error = (logits.double().softmax(2) - F.one_hot(labels, logits.shape[2])).flatten(1)
        total, images = total + error @ error.T, images + len(labels)
    covariance = total / images
    rows = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)).sum(1)
    weights = (rows / rows.sum()).clamp(min=0)
    return weights / weights.sum()


@dataclass
class Ensemble:
    """T^2 KL(softmax(z_t / T) || softmax(z(x; W_k) / T)), z_t the `rule`'s teacher out of all V_j, V_k among them: the same for each j."""

    rule: Rule = "minlogit"
    temperature: float = 2.0
    shares: Tensor | None = None  # of "general"

    def draw(self, batch: Batch, seed: int) -> Tensor:
        """The labels: the rules need them."""
        return batch.labels

    def publish(self, output: Output, weights: Tensor, context: Tensor) -> Tensor:
        """[n, classes]."""
        return output.logits

    def loss(self, published: Tensor, output: Output, weights: Tensor, context: Tensor) -> Tensor:
        """published [K, n, classes] -> [K], K times the same."""
        teacher, _ = ensemble(self.rule, published, context, self.shares, self.temperature)
        return (self.temperature**2 * divergence(teacher, output.logits, self.temperature)).expand(len(published))

    def twice_differentiable(self) -> Ensemble:
        return self
