"""S1 to S4, DARTS- and PC-DARTS against the numbers of the published codes: weight counts, logits, genotypes, schedules."""

from __future__ import annotations

import pytest
import torch

from pamkd.reference.mixed_cell import channel_shuffle
from pamkd.spaces import SPACES
from pamkd.spaces.pcdarts import edge_weights
from pamkd.spaces.supernet import Moment

COUNTS = [
    ("s1", {}, 405_146),
    ("s2", {}, 665_466),
    ("s3", {}, 665_466),
    ("s4", {}, 624_506),
    ("s1", {"classes": 100}, 405_146 + 23_130),
    ("darts-minus", {"space": "s1"}, 446_106),
    ("darts-minus", {"space": "s2"}, 706_426),
    ("darts-minus", {"space": "s3"}, 706_426),
    ("darts-minus", {"space": "s4"}, 665_466),
    ("darts-minus", {}, 1_971_578),
    ("s4", {"channels": 8, "cells": 5, "classes": 7}, 114_335),
    ("darts-minus", {"space": "s4", "channels": 8, "cells": 5, "classes": 7}, 124_575),
    ("pcdarts", {}, 299_578),
    ("pcdarts", {"classes": 100}, 322_708),
    ("pcdarts", {"classes": 1000, "partial": 2, "stem": "imagenet"}, 956_512),
]


@pytest.mark.parametrize(("space", "options", "weights"), COUNTS, ids=str)
def test_weight_counts(space, options, weights):
    assert SPACES[space](**options).layout.count == weights


@pytest.fixture
def alphas_of(published_alphas):
    """alphas_of(columns) -> [2, 14, columns] by the published rule."""
    return lambda columns: torch.stack([published_alphas((14, columns), offset) for offset in (0, 1000)])


# With beta 0.6 and of small networks: from the published codes, run with these weights.
SMALL = {"channels": 8, "cells": 5, "classes": 7}
MINUS = SMALL | {"decay": "constant", "beta": 0.6}
LOGITS = [
    ("s1", {}, 2, [0.53349375, -0.00157855, -0.17878465, -0.01550892]),
    ("s1", SMALL, 2, [0.47108932, -0.04228695, -0.05156715, 0.05234330]),
    ("s2", SMALL, 2, [1.95942159, -0.34167918, -0.70571775, 0.40393789]),
    ("s3", SMALL, 3, [0.61297634, -0.19114214, -0.20708543, 0.16197334]),
    ("darts-minus", {}, 8, [9.02068919, 0.35153790, 3.76241657, -1.61357534]),
    ("darts-minus", MINUS, 8, [2.68282206, -0.21186844, 0.02755202, -0.10519360]),
    ("darts-minus", MINUS | {"space": "s1"}, 2, [2.15436083, 0.22823805, 0.94354688, 0.08651613]),
    ("darts-minus", MINUS | {"space": "s2"}, 2, [2.64379669, -0.97561904, -1.19663977, 0.43162744]),
    ("darts-minus", MINUS | {"space": "s3"}, 3, [1.03150996, -0.36542757, -0.52084870, -0.16147413]),
]


@pytest.mark.parametrize(("space", "options", "columns", "values"), LOGITS, ids=str)
def test_logits(space, options, columns, values, filled, alphas_of, published_input):
    supernet = SPACES[space](**options)
    logits = supernet.forward(filled(supernet), alphas_of(columns), published_input((2, 3, 32, 32))).logits
    assert [logits.norm().item(), *logits[0, :3].tolist()] == pytest.approx(values, abs=2e-8)


@pytest.mark.parametrize(
    ("options", "size", "weights", "values"),
    [
        ({}, 32, 299_578, [0.28601987, -0.05403199, 0.09016934, -0.01783515]),
        (SMALL, 32, 66_199, [0.20299717, -0.04781731, 0.01373539, -0.06941711]),
        (SMALL | {"classes": 11, "partial": 2, "stem": "imagenet"}, 64, 154_615, [0.77959017, -0.34034750, -0.12251928, -0.06825221]),
    ],
    ids=str,
)
def test_logits_of_partial_channels(options, size, weights, values, filled, alphas_of, published_alphas, published_input):
    """From the published code, run with these weights."""
    supernet = SPACES["pcdarts"](**options)
    assert supernet.layout.count == weights
    betas = torch.stack([published_alphas((14, 1), offset) for offset in (2000, 3000)])
    logits = supernet.forward(filled(supernet), torch.cat([alphas_of(8), betas], -1), published_input((2, 3, size, size))).logits
    assert [logits.norm().item(), *logits[0, :3].tolist()] == pytest.approx(values, abs=2e-8)


