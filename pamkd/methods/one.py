"""On-the-fly native ensemble, "ONE" (Lan et al., NeurIPS 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.methods.method import SupernetLearner
from pamkd.methods.ramp import Ramped
from pamkd.spaces.supernet import Output, Supernet
from pamkd.transfer.divergence import divergence
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner


@dataclass(frozen=True)
class WithStem:
    """A supernet whose embedding is what its stem makes of the images, pooled: [n, width]."""

    network: Supernet

    def forward(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Output:
        return Output(self.network.forward(weights, alphas, images).logits, self.network.stem_features(weights, images))

    def stacks_with(self, other: object) -> bool:
        return isinstance(other, WithStem) and self.network.stacks_with(other.network)

    def twice_differentiable(self) -> WithStem:
        return WithStem(self.network.twice_differentiable())


@dataclass
class One(Ramped):
    """CE_k + CE(z_e) / K + weight r T^2 KL(sg[softmax(z_e / T)] || softmax(z_k / T)), z_e = sum_k g_k z_k.

    The learners are branches over one stem, and g = softmax(relu(BatchNorm(linear(pooled stem)))) [n, K] is a gate, trained with
    W through CE(z_e) alone. Cells cannot be shared: each learner has its own architecture. So the learners' stems begin
    equal, and stay so: they take the sum of all gradients, and gradients are clipped together. r as in OKDDip.
    """

    def start(self, learners: Sequence[SupernetLearner]) -> None:
        self.shared = learners[0].network.stem_size
        stem = self.rows.gather([[learner.w[: self.shared]] for learner in learners])[0][0]
        for learner in learners:
            learner.w = torch.cat([stem, learner.w[self.shared :]])
        count, width = self.rows.count(len(learners)), learners[0].network.stem_width
        random, bound = torch.Generator().manual_seed(self.seed), 1 / math.sqrt(width)
        linear = torch.empty(count * (width + 1), dtype=stem.dtype).uniform_(-bound, bound, generator=random)
        self._set_modules(torch.cat([linear, torch.ones(count).to(linear), torch.zeros(count).to(linear)]).to(stem.device))

    def seen(self, learners: Sequence[SupernetLearner]) -> Sequence[Learner]:
        return [Learner(WithStem(learner.network), **learner.tensors, number=learner.number) for learner in learners]

    def targets(self, outputs: Output, batch: Batch, seed: int) -> Tensor:
        return self._ensemble(outputs).detach()

    def loss(self, outputs: Output, batch: Batch, targets: Tensor) -> Tensor:
        together = F.cross_entropy(self._ensemble(outputs), batch.labels) / len(outputs.logits)
        taught = divergence(targets, outputs.logits, self.temperature)
        return together + self._scale * taught

    def flow(self, outputs: Output, batch: Batch) -> Tensor:
        return self._gate(outputs).mean(0).expand(len(outputs.logits), -1)

    def _ensemble(self, outputs: Output) -> Tensor:
        return torch.einsum("nk,knc->nc", self._gate(outputs), outputs.logits)

    def _gate(self, outputs: Output) -> Tensor:
        count, _, width = outputs.embedding.shape
        linear, bias, scale, shift = self.modules.split([count * width, count, count, count])
        hidden = F.linear(outputs.embedding[0], linear.view(count, width), bias)  # the stems are one
        return F.batch_norm(hidden, None, None, scale, shift, training=True).relu().softmax(1)
