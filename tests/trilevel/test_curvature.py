"""The dominant eigenvalue without a matrix against full Hessians: closed forms, a smooth network (DARTS: tests/spaces/test_supernet.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pamkd.spaces.supernet import Output
from pamkd.trilevel.curvature import architecture_eigenvalue, largest_eigenvalue
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner


@pytest.mark.parametrize("size", [1, 2, 40])
def test_symmetric_matrices(size):
    random = torch.Generator().manual_seed(size)
    matrix = torch.randn(size, size, generator=random, dtype=torch.float64)
    matrix = matrix + matrix.T
    start = torch.randn(size, generator=random, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(matrix)[-1].item()
    assert largest_eigenvalue(lambda v: matrix @ v, start, size) == pytest.approx(exact, rel=1e-7)


def test_negative_and_zero():
    start = torch.ones(3, dtype=torch.float64)
    assert largest_eigenvalue(lambda v: -2 * v, start, 9) == pytest.approx(-2)
    assert largest_eigenvalue(torch.zeros_like, start, 9) == 0.0


class Smooth:
    """Logits of images [n, 6] by two layers, mixed by a softmax of alphas [3]."""

    def forward(self, weights, alphas, images):
        first, second = weights.split([24, 12])
        hidden = images @ first.view(6, 4)
        mix = alphas.softmax(0)
        hidden = mix[0] * hidden.tanh() + mix[1] * hidden.sin() + mix[2] * hidden
        return Output(hidden @ second.view(4, 3), hidden)

    def twice_differentiable(self):
        return self


def test_smooth_network():
    random = torch.Generator().manual_seed(0)
    weights, images = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in (36, (7, 6)))
    batch = Batch(images, torch.randint(0, 3, (7,), generator=random))
    learner = Learner.create(Smooth(), torch.randn(3, generator=random, dtype=torch.float64), weights, weights)
    hessian = torch.autograd.functional.hessian(
        lambda alphas: F.cross_entropy(Smooth().forward(weights, alphas, images).logits, batch.labels), learner.alphas.detach()
    )
    assert architecture_eigenvalue(learner, batch) == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-9)
