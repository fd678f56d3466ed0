"""Every method through a whole search: it runs, keeps what it must in its checkpoint, and is told what it cannot do."""

from __future__ import annotations

import json
import signal

import pytest
import torch

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
        ("2nd-mkd", "drnas"),
        ("2nd-kdcl", "pdarts"),
        ("no-1st", "prdarts"),
    ],
)
def test_methods_search_other_spaces(method, space, pictures):
    options = {"okddip": {"learners": 3}, "no-1st": {"group_size": 2}}.get(method, {})
    result = Search(**TINY | {"method": method, "space": space, "epochs": 1, "order": "first"} | SPACES[space] | options).run(*pictures)
    assert all(0 < loss < 10 for loss in result.valid_loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cream", "learners": 1, "space": "pcdarts"}, "method cream draws single paths and needs a space of softmax mixtures"),
        ({"transfer": "l2w", "space": "pdarts"}, "transfer is 'l2w': needed is another one for space pdarts: learners differ in size"),
    ],
)
def test_what_a_method_cannot_do_is_one_sentence(options, message, pictures):
    with pytest.raises((ValueError, OptionError), match=message):
        Search(**TINY | SPACES[options["space"]] | options).run(*pictures)
