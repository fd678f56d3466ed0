"""A search on several processes is the search on one: float64, five steps, both orders, all methods, through checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pamkd.distributed import open_mesh
from pamkd.methods.pamkd import Pamkd
from pamkd.runs.bundle import BUNDLE
from pamkd.runs.errors import OptionError
from pamkd.runs.replay import ReplayConfig, replay
from pamkd.runs.search import Search
from pamkd.runs.search_state import SearchState
from pamkd.spaces.darts import Darts
from pamkd.spaces.supernet import Moment
from pamkd.trilevel.finite import Diverged
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner
from tests.distributed.conftest import OneCell
from tests.runs.conftest import TINY, Pictures

STEPS = 5
CELL = {"space": "one-cell", "cells": 1, "sync_batch_norm": True}
OPTIONS = TINY | {"epochs": 1, "lr": 0.05, "arch_lr": 0.01, "tensorboard": False}


def search(options, train=None):
    """Learners by number, and what all processes know."""
    result = Search(**OPTIONS | options).run(train or Pictures(8 * STEPS, seed=0), Pictures(8 * STEPS, seed=1))
    learners = {k.number: {name: value.detach() for name, value in k.tensors.items()} for k in result.learners}
    times = ("seconds", "images_per_s")
    return learners, [{name: value for name, value in row.items() if name not in times} for row in result.history]


def assert_same(one, many, exact=False):
    """Every process has its learners, and the rows of all."""
    (learners, rows), tolerance = one, {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-10, "atol": 1e-12}
    assert set().union(*(mine for mine, _ in many)) == set(learners)
    for mine, theirs in many:
        for k, tensors in mine.items():
            for name, value in tensors.items():
                torch.testing.assert_close(value, learners[k][name], **tolerance, msg=lambda text, k=k, name=name: f"{name} of {k}: {text}")
        assert [row.keys() for row in rows] == [row.keys() for row in theirs]
        for row, other in zip(rows, theirs, strict=True):
            assert row.get("genotypes") == other.get("genotypes")
            for name in ("train_loss", "valid_loss", "valid_accuracy", "flow") if row["kind"] != "skip" else ():
                assert torch.tensor(row[name]).allclose(torch.tensor(other[name]), rtol=1e-9, equal_nan=True), name


@pytest.mark.parametrize("options", [{"order": "first"}, {}, {"learners": 3}], ids=str)
def test_learners_on_rows(in_processes, options):
    one = in_processes(1, search, options)[0]
    assert_same(one, in_processes(2, search, options | {"learner_rows": 2}), exact=True)


@pytest.mark.parametrize(
    ("size", "options"), [(2, {"learners": 1}), (4, {}), (4, {"order": "first", "learners": 3, "learner_rows": 2})], ids=str
)
def test_batches_along_columns(in_processes, size, options):
    one = in_processes(1, search, options | CELL | {"learner_rows": None})[0]
    assert_same(one, in_processes(size, search, options | CELL))


METHODS = [
    {"method": "plain"},
    {"method": "mkd"},
    {"method": "kdcl", "kdcl_rule": "general"},
    {"method": "okddip", "learners": 3},
    {"method": "one"},
    {"method": "afd"},
    {"method": "nes"},
    {"method": "2nd-mkd"},
    {"method": "2nd-kdcl"},
    {"method": "no-1st"},
    {"transfer": "pl"},
    {"transfer": "l2w"},
]


def search_all(many):
    results = []
    for options in many:
        grouped = (
            {} if options.get("method") in (None, "no-1st") and "transfer" not in options else {"group_size": None, "group_pairs": None}
        )
        results.append(search(CELL | {"sync_batch_norm": False} | options | grouped))
    return results


def test_every_method(in_processes):
    """Methods share the step's parts; two rows show what each adds to them."""
    one = in_processes(1, search_all, METHODS)[0]
    two = in_processes(2, search_all, [options | {"learner_rows": 2} for options in METHODS])
    for i, whole in enumerate(one):
        assert_same(whole, [process[i] for process in two])


def test_synchronised_cells_of_darts(in_processes):
    """Every kind of BatchNorm of a supernet with reductions, pools and drop-path draws, forward and backward."""
    one, two = in_processes(1, pass_through_darts)[0], in_processes(2, pass_through_darts)
    for got in two:
        for value, truth in zip(got, one, strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-12)


def pass_through_darts():
    supernet, random = Darts(channels=2, cells=3, classes=3, image_channels=1, drop_path=0.3), torch.Generator().manual_seed(0)
    weights, alphas = supernet.init_weights(random).requires_grad_(), supernet.init_alphas(random).requires_grad_()
    images, labels = torch.randn(4, 1, 9, 9, generator=random), torch.tensor([0, 1, 2, 1])
    with open_mesh(1, synchronised=True) as mesh:
        network = supernet.at(Moment(1, 2, 0, mesh.columns))
        output = network.forward(weights, alphas, mesh.columns.part(images))
        grads = torch.autograd.grad(F.cross_entropy(output.logits, labels) + output.embedding.square().mean(), [weights, alphas])
        return output.logits.detach(), *grads


def test_what_travels(in_processes):
    """Between learners O(groups) numbers a step; along columns the flat gradient once for each pass that has one."""
    pairs, learners, weights, alphas = 4, 2, OneCell(channels=2, cells=1, classes=3, image_channels=1).num_weights, 6 * 4
    for rows, columns in in_processes(4, one_step):
        lesson, cotangents, report = 1 + 2 * pairs, learners * (1 + 2 * pairs), 6
        assert rows["numbers"] == {"all_gather": lesson + report, "all_reduce": cotangents}
        assert rows["calls"] == {"all_gather": 2, "all_reduce": 1}
        forwards, backwards = sum(columns["forwards"].values()), columns["backwards"]
        assert columns["calls"] == {"all_gather": forwards, "all_reduce": sum(backwards.values())}
        perturbed = sum(count for name, count in backwards.items() if name.endswith("_perturbed"))
        most = (sum(backwards.values()) - perturbed) * (weights + alphas) + perturbed * alphas
        assert columns["numbers"]["all_reduce"] <= most