@pytest.mark.parametrize(("space", "other"), [("s2", "sk"), ("s4", "no")])
def test_genotype_of_s2_and_s4(space, other, alphas_of, genes):
    genotype = SPACES[space](cells=3, channels=4).genotype(alphas_of(2))
    assert genotype.normal == genes(f"s3:1 s3:0 {other}:0 s3:2 {other}:0 {other}:1 s3:4 s3:3")
    assert genotype.reduce == genes(f"s3:1 s3:0 s3:2 {other}:0 s3:3 {other}:0 s3:4 {other}:0")


def test_genotype_of_s3_never_has_none():
    supernet = SPACES["s3"](cells=3, channels=4)
    alphas = torch.zeros(2, 14, 3)
    alphas[..., 0] = 5.0
    assert supernet.genotype(alphas).skips == 16


class TestNoise:
    @pytest.fixture
    def s4(self):
        supernet = SPACES["s4"](cells=3, channels=2)
        random = torch.Generator().manual_seed(0)
        return supernet, supernet.init_weights(random), supernet.init_alphas(random), torch.randn(2, 3, 9, 8, generator=random)

    def test_every_pass_of_a_step_has_the_same(self, s4):
        supernet, *arguments = s4
        runs = [supernet.at(Moment(seed=seed)).forward(*arguments).logits for seed in (1, 1, 2)]
        assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])

    def test_the_twin_draws_the_same(self, s4):
        supernet, *arguments = s4
        at = supernet.at(Moment(seed=1))
        torch.testing.assert_close(at.forward(*arguments), at.twice_differentiable().forward(*arguments), rtol=1e-4, atol=1e-4)

    def test_cells_draw_their_own(self, s4):
        supernet, *_, images = s4
        noise = [supernet.draws(i, images).noise(0, images) for i in (0, 1)]
        assert not torch.equal(*noise)


class TestDropPath:
    def test_rate_grows_linearly(self):
        supernet = SPACES["s2"](cells=3, channels=2, drop_path=0.6)
        assert [supernet.at(Moment(epoch, 50)).drop_path_rate for epoch in (0, 49)] == [0.0, pytest.approx(0.6)]

    def test_it_drops(self):
        supernet = SPACES["s2"](cells=3, channels=2, drop_path=0.6)
        random = torch.Generator().manual_seed(0)
        arguments = supernet.init_weights(random), supernet.init_alphas(random), torch.randn(2, 3, 8, 8, generator=random)
        runs = [supernet.at(Moment(epoch, 3, seed)).forward(*arguments).logits for epoch, seed in ((0, 1), (0, 2), (2, 1), (2, 2))]
        assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[2], runs[3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 0.5, 0.02]),
        ({"decay": "cosine", "beta": 0.8}, [0.8, 0.4, pytest.approx(0.0008, abs=5e-5)]),
        ({"decay": "slow_cosine"}, [1.0, pytest.approx(0.70710678), pytest.approx(0.03141076)]),
        ({"decay": "constant", "beta": 0.3}, [0.3, 0.3, 0.3]),
    ],
    ids=str,
)
def test_decay_of_the_auxiliary_skip(options, expected):
    supernet = SPACES["darts-minus"](cells=3, channels=2, **options)
    assert [pytest.approx(value) for value in expected] == [supernet.at(Moment(epoch, 50)).skip_weight for epoch in (0, 25, 49)]


