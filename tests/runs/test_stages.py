"""From one stage of a search to the next: what weights, momentum, architectures and Adam's state become."""

from __future__ import annotations

import pytest
import torch

from pamkd.runs.config import SearchConfig
from pamkd.runs.search import build_supernet
from pamkd.runs.search_state import SearchState

SPACES = {
    "drnas": {"channels": 12, "cells": 3, "space_options": ("partials=[6,3]", "keep=[4]")},
    "drnas-nasbench201": {"channels": 4, "cells": 1, "space_options": ("partials=[4,2]", "keep=[3]")},
}


def searching(space, epochs, **options):
    """A search of two learners in the last epoch of its first stage, whose architectures have taken steps of Adam."""
    config = SearchConfig(space=space, epochs=epochs, arch_lr=0.1, tensorboard=False, **options)
    state = SearchState(config, build_supernet(config, 10, 3))
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        state.update_alphas([torch.randn(learner.alphas.shape, generator=random) for learner in state.learners])
    return state


def columns_kept(old, new):
    """[cells, edges, kept]: the old column of each operation that the new supernet still has."""
    types = range(len(old.cell_types))
    pairs = [zip(old.candidates(bool(i)), new.candidates(bool(i)), strict=True) for i in types]
    return torch.tensor([[[before.index(name) for name in after] for before, after in cell] for cell in pairs])


@pytest.mark.parametrize("space", SPACES)
def test_what_belongs_to_a_weight_or_an_operation_goes_with_it(space):
    state = searching(space, 2, **SPACES[space])
    before = [(learner.network, learner.alphas.detach().clone(), dict(state.optimizer.state[learner.alphas])) for learner in state.learners]
    for learner in state.learners:  # what is copied as the weights are is still the same function of them
        learner.v_momentum, learner.w_momentum = 3 * learner.v, learner.w.square()
    state.next_epoch()
    for learner, (network, alphas, adam) in zip(state.learners, before, strict=True):
        assert learner.network.num_weights != network.num_weights
        assert torch.equal(learner.v_momentum, 3 * learner.v) and torch.equal(learner.w_momentum, learner.w.square())
        kept = columns_kept(network, learner.network)
        assert torch.equal(learner.alphas.detach(), alphas.gather(-1, kept))
        after = state.optimizer.state[learner.alphas]
        assert after["step"] == adam["step"] == 3
        assert all(torch.equal(after[name], adam[name].gather(-1, kept)) for name in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("space", SPACES)
def test_adam_goes_on_as_if_nothing_had_been_dropped(space):
    state, untouched = searching(space, 2, **SPACES[space]), searching(space, 2, **SPACES[space])
    state.next_epoch()
    random = torch.Generator().manual_seed(1)
    grads = [torch.randn(learner.alphas.shape, generator=random) for learner in untouched.learners]
    kept = [columns_kept(old.network, new.network) for old, new in zip(untouched.learners, state.learners, strict=True)]
    assert not torch.equal(kept[0], kept[1])  # each learner goes its own way
    untouched.update_alphas(grads)
    state.update_alphas([grad.gather(-1, columns) for grad, columns in zip(grads, kept, strict=True)])
    for old, new, columns in zip(untouched.learners, state.learners, kept, strict=True):
        torch.testing.assert_close(new.alphas.detach(), old.alphas.detach().gather(-1, columns))


def test_pdarts_begins_anew():
    state = searching("pdarts", 3, channels=2, cells=3, space_options=("growth=1",))
    for learner in state.learners:
        learner.w_momentum = learner.w.clone()
    before = [(learner.network, learner.w, learner.alphas.detach()) for learner in state.learners]
    state.next_epoch()
    for learner, (network, weights, alphas) in zip(state.learners, before, strict=True):
        strongest = alphas.softmax(-1).topk(5, -1).indices.sort(-1).values
        assert torch.equal(columns_kept(network, learner.network), strongest) and learner.network.depth == 4
        assert learner.alphas.shape == (2, 14, 5) and learner.alphas.abs().max() < 0.01
        assert not learner.w_momentum.any() and not learner.v_momentum.any() and not torch.equal(learner.w[:99], weights[:99])
        assert not state.optimizer.state[learner.alphas]
