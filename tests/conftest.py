"""Every test: a fixed seed, uninitialised memory poisoned with NaN, one thread per worker of a parallel run.

Also a two-layer network for tests of steps and methods.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.spaces.supernet import Output
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner

INPUTS, HIDDEN, CLASSES, ROWS = 5, 6, 3, 12


# Without a GPU, Triton kernels run in Triton's interpreter. It must be chosen before anything imports Triton; tests that compile
# kernels do so in processes without this variable.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def reproducible():
    torch.manual_seed(0)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    # Deterministic mode fills every new tensor with NaN (or the largest integer), also those that kernels allocate.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class SmoothNetwork:
    """Smooth, so that finite differences can be trusted: h = a_0 tanh(x W_1) + a_1 sin(2 x W_1), logits h W_2; a = softmax(alphas)."""

    embedding_size = stem_width = HIDDEN
    stem_size, encoder_size = 2 * HIDDEN, INPUTS * HIDDEN
    num_weights = INPUTS * HIDDEN + HIDDEN * CLASSES

    def forward(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Output:
        if weights.dim() == 2:
            return torch.vmap(self.forward, (0, 0, None))(weights, alphas, images)
        first, second = weights.split([INPUTS * HIDDEN, HIDDEN * CLASSES])
        mix = F.softmax(alphas, 0)
        hidden = images.flatten(1) @ first.view(INPUTS, HIDDEN)
        hidden = mix[0] * torch.tanh(hidden) + mix[1] * torch.sin(2 * hidden)
        return Output(hidden @ second.view(HIDDEN, CLASSES), hidden)

    def feature_map(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Tensor:
        return self.forward(weights, alphas, images).embedding[..., None, None]

    def stem_features(self, weights: Tensor, images: Tensor) -> Tensor:
        return torch.tanh(images[:, :2] @ weights[..., : self.stem_size].unflatten(-1, (2, HIDDEN)))

    def stacks_with(self, other: SmoothNetwork) -> bool:
        return type(other) is SmoothNetwork

    def twice_differentiable(self) -> SmoothNetwork:
        return self


@pytest.fixture
def network() -> SmoothNetwork:
    return SmoothNetwork()


@pytest.fixture
def transfer() -> GroupRelativeSimilarity:
    return GroupRelativeSimilarity(epsilon=0.01, group_size=3, pairs=7)


@pytest.fixture
def problem(network, transfer):
    """problem(K) -> learners, training batch, validation batch, drawn groups."""

    def make(count: int, seed: int = 1):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        def batch() -> Batch:
            return Batch(normal(ROWS, INPUTS), torch.randint(0, CLASSES, (ROWS,), generator=random))

        learners = [Learner.create(network, 0.5 * normal(2), *(normal(network.num_weights) for _ in "vw"), k) for k in range(count)]
        for learner in learners:
            learner.v_momentum, learner.w_momentum = 0.1 * normal(network.num_weights), 0.1 * normal(network.num_weights)
        train, valid = batch(), batch()
        return learners, train, valid, transfer.draw(valid, seed)

    return make