class TestPartialChannels:
    def test_genotype(self, alphas_of, published_alphas, genes):
        betas = torch.stack([published_alphas((14,), offset) for offset in (2000, 3000)])
        genotype = SPACES["pcdarts"](cells=3, channels=4).genotype(torch.cat([alphas_of(8), betas[..., None]], -1))
        assert genotype.normal == genes("mp:1 d5:0 d3:1 s5:2 d5:1 ap:2 d3:4 mp:3")
        assert genotype.reduce == genes("d3:0 mp:1 sk:1 ap:2 d3:3 s3:0 d5:3 d3:2")

    def test_shuffle(self):
        x = torch.arange(8.0).view(1, 8, 1, 1)
        assert channel_shuffle(x, 4).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
        assert channel_shuffle(x, 2).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]

    def test_edge_weights_sum_to_one_at_each_node(self):
        weights = edge_weights(torch.randn(2, 14))
        for part in weights.split([2, 3, 4, 5], 1):
            torch.testing.assert_close(part.sum(1), torch.ones(2))

    def test_edge_normalisation_weighs_bypassing_channels_too(self):
        supernet = SPACES["pcdarts"](cells=3, channels=4)
        alphas = supernet.init_alphas(torch.Generator().manual_seed(0))
        alphas[..., -1] = torch.tensor([1.0, -1.0] + [0.0] * 12)
        normal, _ = supernet.sample(alphas)
        torch.testing.assert_close(normal[:, -1], normal[:, :-1].sum(1))
        assert normal[0, -1] > normal[1, -1]

    def test_kernel_and_composition_agree(self, filled, published_input):
        supernet = SPACES["pcdarts"](cells=3, channels=8)
        alphas = 20 * supernet.init_alphas(torch.Generator().manual_seed(0)).double()
        arguments = filled(supernet), alphas.requires_grad_(), published_input((2, 3, 16, 16))
        grads = []
        for network in (supernet, supernet.twice_differentiable()):
            grads.append(torch.autograd.grad(network.forward(*arguments).logits.square().sum(), alphas)[0])
        assert (grads[0] - grads[1]).norm() / grads[1].norm() < 1e-9

    def test_channels_must_divide(self):
        with pytest.raises(ValueError, match="channels is 6: partial channels need a multiple of 4"):
            SPACES["pcdarts"](channels=6)


@pytest.mark.parametrize("space", ["darts", "pcdarts"])
def test_imagenet_stem(space):
    supernet = SPACES[space](cells=3, channels=4, stem="imagenet", classes=7)
    random = torch.Generator().manual_seed(0)
    output = supernet.forward(supernet.init_weights(random), supernet.init_alphas(random), torch.randn(2, 3, 64, 64, generator=random))
    assert output.logits.shape == (2, 7)
    assert supernet.cells[0].reduce_s0


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ("darts", {"stem": "resnet"}, "'cifar' or 'imagenet'"),
        ("darts", {"drop_path": 1.0}, "drop_path is 1.0"),
        ("darts-minus", {"space": "s9"}, "space is 's9': it is one of s1, s2"),
        ("darts-minus", {"decay": "fast"}, "decay is 'fast': it is one of linear"),
        ("darts-minus", {"beta": "x"}, "beta is 'x': needed is a number"),
        ("pdarts", {"skips": -1}, "skips is -1: needed is a whole number"),
        ("pdarts", {"growth": 1.5}, "growth is 1.5: needed is a whole number"),
        ("pdarts", {"dropout": [0.1]}, "needed are 3 numbers"),
        ("pcdarts", {"partial": 0}, "partial is 0: needed is a whole number of 1"),
        ("darts-minus", {"beta": float("nan")}, "beta is nan: needed is a number"),
        ("drnas", {"partials": [6], "channels": 24}, "needed are 0 numbers"),
        ("drnas", {"kl": "x", "channels": 24}, "kl is 'x': needed is a number of 0 or more"),
        ("drnas-nasbench201", {"partials": []}, "needed is k of one stage or more"),
        ("drnas", {"partials": [4, 6], "channels": 24}, r"partials are \[4, 6\]: needed are falling divisors of .*, 24"),
        ("drnas", {"partials": [8, 5], "channels": 24}, r"partials are \[8, 5\]"),
        ("drnas", {"keep": [8], "channels": 24}, r"keep is \[8\]: needed are falling numbers of operations, 7 at most"),
        ("drnas", {"keep": [0], "channels": 24}, r"keep is \[0\]"),
    ],
)
def test_impossible_options(space, options, message):
    with pytest.raises(ValueError, match=message):
        SPACES[space](**options)
