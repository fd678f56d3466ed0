"""Feature-map-level online adversarial knowledge distillation, "AFD" (Chung et al., ICML 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.methods.method import SupernetLearner
from pamkd.methods.one_set import OneSet
from pamkd.spaces.layout import Layout
from pamkd.spaces.supernet import Output
from pamkd.transfer.divergence import divergence
from pamkd.trilevel.passes import Batch


@dataclass
class Adam:
    """Adam on a flat vector (betas 0.9, 0.999), weight decay added to the gradient."""

    first: Tensor
    second: Tensor
    steps: Tensor

    @classmethod
    def like(cls, weights: Tensor) -> Adam:
        return cls(torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros(()))

    def update(self, weights: Tensor, grad: Tensor, lr: float, decay: float) -> Tensor:
        grad = grad + decay * weights
        self.steps = self.steps + 1
        self.first = 0.9 * self.first + 0.1 * grad
        self.second = 0.999 * self.second + 0.001 * grad.square()
        step = self.steps.item()
        scale = (self.second / (1 - 0.999**step)).sqrt() + 1e-8
        return weights - lr / (1 - 0.9**step) * self.first / scale


@dataclass
class Afd(OneSet):
    """CE_k + weight T^2 KL(sg[softmax(z_j / T)] || softmax(z_k / T)), j the learner before k in a circle; then, each step anew,

        D_k minimises (1 - D_k(map_j))^2 + D_k(map_k)^2,   the encoder of W_k minimises (1 - D_k(map_k))^2

    with D_k a small convolutional network on the last feature map, both by Adam. These updates follow the step, so the
    hypergradient does not contain them. No code of the authors exists: T, the network and the rates are from descriptions.
    `adversarial_lr` falls to a tenth after a quarter of the epochs and again after half.
    """

    temperature: float = 3.0
    weight: float = 1.0
    adversarial_lr: float = 2e-5
    adversarial_decay: float = 0.1

    learners = (2, math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lr = self.adversarial_lr
        self._judges: list[Tensor] = []  # flat weights of D_k
        self._judge_adam: list[Adam] = []
        self._encoder_adam: list[Adam] = []

    def start(self, learners: Sequence[SupernetLearner]) -> None:
        self._judges, self._judge_adam = [], []  # made from the first feature map
        self._encoder_adam = [Adam.like(learner.w[: learner.network.encoder_size]) for learner in learners]

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self._lr = self.adversarial_lr * 0.1 ** sum(epoch >= share * epochs for share in (0.25, 0.5))

    def targets(self, outputs: Output, batch: Batch, seed: int) -> Tensor:
        return outputs.logits.roll(1, 0)

    def loss(self, outputs: Output, batch: Batch, targets: Tensor) -> Tensor:
        return self.weight * self.temperature**2 * divergence(targets, outputs.logits, self.temperature)

    def flow(self, outputs: Output, batch: Batch) -> Tensor:
        return torch.eye(len(outputs.logits)).roll(-1, 1)

    def finish_step(self, learners: Sequence[SupernetLearner], train: Batch) -> None:
        encoders, maps = [], []
        for learner in learners:
            self.passes.forwards["adversarial"] += 1
            encoders.append(learner.w.detach()[: learner.network.encoder_size].requires_grad_())
            weights = torch.cat([encoders[-1], learner.w[len(encoders[-1]) :]])
            maps.append(learner.network.feature_map(weights, learner.alphas.detach(), train.images))
        layout = judge_layout(maps[0])
        here = self.rows.indices(len(learners))
        (everybody,) = self.rows.gather([[features.detach()] for features in maps])
        if not self._judges:
            self._judges = [self._fresh_judge(layout, k).to(maps[0]) for k in here]
            self._judge_adam = [Adam.like(judge) for judge in self._judges]
        for i, (k, learner) in enumerate(zip(here, learners, strict=True)):
            judge = self._judges[i].detach().requires_grad_()
            real, fake = judgement(judge, layout, everybody[k - 1]), judgement(judge, layout, everybody[k])
            (grad,) = torch.autograd.grad(((1 - real).square() + fake.square()).mean(), judge)
            self._judges[i] = self._judge_adam[i].update(self._judges[i], grad, self._lr, self.adversarial_decay)
            loss = (1 - judgement(self._judges[i], layout, maps[i])).square().mean()
            ((grad,),) = self.passes.backward("adversarial", [learner], [[loss]], [[encoders[i]]])
            encoder = self._encoder_adam[i].update(encoders[i].detach(), grad, self._lr, self.adversarial_decay)
            learner.w = torch.cat([encoder, learner.w[len(encoder) :]])

    def _fresh_judge(self, layout: Layout, k: int) -> Tensor:
        flat, random = torch.zeros(layout.size), torch.Generator().manual_seed(self.seed + k)
        for name, value in layout.views(flat).items():
            if name == "norm.weight":
                value.fill_(1.0)
            elif name.startswith("conv") and name.endswith("weight"):
                bound = 1 / math.sqrt(math.prod(value.shape[1:]))
                value.uniform_(-bound, bound, generator=random)
        return flat

    def state(self) -> dict[str, Tensor]:
        state, here = super().state(), self.rows.indices(len(self._encoder_adam))
        for name, adams in (("judge_adam", self._judge_adam), ("encoder_adam", self._encoder_adam)):
            state |= {f"{name}.{k}.{part}": value for k, adam in zip(here, adams, strict=False) for part, value in vars(adam).items()}
        return state | {f"judge.{k}": judge for k, judge in zip(here, self._judges, strict=False)}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        here = self.rows.indices(len(self._encoder_adam))
        there = here if "judge.0" in state else ()
        parts = ("first", "second", "steps")
        self._judges = [state[f"judge.{k}"] for k in there]
        self._judge_adam = [Adam(*(state[f"judge_adam.{k}.{part}"] for part in parts)) for k in there]
        self._encoder_adam = [Adam(*(state[f"encoder_adam.{k}.{part}"] for part in parts)) for k in here]


def judge_layout(maps: Tensor) -> Layout:
    """A discriminator's weights for maps [n, c, h, w]: conv 2x2, BatchNorm, leaky relu, conv 2x2 of stride 2; 1x1 on smaller maps."""
    channels, side = maps.shape[1], min(maps.shape[2:])
    first = min(2, side)
    second = min(2, side - first + 1)
    half = max(1, channels // 2)
    shapes = [("conv1.weight", (half, channels, first, first)), ("norm.weight", (half,)), ("norm.bias", (half,))]
    return Layout([*shapes, ("conv2.weight", (1, half, second, second)), ("conv2.bias", (1,))])


def judgement(weights: Tensor, layout: Layout, maps: Tensor) -> Tensor:
    """maps [n, c, h, w] -> [n], near 1 for maps of the other learner; a mean of sigmoids over places."""
    views = layout.views(weights)
    hidden = F.conv2d(maps, views["conv1.weight"])
    hidden = F.leaky_relu(F.batch_norm(hidden, None, None, views["norm.weight"], views["norm.bias"], training=True), 0.2)
    return F.conv2d(hidden, views["conv2.weight"], views["conv2.bias"], stride=2).sigmoid().mean((1, 2, 3))
