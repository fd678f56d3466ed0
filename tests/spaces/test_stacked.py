"""Several weight sets in one call of a supernet are that many supernets."""

from __future__ import annotations

import itertools

import pytest
import torch

from pamkd.spaces import SPACES
from pamkd.spaces.supernet import Moment

DRAWING = ("drnas", "drnas-nasbench201", "pdarts", "prdarts", "s4")
# Space, over eager cells, weight sets, an own batch for each: all of darts, and every space whose passes draw nothing.
CASES = [
    *itertools.product(["darts"], [False, True], [1, 3], [False, True]),
    *((name, False, 3, False) for name in SPACES if name not in ("darts", *DRAWING)),
]


def derivatives(outputs, inputs):
    """Gradients of a sum in which all values of all outputs have weights of their own."""
    return torch.autograd.grad(sum((torch.sin(torch.arange(x.numel())).view(x.shape) * x).sum() for x in outputs), inputs)


@pytest.mark.parametrize(("name", "eager", "sets", "own_images"), CASES)
def test_weight_sets_in_one_call(name, eager, sets, own_images):
    random = torch.Generator().manual_seed(0)
    supernet = SPACES[name](channels=4, cells=3, classes=3, image_channels=2).at(Moment(1, 3))
    supernet = supernet.twice_differentiable() if eager else supernet
    weights, alphas = (
        torch.stack([make(random).double() for _ in range(sets)]).requires_grad_() for make in (supernet.init_weights, supernet.init_alphas)
    )
    images = torch.randn(*([sets] if own_images else []), 3, 2, 8, 12, generator=random, dtype=torch.float64)
    outputs = supernet.forward(weights, alphas, images)
    each = [supernet.forward(w, a, images[m] if own_images else images) for m, (w, a) in enumerate(zip(weights, alphas, strict=True))]
    alone = [torch.stack(parts) for parts in zip(*each, strict=True)]
    torch.testing.assert_close(list(outputs), alone, rtol=1e-12, atol=1e-12)
    inputs = [weights, alphas]
    torch.testing.assert_close(derivatives(outputs, inputs), derivatives(alone, inputs), rtol=1e-12, atol=1e-12)


def test_stems_of_weight_sets():
    supernet, random = SPACES["darts"](channels=4, cells=3), torch.Generator().manual_seed(0)
    weights, images = torch.stack([supernet.init_weights(random) for _ in "12"]), torch.randn(3, 3, 8, 8, generator=random)
    alone = torch.stack([supernet.stem_features(w, images) for w in weights])
    torch.testing.assert_close(supernet.stem_features(weights, images), alone, rtol=1e-5, atol=1e-6)


def test_spaces_that_draw_do_not_stack():
    assert [name for name in SPACES if not (supernet := SPACES[name](channels=12, cells=4)).stacks_with(supernet)] == list(DRAWING)
