"""Stacked passes, one call of the network for all learners and both ends of a difference, take the step of passes one after another."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from pamkd.methods import METHODS
from pamkd.methods.pamkd import Pamkd
from pamkd.spaces.darts import Darts
from pamkd.spaces.pcdarts import PcDarts
from pamkd.spaces.prdarts import PrDarts
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.trilevel.passes import Batch, Passes
from pamkd.trilevel.step import Learner

# Of any number of learners; cream has one learner, whose difference has two ends.
CALLS = {
    "pamkd": {"v_train", "v_teach", "w_train", "w_taught", "w_valid", "w_train_perturbed", "w_taught_perturbed", "v_train_perturbed"},
    "no-1st": {"w_train", "w_taught", "w_valid", "w_train_perturbed", "w_taught_perturbed"},
    "one": {"w_train", "w_valid", "w_train_perturbed"},
    "okddip": {"w_train", "w_valid", "w_train_perturbed"},
    "2nd-kdcl": {"v_train", "v_teach", "w_train", "w_valid", "w_train_perturbed", "v_train_perturbed"},
}


def supernets(count, kind=Darts):
    """Learners over a supernet that counts its calls, and two batches."""
    random = torch.Generator().manual_seed(0)
    network = kind(channels=4, cells=3, classes=3, image_channels=1)
    learners = [
        Learner.create(network, *(make(random).double() for make in (network.init_alphas, network.init_weights, network.init_weights)), k)
        for k in range(count)
    ]
    batches = [Batch(torch.randn(6, 1, 8, 8, generator=random).double(), torch.randint(0, 3, (6,), generator=random)) for _ in range(2)]
    return learners, *batches


def step(method, learners, train, valid, monkeypatch):
    """The step's report and hypergradient, the learners after it, and how often a network was called."""
    learners, calls, kind = copy.deepcopy(learners), [], type(learners[0].network)
    forward = kind.forward

    def counted(self, weights, alphas, images):
        calls.append(weights.shape)
        return forward(self, weights, alphas, images)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", counted)
        method.start(learners)
        report, hypergradient = method.step(learners, train, valid, lr=0.1, phase="search", seed=3)
    return report, hypergradient, learners, calls


def assert_same(one, other):
    report, hypergradient, learners, _ = one
    same_report, same_hypergradient, same_learners, _ = other
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    for name, value in vars(report).items():
        close(torch.tensor(value), torch.tensor(getattr(same_report, name)), equal_nan=True)
    close(hypergradient, same_hypergradient)
    for learner, same in zip(learners, same_learners, strict=True):
        close(learner.tensors, same.tensors)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", CALLS)
def test_every_kind_of_pass_is_one_call(name, count, static, problem, transfer, monkeypatch):
    learners, train, valid, _ = problem(count)
    options = {"transfer": transfer} if name in ("pamkd", "no-1st") else {"leader": False} if name == "okddip" else {}
    alone, together = (METHODS[name](passes=Passes(static=static, stacked=stacked), fd_step=1e-3, **options) for stacked in (False, True))
    one, other = (step(method, learners, train, valid, monkeypatch) for method in (alone, together))
    assert_same(one, other)
    assert (together.passes.forwards, together.passes.backwards) == (alone.passes.forwards, alone.passes.backwards)
    calls = [shape for shape in other[3] if len(shape) == 2]  # within torch.vmap the network is called again
    single = 1 if name in ("pamkd",) and count == 2 and not static else 0  # one student
    assert len(calls) + single == len(CALLS[name])
    assert len(one[3]) == sum(alone.passes.forwards.values())


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("count", [2, 3])
def test_a_step_of_supernets(count, order, monkeypatch):
    learners, train, valid = supernets(count)
    alone, together = (
        Pamkd(passes=Passes(static=True, stacked=stacked), order=order, transfer=GroupRelativeSimilarity(group_size=2))
        for stacked in (False, True)
    )
    one, other = (step(method, learners, train, valid, monkeypatch) for method in (alone, together))
    assert_same(one, other)
    assert len(one[3]) == sum(alone.passes.forwards.values()) == count * (11 if order == "second" else 5)
    assert len(other[3]) == (8 if order == "second" else 5)


def test_networks_that_do_not_stack_run_one_after_another(monkeypatch):
    learners, train, valid = supernets(2, PrDarts)
    method = Pamkd(passes=Passes(stacked=True), order="first", transfer=GroupRelativeSimilarity(group_size=2))
    _, _, _, calls = step(method, learners, train, valid, monkeypatch)
    assert len(calls) == sum(method.passes.forwards.values()) and {len(shape) for shape in calls} == {1}


def test_only_equal_networks_stack():
    one, other = (Darts(channels=4, cells=3) for _ in range(2))
    assert one.stacks_with(other)
    assert not one.stacks_with(Darts(channels=8, cells=3)) and not one.stacks_with(PcDarts(channels=4, cells=3))
    assert not one.stacks_with(one.twice_differentiable())
    dropping = Darts(channels=4, cells=3, drop_path=0.1)
    assert not dropping.stacks_with(dropping)
