"""Steps that read nothing from the device: on fake tensors of another device than the CPU, where any read raises, and any mixture of
devices; and the same numbers as with skipped passes."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from pamkd.methods import METHODS
from pamkd.methods.pamkd import Pamkd
from pamkd.ops._library import IMPLEMENTATIONS
from pamkd.spaces.darts import Darts
from pamkd.trilevel.difference import central_difference
from pamkd.trilevel.finite import Diverged
from pamkd.trilevel.passes import Batch, Passes
from pamkd.trilevel.step import Learner

# cream chooses its paths on the host, afd counts its steps there.
READ_NOTHING = [name for name in METHODS if name not in ("cream", "afd")]


def fake_problem(count, **options):
    """Made in a FakeTensorMode: learners over a DARTS supernet, training batch, validation batch. Autograd wants a GPU for tensors that are
    said to be on one, but nothing for those of the device meta."""

    def there(*shape, **dtype):
        return torch.empty(shape, device="meta", **dtype)

    network = Darts(channels=2, cells=3, classes=3, image_channels=1, **options)
    learners = [Learner.create(network, there(2, 14, 8), *(there(network.num_weights) for _ in "vw"), number=k) for k in range(count)]
    train, valid = (Batch(there(6, 1, 8, 8), there(6, dtype=torch.int64)) for _ in "tv")
    return learners, train, valid


# Stacked passes with two weight sets and with one.
CASES = [*itertools.product(READ_NOTHING, ["first", "second"], [False]), ("pamkd", "second", True), ("one", "second", True)]


@pytest.mark.parametrize(("name", "order", "stacked"), CASES)
def test_a_static_step_reads_nothing(name, order, stacked, transfer, monkeypatch):
    for implementations in IMPLEMENTATIONS.values():
        monkeypatch.setitem(implementations, "meta", "what a GPU has")
    with FakeTensorMode():
        learners, train, valid = fake_problem(3)
        options = {"transfer": transfer.__class__(group_size=2, pairs=5)} if name in ("pamkd", "no-1st") else {}
        method = METHODS[name](order=order, passes=Passes(static=True, stacked=stacked), **options)
        method.start(learners)
        drawn = method.draw(train, valid, phase="search", learners=3, seed=1)
        found, hypergradient = method.take(learners, train, valid, lr=0.1, phase="search", drawn=drawn)
        noted = method.passes.watch.take()
        assert found.train_loss.shape == (3,) and len(hypergradient) == 3
        assert noted.values.shape == (len(noted.notes),) and len(noted.notes) >= 3 * 6
        with pytest.raises(DataDependentOutputException):  # this mode does see a read
            noted.check()


def test_static_passes_take_the_step_that_skips_passes(network, transfer, problem):
    learners, train, valid, _ = problem(3)
    twin = copy.deepcopy(learners)
    skipping, static = Pamkd(transfer=transfer), Pamkd(transfer=transfer, passes=Passes(static=True))
    report, hypergradient = skipping.step(learners, train, valid, lr=0.2, phase="search", seed=3)
    other, static_hypergradient = static.step(twin, train, valid, lr=0.2, phase="search", seed=3)
    assert report == other and min(report.distill_loss) == 0
    for one, two, grad, static_grad in zip(learners, twin, hypergradient, static_hypergradient, strict=True):
        assert torch.equal(one.w, two.w) and torch.equal(one.v, two.v) and torch.equal(grad, static_grad)
    assert static.passes.forwards["w_taught"] == 3 and skipping.passes.forwards["w_taught"] == 2


@pytest.mark.parametrize(("place", "said"), [("v", "loss of learner 1 in pass v_train"), ("w", "loss of learner 1 in pass w_train")])
def test_static_passes_name_what_diverged(place, said, network, transfer, problem):
    learners, train, valid, _ = problem(2)
    getattr(learners[1], place)[0] = float("nan")
    method = Pamkd(transfer=transfer, passes=Passes(static=True), weight=0.0)
    transfer.publish = lambda output, weights, context: output.logits.sum(1)  # the CPU kernel of the similarities refuses NaN by itself
    with pytest.raises(Diverged, match=f"the {said} is nan"):
        method.step(learners, train, valid, lr=0.2, phase="search", seed=3)


def test_central_difference_along_nothing_is_zero():
    point, scale = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    for direction in (torch.zeros_like(point), torch.ones_like(point)):
        ((found,),) = central_difference(lambda points: [[x.square() * scale] for x in points], [point], [direction], 1e-3)
        torch.testing.assert_close(found, 2 * point * scale * direction, rtol=1e-9, atol=1e-12)
