"""The DARTS supernet against the numbers of the published code: weight counts, logits, gradients, genotype, second order."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pamkd.methods.pamkd import Pamkd
from pamkd.spaces import SPACES
from pamkd.spaces.darts import EDGES, PRIMITIVES, Darts, derive_cell
from pamkd.spaces.published import load_published, published_state_dict
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.trilevel.curvature import architecture_eigenvalue
from pamkd.trilevel.passes import Batch, Passes
from pamkd.trilevel.sgd import SGD
from pamkd.trilevel.step import Learner, Teaching, TriLevelStep


@pytest.fixture
def alphas(published_alphas):
    return torch.stack([published_alphas((14, 8), 0), published_alphas((14, 8), 1000)])


@pytest.mark.parametrize(("classes", "weights"), [(10, 1_930_618), (100, 1_953_748)])
def test_weight_count(classes, weights):
    supernet = Darts(classes=classes)
    assert supernet.layout.count == weights
    state = published_state_dict(supernet, torch.zeros(supernet.num_weights))
    assert sum("running" not in name and "batches" not in name for name in state) == 1399


@pytest.mark.parametrize(("cells", "weights"), [(5, 1_275_834), (3, None)])
def test_other_depths(cells, weights):
    supernet = Darts(cells=cells)
    assert [i for i, cell in enumerate(supernet.cells) if cell.spec.reduction] == [cells // 3, 2 * cells // 3]
    assert weights is None or supernet.layout.count == weights


def test_logits_loss_and_gradients(filled, alphas, published_input):
    supernet = Darts()
    alphas.requires_grad_()
    logits = supernet.forward(filled(supernet), alphas, published_input((2, 3, 32, 32))).logits
    assert logits.norm().item() == pytest.approx(0.96144948, abs=1e-7)
    assert logits[0, :3].tolist() == pytest.approx([0.02585888, 0.18412686, 0.14040497], abs=1e-7)
    loss = F.cross_entropy(logits, torch.tensor([3, 7]))
    assert loss.item() == pytest.approx(2.4645980803, abs=1e-9)
    (grad,) = torch.autograd.grad(loss, alphas)
    assert [cell.norm().item() for cell in grad] == pytest.approx([0.5868849234, 0.3511437893], abs=1e-8)
    row = [-0.02558692, 0.08043986, -0.13133348, -0.07405396, 0.15286681, 0.12409261, -0.05850208, -0.06792285]
    assert grad[0, 0].tolist() == pytest.approx(row, abs=1e-7)


def test_genotype(alphas, genes):
    genotype = Darts(cells=3, channels=4).genotype(alphas)
    assert genotype.normal == genes("d5:0 mp:1 s5:0 d3:1 d5:1 ap:2 mp:3 d3:4")
    assert genotype.reduce == genes("mp:1 d3:0 ap:0 ap:2 d3:3 mp:2 d5:0 d3:2")
    assert genotype.normal_concat == genotype.reduce_concat == (2, 3, 4, 5)


def test_derivation_never_takes_none_and_breaks_ties_by_index():
    mix = torch.zeros(14, 8)
    mix[:, 0] = 1.0
    assert derive_cell(mix.tolist(), (PRIMITIVES,) * 14) == (("max_pool_3x3", 0), ("max_pool_3x3", 1)) * 4


@pytest.fixture
def second_order(filled, alphas, published_input):
    """Facts of the published second-order vector: C=4, 3 cells, 16x16, four training and four validation images."""
    supernet = Darts(channels=4, cells=3)
    assert supernet.layout.count == 72_854
    images = published_input((8, 3, 16, 16))
    train, valid = Batch(images[:4], torch.tensor([3, 7, 1, 0])), Batch(images[4:], torch.tensor([2, 5, 9, 4]))
    return Learner.create(supernet, alphas, filled(supernet), filled(supernet)), train, valid


def test_single_learner_reproduces_second_order_darts(second_order):
    learner, train, valid = second_order
    method = Pamkd(sgd=SGD(0.9, 3e-4, 0.0))
    report, (grad,) = method.step([learner], train, valid, lr=0.025, phase="search", seed=0)
    assert report.train_loss[0] == pytest.approx(2.2597062227, abs=1e-9)
    assert report.valid_loss[0] == pytest.approx(2.3644132444, abs=1e-9)
    assert [cell.norm().item() for cell in grad] == pytest.approx([0.4261866024, 0.3443847757], abs=1e-8)
    assert grad[0, 0, :4].tolist() == pytest.approx([-0.0213367155, -0.1019763463, -0.0420667970, -0.0237688701], abs=1e-8)


@pytest.mark.parametrize(
    ("step", "implicit", "precision"),
    [(1e-2, [12.0351979339, 11.8065590545], 1e-9), (1e-6, [1.8397313031, 2.6287125588], 1e-8)],
)
def test_terms_of_second_order_darts(second_order, step, implicit, precision):
    """The published step crosses kinks; with a ten-thousandth of it the difference is the exact product, 1.8397313030 and 2.6287125581."""
    learner, train, valid = second_order
    parts = TriLevelStep(Passes(), Teaching(GroupRelativeSimilarity(), 0.0), sgd=SGD(0.9, 3e-4, 0.0), fd_step=step)
    _, _, updates = parts.train_w([learner], train, valid, None, [], 0.025)
    _, _, u, direct = parts.validate_w([learner], valid)
    assert u[0].norm().item() == pytest.approx(5.7858539456, abs=1e-9)
    terms = parts.hypergradient([learner], train, valid, None, None, [], [], updates, u, direct)
    assert [cell.norm().item() for cell in terms.direct[0]] == pytest.approx([0.2285302300, 0.1911646020], abs=1e-9)
    assert [cell.norm().item() / 0.025 for cell in terms.through_w[0]] == pytest.approx(implicit, rel=precision)


def test_exact_second_order_darts(second_order):
    learner, train, valid = second_order
    method = Pamkd(sgd=SGD(0.9, 3e-4, 0.0), exact=True)
    _, (grad,) = method.step([learner], train, valid, lr=0.025, phase="search", seed=0)
    assert [cell.norm().item() for cell in grad] == pytest.approx([0.2299834778, 0.1954487842], abs=1e-8)
    assert grad[0, 0, :4].tolist() == pytest.approx([-0.0099154205, -0.0154126622, -0.0088300417, -0.0362981955], abs=1e-8)


def test_first_order_darts(second_order):
    learner, train, valid = second_order
    losses = []
    for batch in (train, valid):
        losses.append(F.cross_entropy(learner.network.forward(learner.w, learner.alphas, batch.images).logits, batch.labels))
    assert [loss.item() for loss in losses] == pytest.approx([2.2597062227, 2.4009633713], abs=1e-9)
    (grad,) = torch.autograd.grad(losses[1], learner.alphas)
    assert [cell.norm().item() for cell in grad] == pytest.approx([0.2102073235, 0.2250696089], abs=1e-8)
    assert grad[0, 0, :4].tolist() == pytest.approx([-0.0077481587, 0.0079693326, 0.0053440592, -0.0265757519], abs=1e-8)


def test_dominant_eigenvalue(second_order):
    """Of the Hessian of the validation loss in all 224 alphas."""
    learner, _, valid = second_order
    assert architecture_eigenvalue(learner, valid) == pytest.approx(0.1946223135, abs=1e-8)


class Nothing(Darts):
    def candidates(self, reduction):
        return (("none",),) * EDGES


@pytest.mark.parametrize(("cells", "weights"), [(5, 56_186), (8, 99_450), (11, 142_458), (17, 228_474)])
def test_weights_outside_the_operations(cells, weights):
    assert Nothing(cells=cells).layout.count == weights


def test_published_names_round_trip():
    supernet = Darts(channels=4, cells=5, classes=7, image_channels=1)
    weights = supernet.init_weights(torch.Generator().manual_seed(3))
    state = published_state_dict(supernet, weights)
    assert torch.equal(load_published(supernet, state), weights)
    expected = {
        "stem.0.weight",
        "cells.0.preprocess0.op.1.weight",
        "cells.2.preprocess0.conv_1.weight",
        "cells.1._ops.0._ops.3.conv_2.weight",
        "cells.1._ops.0._ops.3.bn.running_var",
        "cells.4._ops.13._ops.5.op.6.weight",
        "cells.0._ops.2._ops.1.1.running_mean",
        "classifier.bias",
    }
    assert expected <= set(state)
    assert "cells.1._ops.4._ops.3.bn.running_var" not in state  # edge 4 leaves a node: stride 1, its skip is an identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.bias"), "lacks classifier.bias"),
        (lambda state: state.update({"stem.0.weight": torch.zeros(1)}), "stem.0.weight has shape"),
        (lambda state: state.update({"cells.9.x.weight": torch.zeros(1)}), "has cells.9.x.weight"),
    ],
)
def test_foreign_state_dict_is_refused(change, message):
    supernet = Darts(channels=4, cells=3)
    state = published_state_dict(supernet, torch.zeros(supernet.num_weights))
    change(state)
    with pytest.raises(ValueError, match=message):
        load_published(supernet, state)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28)])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_any_image_size(size, image_channels):
    supernet = Darts(channels=4, cells=3, classes=5, image_channels=image_channels)
    random = torch.Generator().manual_seed(0)
    weights = supernet.init_weights(random)
    output = supernet.forward(weights, supernet.init_alphas(random), torch.randn(2, image_channels, *size, generator=random))
    assert output.logits.shape == (2, 5) and output.embedding.shape == (2, supernet.embedding_size)
    assert output.logits.isfinite().all()


def test_reference_twin_agrees_and_differentiates_twice():
    supernet = Darts(channels=4, cells=3)
    random = torch.Generator().manual_seed(0)
    weights = supernet.init_weights(random).double().requires_grad_()
    alphas = supernet.init_alphas(random).double().requires_grad_()
    images = torch.randn(4, 3, 8, 8, generator=random, dtype=torch.float64)
    twin = supernet.twice_differentiable()
    torch.testing.assert_close(twin.forward(weights, alphas, images), supernet.forward(weights, alphas, images), rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad(twin.forward(weights, alphas, images).logits.square().sum(), alphas, create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), weights)[0].norm() > 0


def test_initial_weights_follow_pytorch():
    supernet = Darts(channels=8, cells=3)
    state = published_state_dict(supernet, supernet.init_weights(torch.Generator().manual_seed(0)))
    for name, value in state.items():
        if value.dim() == 4:
            bound = 1 / math.sqrt(value[0].numel())
            assert value.abs().max() <= bound, name
            if value.numel() > 500:
                assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


@pytest.mark.parametrize(
    ("options", "message"),
    [({"channels": 5}, "even number"), ({"cells": 2}, "at least 3"), ({"classes": 1}, "at least 2")],
)
def test_impossible_supernets(options, message):
    with pytest.raises(ValueError, match=message):
        SPACES["darts"](**options)


def test_wrong_inputs_are_named():
    supernet = Darts(channels=4, cells=3)
    weights, alphas = torch.zeros(supernet.num_weights), torch.zeros(2, 14, 8)
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 7, 8\)"):
        supernet.forward(weights, alphas, torch.zeros(2, 3, 7, 8))
    with pytest.raises(ValueError, match=r"weights have shape \(3,\)"):
        supernet.forward(weights[:3], alphas, torch.zeros(2, 3, 8, 8))
