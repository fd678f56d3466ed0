"""PR-DARTS against the numbers of the published code: weight count, gates, regulariser, genotype."""

from __future__ import annotations

import pytest
import torch

from pamkd.spaces.prdarts import OPERATIONS, PrDarts, derive_pairs, probability, regulariser
from pamkd.spaces.supernet import Moment

NORMAL = "47 14 45 36 45 07 67 24 07 17 23 03 12 36"
REDUCE = "46 12 12 03 25 14 47 14 56 47 05 06 07 35"


@pytest.fixture
def betas(published_alphas):
    return torch.stack([published_alphas((14, 8), offset) for offset in (0, 1000)])


@pytest.fixture
def small():
    """The smallest supernet, weights, architecture and images, float64."""
    supernet = PrDarts(cells=3, channels=2)
    random = torch.Generator().manual_seed(0)
    weights, betas = supernet.init_weights(random).double(), supernet.init_alphas(random).double()
    return supernet, weights, betas, torch.randn(2, 3, 8, 8, generator=random, dtype=torch.float64)


def test_weight_count():
    supernet = PrDarts(cells=6)
    assert supernet.layout.count == 1_323_002
    assert [i for i, cell in enumerate(supernet.cells) if cell.spec.reduction] == [2, 4]


def test_logits(betas, filled, published_input, monkeypatch):
    """From the published code, run with these weights and the two strongest operations of each edge: nine cells, three in a block."""
    supernet = PrDarts(channels=8, cells=9, classes=7)
    selected = torch.zeros_like(betas).scatter_(-1, betas.topk(2, -1).indices, 1.0)
    monkeypatch.setattr(supernet, "sample", lambda betas: tuple(selected))
    logits = supernet.forward(filled(supernet), betas, published_input((2, 3, 32, 32))).logits
    assert supernet.layout.count == 615_071
    assert [logits.norm().item(), *logits[0, :3].tolist()] == pytest.approx([1.56706170, -0.71219210, -0.08864091, 0.32804752], abs=2e-8)


def test_genotype(betas, genes):
    genotype = PrDarts(cells=3, channels=2).genotype(betas)
    assert genotype.normal == genes("mp:0 sk:1 d5:0 ap:1 mp:1 s3:2 sk:3 ap:4")
    assert genotype.reduce == genes("sk:1 ap:0 s3:0 s3:2 ap:3 sk:2 mp:0 ap:2")


def test_both_operations_may_lie_on_one_edge():
    mix = [[0.0] * 8 for _ in range(14)]
    mix[0][1], mix[0][2], mix[1][0] = 0.4, 0.5, 0.9
    assert derive_pairs(mix, (OPERATIONS,) * 14)[:2] == (("sep_conv_3x3", 0), ("skip_connect", 0))


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.0108158315), (0.5, 0.0099657596), (0.1, 0.0076788202)])
def test_regulariser(betas, temperature, value):
    selected = torch.zeros_like(betas).scatter_(-1, betas.topk(2, -1).indices, 1.0)
    shown = [" ".join("".join(str(o) for o in row.nonzero().flatten().tolist()) for row in cell) for cell in selected]
    assert shown == [NORMAL, REDUCE]
    assert regulariser(betas, selected, temperature).item() == pytest.approx(value, abs=1e-9)


def test_regulariser_without_convolutions_on_the_path():
    betas, selected = torch.zeros(2, 14, 8), torch.zeros(2, 14, 8)
    selected[..., [6, 7]] = 1.0
    theta = probability(torch.zeros(()), 1.0).item()
    assert regulariser(betas, selected, 1.0).item() == pytest.approx(0.005 * (theta - 0.2))


def test_mean_probabilities(betas):
    found = [probability(cell, 1.0).mean().item() for cell in betas]
    assert found == pytest.approx([0.9097589294, 0.9105190816], abs=1e-9)


def test_temperature_falls_along_a_line():
    supernet = PrDarts(cells=3, channels=2)
    assert [supernet.at(Moment(epoch, 200)).temperature for epoch in (0, 199)] == pytest.approx([1.0, 0.1])


class TestGates:
    def test_two_operations_are_active_with_weight_one(self, betas):
        supernet = PrDarts(cells=3, channels=2).at(Moment(3, 10, seed=5))
        for mix in supernet.sample(betas):
            assert mix.ne(0).sum(-1).eq(2).all() and torch.allclose(mix[mix != 0], torch.ones(28, dtype=mix.dtype))

    def test_distribution(self):
        """P(g != 0) = Theta(beta), and at tau = 0.1 nearly all gates are 0 or 1."""
        supernet, betas = PrDarts(cells=3, channels=2), torch.linspace(-3, 3, 14)[None, :, None].expand(2, 14, 8)
        values = torch.stack([supernet.at(Moment(0, 10, seed)).gates(betas).values for seed in range(400)])
        torch.testing.assert_close(values.gt(0).float().mean((0, 1, 3)), probability(betas[0, :, 0], 1.0), atol=0.02, rtol=0)

    def test_straight_through(self, betas):
        supernet = PrDarts(cells=3, channels=2).at(Moment(0, 10, seed=1))
        betas.requires_grad_()
        (grad,) = torch.autograd.grad(sum(mix.sum() for mix in supernet.sample(betas)), betas)
        gates = supernet.gates(betas)
        inside = (gates.values > 0) & (gates.values < 1) & gates.selected.bool()
        assert inside.any() and torch.equal(grad.ne(0), inside)

    def test_every_pass_of_a_step_has_the_same(self, betas):
        supernet = PrDarts(cells=3, channels=2)
        one, same, other = (supernet.at(Moment(0, 10, seed)).sample(betas)[0] for seed in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_only_active_operations_are_computed_and_nothing_else_changes(small, drop_path):
    supernet, weights, betas, images = small
    supernet.drop_path = drop_path
    at = supernet.at(Moment(2, 10, seed=3))
    whole = at.at(at.moment)
    whole._cell = super(PrDarts, whole)._cell  # all eight operations, six of them with weight 0
    weights.requires_grad_(), betas.requires_grad_()
    results = []
    for network in (at, whole, at.twice_differentiable()):
        logits = network.forward(weights, betas, images).logits
        results.append([logits, *torch.autograd.grad(logits.square().sum(), (weights, betas))])
    for other in results[1:]:
        for ours, exact in zip(results[0], other, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
    supernet.drop_path = 0.0
    assert torch.equal(results[0][0], supernet.at(at.moment).forward(weights, betas, images).logits) == (drop_path == 0)
