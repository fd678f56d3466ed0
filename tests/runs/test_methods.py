"""Every method through a whole search: it runs, keeps what it must in its checkpoint, and is told what it cannot do."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from pamkd.data import halves, load_dataset
from pamkd.methods import METHODS
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import Interrupted, OptionError
from pamkd.runs.search import Search
from pamkd.transfer import TRANSFERS
from tests.runs.interrupted import InterruptedAt

TINY = {"epochs": 2, "channels": 2, "cells": 3, "batch_size": 8, "arch_lr": 0.05, "log_every": 1, "tensorboard": False}
OPTIONS: dict[str, list[dict]] = {
    "pamkd": [{"group_size": 2, "group_pairs": 4}, *({"transfer": name} for name in TRANSFERS if name != "grs")],
    "kdcl": [{"kdcl_rule": rule} for rule in ("naive", "linear", "minlogit", "general")],
    "okddip": [{"learners": 3}, {"okddip_leader": False}],
    "plain": [{"learners": 1}],
    "cream": [{"learners": 1, "cream_start": 0, "board_size": 3, "meta_every": 2, "meta_lr": 1.0}],
    "2nd-kdcl": [{"kdcl_rule": "general"}],
    "no-1st": [{"group_size": 2}],
}
CASES = {}
for name in METHODS:
    for options in OPTIONS.get(name, [{}]):
        CASES[" ".join([name, *(f"{option}={value}" for option, value in options.items())])] = {"method": name} | options


@pytest.mark.parametrize("case", CASES)
def test_interrupted_search_goes_on_bit_for_bit(case, pictures, tmp_path):
    whole = Search(SearchConfig(out=tmp_path / "whole", **TINY | CASES[case])).run(*pictures)
    cut = SearchConfig(out=tmp_path / "cut", **TINY | CASES[case])
    with pytest.raises(Interrupted):
        Search(cut).run(*pictures, augment=InterruptedAt(9, signal.SIGTERM))
    rest = Search(SearchConfig(out=tmp_path / "cut", resume=True, **TINY | CASES[case])).run(*pictures)
    for one, other in zip(whole.learners, rest.learners, strict=True):
        for name, tensor in one.tensors.items():
            assert torch.equal(tensor, getattr(other, name)), name
        assert one.v.numel() == (one.w.numel() if METHODS[CASES[case]["method"]].two_sets else 0)
    best = 2 if case == "okddip learners=3" else min(range(len(whole.learners)), key=whole.valid_loss.__getitem__)
    assert whole.genotype == rest.genotype and whole.learner == rest.learner == best


def test_methods_start_from_the_same_weights(pictures):
    """Comparisons are paired: the same seed gives every method the same W, A and batches."""
    losses = {}
    for name in ("plain", "mkd", "pamkd"):
        options = TINY | {"epochs": 1, "method": name} | ({"group_size": 2} if name == "pamkd" else {})
        losses[name] = Search(**options).run(*pictures).history[0]["train_loss"]
    assert losses["plain"] == losses["mkd"] == losses["pamkd"]


def test_flow_says_who_taught_whom(pictures):
    rows = Search(**TINY | {"method": "mkd", "learners": 3}).run(*pictures).history
    for row in rows:
        assert row["flow"] == [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]


def test_without_the_first_stage_teaching_ends_and_with_it_it_does_not():
    """Short searches on 64 handwritten digits and 64 to validate on, which leave the learners apart (Sec. 4.8, docs/results.md)."""
    data = load_dataset("digits", train=True)
    parts = [data.subset(rows[:64]) for rows in halves(data.labels, 0)]
    options = {"space": "nasbench201", "channels": 4, "cells": 1, "epochs": 40, "batch_size": 64, "arch_lr": 6e-3, "order": "first"}
    gaps = {}
    for method in ("no-1st", "pamkd"):
        result = Search(method=method, distill_weight=1.0, log_every=1, **options).run(*parts)
        gaps[method] = [max(map(max, row["flow"])) for row in result.history if row["kind"] == "epoch"]
    begin, end = ({name: sum(row[part]) / 10 for name, row in gaps.items()} for part in (slice(10), slice(-10, None)))
    assert end["no-1st"] < begin["no-1st"] / 3, "the losses by which learners may teach come together"
    assert end["pamkd"] > 2 * end["no-1st"] and end["pamkd"] > begin["pamkd"] / 2, "with V for measuring they do not"


def test_nes_says_what_forward_selection_would_take(pictures, tmp_path):
    result = Search(SearchConfig(out=tmp_path / "run", **TINY | {"method": "nes", "epochs": 1})).run(*pictures)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["forward_selection"][0] == result.learner and sorted(written["forward_selection"]) == [0, 1]
    assert written["ensemble_loss"][0] == pytest.approx(min(result.valid_loss), rel=1e-5)


SPACES = {
    "pcdarts": {"channels": 4},
    "pdarts": {"epochs": 3, "space_options": ("growth=1",)},
    "prdarts": {},
    "drnas": {"epochs": 2, "channels": 4, "space_options": ("partials=[2,1]",)},
    "nasbench201": {"cells": 1},
    "s2": {},
}


@pytest.mark.parametrize(
    ("method", "space"),
    [
        ("plain", "prdarts"),
        ("mkd", "pcdarts"),
        ("kdcl", "pdarts"),
        ("okddip", "pdarts"),
        ("one", "nasbench201"),
        ("one", "drnas"),
        ("afd", "s2"),
        ("afd", "drnas"),
        ("nes", "pcdarts"),
        ("cream", "pdarts"),
        ("cream", "drnas"),
        ("2nd-mkd", "drnas"),
        ("2nd-kdcl", "pdarts"),
        ("no-1st", "prdarts"),
    ],
)
def test_methods_search_other_spaces(method, space, pictures):
    options = {"okddip": {"learners": 3}, "no-1st": {"group_size": 2}, "cream": {"learners": 1, "cream_start": 0}}.get(method, {})
    result = Search(**TINY | {"method": method, "space": space, "epochs": 1, "order": "first"} | SPACES[space] | options).run(*pictures)
    assert all(0 < loss < 10 for loss in result.valid_loss)


def test_a_transfer_of_weights_cannot_follow_stages(pictures):
    with pytest.raises(OptionError, match="transfer is 'l2w': needed is another one for space pdarts: learners differ in size"):
        Search(**TINY | SPACES["pdarts"] | {"transfer": "l2w", "space": "pdarts"}).run(*pictures)
