"""DrNAS against the numbers of the published code and closed forms: weight counts, Dirichlet samples, KL, pruning, widening."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pamkd.runs.search_state import copied
from pamkd.spaces.drnas import DrNas, DrNasTopology, concentration, kl_to_uniform
from pamkd.spaces.supernet import Moment
from pamkd.spaces.widen import widening
from pamkd.trilevel.curvature import architecture_eigenvalue
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner

COUNTS = [
    ({"channels": 36, "cells": 20}, 0, 2_221_750),
    ({"channels": 36, "cells": 20, "classes": 100}, 0, 2_273_680),
    ({"channels": 36, "cells": 20}, 1, 2_986_462),
    ({"channels": 36, "cells": 20, "partials": [1], "keep": []}, 0, 19_932_310),
    ({"channels": 48, "cells": 14, "classes": 1000, "stem": "imagenet", "partials": [6, 3]}, 0, 3_642_896),
    ({"channels": 48, "cells": 14, "classes": 1000, "stem": "imagenet", "partials": [6, 3]}, 1, 5_739_344),
]


@pytest.mark.parametrize(("options", "stage", "weights"), COUNTS, ids=str)
def test_weight_counts(options, stage, weights):
    supernet = DrNas(**options)
    if stage:
        supernet = supernet.at_stage(stage, [supernet.candidates(False), supernet.candidates(True)])
    assert supernet.layout.count == weights


@pytest.mark.parametrize(("k", "weights"), [(1, 1_686_106), (2, 476_506), (4, 174_106)])
def test_weight_counts_on_nasbench201(k, weights):
    assert DrNasTopology(cells=5, partials=[k]).layout.count == weights


@pytest.mark.parametrize(
    ("options", "size", "weights", "values"),
    [
        ({"channels": 12, "classes": 7}, 32, 83_315, [1.11183784, 0.56275506, -0.16876595, 0.10568122]),
        (
            {"channels": 24, "classes": 11, "partials": [3], "keep": [], "stem": "imagenet"},
            64,
            572_223,
            [3.77683672, -0.15407223, 0.31157337, -0.77694656],
        ),
    ],
    ids=["cifar", "imagenet"],
)
def test_logits_of_mean_mixtures(options, size, weights, values, filled, published_alphas, published_input, monkeypatch):
    """From the published code, run with these weights and the softmax in place of the sample."""
    supernet = DrNas(cells=5, **options)
    monkeypatch.setattr(supernet, "sample", lambda alphas: [torch.cat([mix, torch.ones(14, 1)], 1) for mix in supernet.mixtures(alphas)])
    alphas = torch.stack([published_alphas((14, 7), offset) for offset in (0, 1000)])
    logits = supernet.forward(filled(supernet), alphas, published_input((2, 3, size, size))).logits
    assert supernet.layout.count == weights
    assert [logits.norm().item(), *logits[0, :3].tolist()] == pytest.approx(values, abs=2e-8)


def test_eigenvalue_of_the_hessian():
    """PyTorch's own sample has no second derivative. Here the Hessian is that of the drawn variables' first-order expansion."""
    supernet = DrNasTopology(cells=1, channels=2, classes=3)
    random = torch.Generator().manual_seed(0)
    weights, alphas = supernet.init_weights(random).double(), supernet.init_alphas(random).double()
    batch = Batch(torch.randn(4, 3, 8, 8, generator=random, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    learner = Learner.create(supernet, alphas, weights, weights)
    shape = concentration(alphas.detach())
    gammas = torch._standard_gamma(shape, generator=supernet.random("dirichlet"))
    slopes = torch._standard_gamma_grad(shape, gammas)

    class Expanded(DrNasTopology):
        def sample(self, alphas):
            drawn = gammas + slopes * (concentration(alphas) - shape)
            return tuple(drawn / drawn.sum(-1, keepdim=True))

    twin = Expanded(cells=1, channels=2, classes=3).twice_differentiable()
    hessian = torch.autograd.functional.hessian(
        lambda alphas: F.cross_entropy(twin.forward(weights, alphas, batch.images).logits, batch.labels), alphas.detach()
    )
    assert architecture_eigenvalue(learner, batch) == pytest.approx(torch.linalg.eigvalsh(hessian.view(30, 30))[-1].item(), rel=1e-7)


def test_concentration_and_divergence(published_alphas):
    alphas = published_alphas((14, 7), 0)
    row = [0.61325963, 0.66583049, 0.76621008, 0.93453789, 1.18906720, 0.60896897, 0.88437986]
    assert concentration(alphas)[0].tolist() == pytest.approx(row, abs=1e-7)
    assert kl_to_uniform(alphas)[0].item() == pytest.approx(0.4815520484, abs=1e-9)
    assert kl_to_uniform(alphas).sum().item() == pytest.approx(5.2135943636, abs=1e-8)


def test_the_divergence_joins_the_loss_on_request(published_alphas):
    alphas = torch.stack([published_alphas((14, 7), 0)] * 2)
    assert DrNas(cells=3, channels=12).regulariser(alphas) is None
    assert DrNas(cells=3, channels=12, kl=0.5).regulariser(alphas).item() == pytest.approx(5.2135943636, abs=1e-8)


class TestSamples:
    @pytest.fixture
    def alphas(self):
        return torch.linspace(-1, 1.5, 5).expand(1, 6, 5).double()

    def test_distribution(self, alphas):
        """Means of a Dirichlet are c / sum c, variances m (1 - m) / (sum c + 1)."""
        supernet = DrNasTopology(cells=1, channels=2)
        draws = torch.cat([supernet.at(Moment(seed=seed)).sample(alphas)[0] for seed in range(1500)])
        c = concentration(alphas[0, 0])
        mean = c / c.sum()
        torch.testing.assert_close(draws.sum(1), torch.ones(len(draws), dtype=torch.float64))
        torch.testing.assert_close(draws.mean(0), mean, atol=0.006, rtol=0)
        torch.testing.assert_close(draws.var(0), mean * (1 - mean) / (c.sum() + 1), atol=0.003, rtol=0)

    def test_gradient_is_that_of_the_mean(self, alphas):
        supernet = DrNasTopology(cells=1, channels=2)
        alphas = alphas.clone().requires_grad_()
        value = torch.arange(5.0, dtype=torch.float64)
        found = torch.stack(
            [
                torch.autograd.grad((supernet.at(Moment(seed=s)).sample(alphas)[0] @ value).sum(), alphas)[0].mean((0, 1))
                for s in range(1500)
            ]
        )
        c = concentration(alphas[0, 0])
        (exact,) = torch.autograd.grad((c / c.sum()) @ value, alphas)
        torch.testing.assert_close(found.mean(0), exact[0, 0], atol=0.02, rtol=0.05)

    def test_every_pass_of_a_step_has_the_same(self, alphas):
        supernet = DrNasTopology(cells=1, channels=2)
        one, same, other = (supernet.at(Moment(seed=seed)).sample(alphas)[0] for seed in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)

    def test_bypassing_channels_have_weight_one(self, alphas):
        (mix,) = DrNasTopology(cells=1, channels=4, partials=[2]).sample(alphas)
        assert mix.shape == (6, 6) and mix[:, -1].eq(1).all()


def test_pruning_keeps_the_strongest(published_alphas):
    supernet = DrNasTopology(cells=1, channels=4, partials=[4, 2], keep=[3])
    alphas = published_alphas((1, 6, 5), 0)
    following = supernet.next_stage(alphas, torch.Generator())
    names = supernet.candidates(False)[0]
    kept = ["".join(str(names.index(name)) for name in edge) for edge in following.supernet.candidates(False)]
    assert kept == ["234", "124", "234", "034", "013", "023"]
    assert torch.equal(copied(alphas, following.alphas_source)[0, 3], alphas[0, 3, [0, 3, 4]])
    assert (following.supernet.partial, following.supernet.stage) == (2, 1)


class TestWidening:
    @pytest.fixture
    def widened(self):
        """Both supernets, random weights of the first and what they become."""
        old = DrNas(cells=3, channels=12, partials=[6, 3])
        random = torch.Generator().manual_seed(0)
        following = old.next_stage(torch.randn(2, 14, 7, generator=random), random)
        weights = old.init_weights(random)
        return old, following.supernet, weights, copied(weights, following.weights_source)

    @staticmethod
    def operation(supernet, weights, cell, edge, name):
        spec = supernet.cells[cell].spec
        values = supernet.layout.views(weights)[f"cells.{cell}._ops"]
        column = spec.candidates[edge].index(name)
        return [values[p.offset : p.offset + p.size].view(p.shape) for p in spec.weights if (p.edge, p.op) == (edge, column)]

    def test_the_rest_of_the_network_is_the_same(self, widened):
        old, new, before, after = widened
        before, after = old.layout.views(before), new.layout.views(after)
        assert set(before) == set(after)
        for name in before:
            assert name.endswith("_ops") or torch.equal(before[name], after[name]), name

    def test_old_channels_keep_their_weights_and_new_ones_are_copies(self, widened):
        old, new, before, after = widened
        seen = set()
        for cell in range(3):
            for edge, names in enumerate(new.cells[cell].spec.candidates):
                for name in names:
                    for small, large in zip(
                        self.operation(old, before, cell, edge, name), self.operation(new, after, cell, edge, name), strict=True
                    ):
                        out, into = small.shape[:2]
                        assert torch.equal(large[:out, :into], small)
                        assert large.shape[0] == 2 * out and set(large.flatten().tolist()) == set(small.flatten().tolist())
                        seen.add(name)
        assert {"sep_conv_3x3", "dil_conv_5x5", "skip_connect"} <= seen

    def test_readers_copy_what_they_read(self, widened):
        """With every weight a number of its own, the copied channels of a convolution are those of the one before it."""
        old, new, *_ = widened
        before = torch.arange(float(old.num_weights))
        random = torch.Generator().manual_seed(3)
        after = copied(before, widening(old, new, random))
        edge, name = next((e, n) for e, names in enumerate(new.candidates(False)) for n in names if n.startswith("sep"))
        small, large = (self.operation(*pair, 0, edge, name) for pair in ((old, before), (new, after)))
        sources = []  # the old channel of each output
        for a, b in zip(small, large, strict=True):
            first = a.flatten(1)[:, 0].tolist()
            sources.append([first.index(value) for value in b.flatten(1)[:, 0].tolist()])
        dw1, pw1, dw2, _ = sources
        assert torch.equal(large[1][:2], small[1][:, dw1]) and torch.equal(large[3][:2], small[3][:, dw2])
        assert pw1 == dw2 and dw1 != pw1

    def test_gaps_stay_zero(self, widened):
        _, new, _, after = widened
        mask = torch.ones(new.num_weights, dtype=torch.bool)
        for entry in new.layout.entries:
            mask[entry.offset : entry.offset + entry.size] = False
        assert mask.any() and not after[mask].any()


def test_stages_need_their_numbers():
    with pytest.raises(ValueError, match="needed are 1 numbers"):
        DrNas(partials=[6, 4], keep=[])
