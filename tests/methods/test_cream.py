"""Cream: paths, their loss, the board, and what the meta network learns, on a small supernet in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pamkd.methods.cream import Cream
from pamkd.methods.paths import along, draw_path, path_cost
from pamkd.spaces import SPACES
from pamkd.spaces.darts import PRIMITIVES, Darts
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.sgd import SGD
from pamkd.trilevel.step import Learner


@pytest.fixture
def scene():
    network, random = Darts(channels=2, cells=3, classes=3, image_channels=1), torch.Generator().manual_seed(1)
    learner = Learner.create(network, network.init_alphas(random).double(), torch.empty(0), network.init_weights(random).double())
    train, valid = (
        Batch(torch.randn(10, 1, 8, 8, generator=random, dtype=torch.float64), torch.randint(0, 3, (10,), generator=random))
        for _ in range(2)
    )
    return network, learner, train, valid


def test_paths_are_discrete(scene):
    """Two edges for each node of DARTS's cells; the same network as architecture parameters that leave the softmax no choice."""
    network, learner, train, _ = scene
    seen = set()
    for seed in range(20):
        path = draw_path(network, learner.alphas.detach(), torch.Generator().manual_seed(seed))
        assert ((path == 0) | (path == 1)).all() and (path[..., PRIMITIVES.index("none")] == 0).all()
        for kind in path:
            assert [int(part.sum()) for part in kind.sum(1).split([2, 3, 4, 5])] == [2, 2, 2, 2] and kind.sum(1).max() == 1
        seen.add(tuple(path.flatten().tolist()))
    assert len(seen) == 20
    certain = torch.where(path == 1, 1e4, -1e4)
    certain[..., PRIMITIVES.index("none")] = torch.where(path.sum(2) == 0, 1e4, -1e4)
    expected = network.forward(learner.w, certain, train.images).logits
    torch.testing.assert_close(along(network, path).forward(learner.w, learner.alphas, train.images).logits, expected)


SETTINGS = {
    "pdarts": {"growth": 1},
    "pcdarts": {"channels": 4, "partial": 2},
    "drnas": {"channels": 4, "partials": [2, 1]},
    "nasbench201": {"cells": 1},
    "drnas-nasbench201": {"cells": 1, "partials": [2], "keep": [], "channels": 4},
}


@pytest.mark.parametrize("space", SPACES)
def test_paths_of_every_space_use_their_own_weights_alone(space):
    options = {"channels": 2, "cells": 3, "classes": 3, "image_channels": 1} | SETTINGS.get(space, {})
    network, random = SPACES[space](**options), torch.Generator().manual_seed(4)
    alphas, w = network.init_alphas(random), network.init_weights(random).requires_grad_()
    path = draw_path(network, alphas, random)
    edges = [2, 2, 2, 2] if path.shape[1] == 14 else [1, 2, 3]
    for kind in path:
        assert [int(part.sum()) for part in kind.sum(1).split([2, 3, 4, 5] if path.shape[1] == 14 else [1, 2, 3])] == edges
    images = torch.randn(6, 1, 8, 8, generator=random)
    (grad,) = torch.autograd.grad(along(network, path).forward(w, alphas, images).logits.square().sum(), w)
    views, used = network.layout.views(grad), 0
    for i, cell in enumerate(network.cells):
        for piece in cell.spec.weights:
            own = views[f"cells.{i}._ops"][piece.offset : piece.offset + piece.size]
            chosen = piece.op < path.shape[2] and path[int(cell.spec.reduction), piece.edge, piece.op] == 1
            assert chosen or not own.any(), "a weight beside the path has a gradient"
            used += piece.size if chosen else 0
    assert used == path_cost(network, path)


def test_cost_counts_the_weights_of_a_path(scene):
    network, _, _, _ = scene
    path = torch.zeros(2, 14, 8)
    assert path_cost(network, path) == 0
    path[0, 0, PRIMITIVES.index("sep_conv_5x5")] = 1
    normal = [cell.spec.channels for cell in network.cells if not cell.spec.reduction]
    assert path_cost(network, path) == sum(2 * (25 * c + c * c) for c in normal)


def test_first_step_learns_from_labels_later_ones_from_the_board(scene):
    network, learner, train, valid = scene
    method = Cream(weight=0.6, order="first", sgd=SGD(0.0, 0.0, 0.0), board_size=2, meta_every=3, meta_lr=1.0)
    method.start([learner])
    for step in range(4):
        before, board, meta = learner.w, [entry["path"] for entry in method._board], method._meta.clone()
        path = draw_path(network, learner.alphas.detach(), torch.Generator().manual_seed(step))
        if board:
            images, soft = (torch.cat([entry[name] for entry in method._board]) for name in ("images", "soft"))
            difference = along(network, path).forward(before, learner.alphas.detach(), images).logits.softmax(1) - soft
            scores = difference.reshape(len(board), -1) @ meta[:-1] + meta[-1]
        method.step([learner], train, valid, lr=0.1, phase="warmup-w", seed=step)
        w = before.detach().requires_grad_()
        mixed = F.cross_entropy(network.twice_differentiable().forward(w, learner.alphas, train.images).logits, train.labels)
        z = along(network, path).forward(w, learner.alphas.detach(), train.images).logits
        loss = F.cross_entropy(z, train.labels, label_smoothing=0.1)
        if board:
            rho = torch.sigmoid(-scores.max())
            q = along(network, board[scores.argmax()]).forward(before, learner.alphas.detach(), train.images).logits.softmax(1)
            loss = 0.5 * (rho * -(q * z.log_softmax(1)).sum(1).mean() + (2 - rho) * loss)
        (grad,) = torch.autograd.grad(mixed + 0.6 * loss, w)
        torch.testing.assert_close(learner.w, before - 0.1 * grad, rtol=1e-8, atol=1e-10)
        assert torch.equal(method._meta, meta) == (step != 2)
        accuracies = [entry["accuracy"].item() for entry in method._board]
        assert len(accuracies) == min(step + 1, 2) and accuracies == sorted(accuracies, reverse=True)


def test_meta_gradient_is_the_derivative_of_the_loss_after_a_simulated_step(scene):
    network, learner, train, _ = scene
    method = Cream(board_size=1, meta_lr=1.0)
    method.start([learner])
    path = draw_path(network, learner.alphas.detach(), torch.Generator().manual_seed(2))
    of_path = along(network, path)
    soft, features = torch.rand(10, 3, dtype=torch.float64).softmax(1), torch.randn(12, dtype=torch.float64)
    meta = method._meta.clone()

    def after(meta):
        rho = torch.sigmoid(-(features @ meta[:-1] + meta[-1]))
        w = learner.w.detach().requires_grad_()
        first = F.cross_entropy(of_path.forward(w, learner.alphas.detach(), train.images[:4]).logits, soft[:4])
        (g,) = torch.autograd.grad(first, w)
        return F.cross_entropy(of_path.forward(w - 0.1 * rho * g, learner.alphas.detach(), train.images[4:8]).logits, train.labels[4:8])

    leaf = meta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(after(leaf), leaf)
    assert expected.norm() < 1, "no clipping in this test"
    rho = torch.sigmoid(-(features @ meta[:-1] + meta[-1])).item()
    method._train_meta(learner, path, soft, train, rho, features, 0.1)
    torch.testing.assert_close(meta - method._meta, expected, rtol=1e-6, atol=1e-10)