def one_step():
    random = torch.Generator().manual_seed(0)
    supernet = OneCell(channels=2, cells=1, classes=3, image_channels=1)
    images, labels = torch.randn(8, 1, 8, 8, generator=random), torch.randint(0, 3, (8,), generator=random)
    with open_mesh(2) as mesh:
        network = supernet.at(Moment(columns=mesh.columns))
        every = [[supernet.init_alphas(random), *(supernet.init_weights(random) for _ in "vw")] for _ in range(2)]
        learners = [Learner.create(network, *every[k], number=k) for k in mesh.rows.indices(1)]
        method = Pamkd(rows=mesh.rows)
        method.parts.teaching.transfer.pairs, method.parts.teaching.transfer.group_size = 4, 2
        batch = Batch(mesh.columns.part(images), labels)
        method.step(learners, batch, batch, lr=0.1, phase="search", seed=0)
        passes = {"forwards": method.passes.forwards, "backwards": method.passes.backwards}
        rows, columns = ({"calls": dict(part.group.calls), "numbers": dict(part.group.numbers)} for part in (mesh.rows, mesh.columns))
        return rows, columns | passes


def test_checkpoint_of_four_resumed_by_two(in_processes, tmp_path):
    """The first epoch by four processes, the second by two: the search of one process."""
    options = CELL | {"epochs": 2}
    one = in_processes(1, search, options)[0]
    in_processes(4, first_epoch, options | {"out": tmp_path / "run"})
    assert_same(one, in_processes(2, search, options | {"out": tmp_path / "run", "resume": True, "learner_rows": 1}))


def first_epoch(options):
    """The run, stopped by a signal that one process gets in the second epoch."""
    import os
    import signal

    from pamkd.runs.errors import Interrupted

    train, valid = Pictures(8 * STEPS, seed=0), Pictures(8 * STEPS, seed=1)
    calls = []

    class Stopping(Pictures):
        def __getitem__(self, index):
            calls.append(index)
            if len(calls) == 4 * STEPS + 5 and torch.distributed.get_rank() == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    train.__class__ = Stopping
    with pytest.raises(Interrupted, match="in epoch 2 step"):
        Search(**OPTIONS | options).run(train, valid)


def test_what_cannot_be_split_is_said(in_processes):
    assert in_processes(2, refused) == [4 * [True]] * 2


def refused():
    pictures = Pictures(24, seed=0), Pictures(24, seed=1)
    wrong = [
        ({"learners": 1, "batch_size": 9}, OptionError, "batch_size is 9: needed is a multiple of 2"),
        ({"method": "cream", "learners": 1, "group_size": None, "group_pairs": None, "board_images": 2}, OptionError, "method is 'cream'"),
        ({"hypergradient": "exact"}, OptionError, "hypergradient is 'exact'"),
        ({"learner_rows": 3, "learners": 3}, ValueError, "needed is a divisor of the processes"),
    ]
    found = []
    for options, error, message in wrong:
        with pytest.raises(error, match=message):
            Search(**OPTIONS | options).run(*pictures)
        found.append(True)
    return found


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="LOCAL_RANK is 1 and PyTorch finds 1 CUDA device here: start no more"):
        open_mesh(2, device="cuda").__enter__()


def test_a_step_that_diverges_in_one_process(in_processes, tmp_path):
    """All processes end with the same sentence, which names the learner that began, and one process takes the step again."""
    for name, size, options in (("rows", 2, {"learner_rows": 2, "learners": 3}), ("columns", 4, {"learner_rows": 2})):
        out = tmp_path / name
        said = in_processes(size, stopped, options | {"out": out})
        assert len(set(said)) == 1
        assert said[0].startswith("epoch 1 step 2: the loss of learner 1 in pass v_train is nan") and f"pamkd replay {out}" in said[0]
        text, diverged = in_processes(1, replay, ReplayConfig(out / BUNDLE))[0]
        assert diverged and "epoch 1 step 2 (search)" in text and "as in the search" in text
        assert ("not of the 2 parts" in text) == (name == "columns")


def test_skipping_keeps_processes_in_step(in_processes):
    """A picture of NaN, of which one column has the half without it: the search of one process that skips the same steps."""
    options = CELL | {"on_divergence": "skip", "batch_size": 4}
    one = in_processes(1, skipping, options)[0]
    assert [row["kind"] for row in one[1]].count("skip") == 1
    assert_same(one, in_processes(4, skipping, options | {"learner_rows": 2}))


def stopped(options):
    plant(2, 1)
    with pytest.raises(Diverged) as caught:
        search(CELL | {"sync_batch_norm": False} | options)
    return str(caught.value)


def plant(step, learner):
    """NaN in weights V of a learner just before the step of that number."""
    take = SearchState.take

    def planted(state, inputs):
        for mine in state.learners:
            if inputs.number == step and mine.number == learner:
                mine.v = mine.v.clone().index_fill(0, torch.tensor([7]), torch.nan)
        return take(state, inputs)

    SearchState.take = planted  # this process ends with the search


def skipping(options):
    train = Pictures(8 * STEPS, seed=0)
    train.tensors[0][3] = torch.nan
    return search(options, train)
