"""The collapse watch: the published rule on closed-form series, skip connections, stopping and keeping the last good genotype."""

from __future__ import annotations

import json
import math

import pytest
import torch

import pamkd
from pamkd.runs import search as search_module
from pamkd.runs.collapse import Collapse, judge, rising
from pamkd.runs.config import SearchConfig
from pamkd.runs.search import Search
from pamkd.spaces.darts import PRIMITIVES
from pamkd.spaces.genotype import named

EPOCHS = [*range(0, 50, 2), 49]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (lambda e: 0.1 * 1.05**e, (22, 10)),
        (lambda e: 0.2 if e < 30 else 0.4, (32, 20)),
        (lambda e: 0.1 + 0.01 * e, (22, 10)),
        (lambda e: 0.3, None),
        (lambda e: -0.1, None),
    ],
    ids=["growing", "jump", "line", "constant", "negative"],
)
def test_rule_of_the_eigenvalue(series, expected):
    values, found = [], None
    for epoch in EPOCHS:
        values.append((epoch, series(epoch)))
        good = rising(values)
        if good is not None:
            found = (epoch, good)
            break
    assert found == expected


def row(epoch, genotype, eigenvalues=None, *, entropy=2.0, candidates=PRIMITIVES):
    described = {"genotypes": [named("DARTS_V2").to_json(), genotype.to_json()], "entropy": [2.0, entropy]}
    operations = {name: [[PRIMITIVES] * 14, [candidates] * 14] for name in ("normal", "reduce")}
    return {"kind": "epoch", "epoch": epoch, "eigenvalues": eigenvalues, "operations": operations} | described


def all_skips():
    genes = tuple(("skip_connect", state) for state in (0, 1) * 4)
    return named("DARTS_V2")._replace(normal=genes)


def test_skip_connections():
    rows = [row(0, named("DARTS_V2")), row(1, named("PDARTS")), row(2, all_skips())]
    assert judge(rows[:2]) is None
    assert judge(rows) == Collapse("69 % of the operations of learner 1 are skip connections", 1)


def test_skip_connections_where_every_second_operation_is_one():
    """11 of 16 are no sign in S2, 13 are."""
    genotype, options = all_skips(), {"candidates": ("skip_connect", "sep_conv_3x3"), "entropy": 0.6}
    more = genotype._replace(reduce=(("skip_connect", 0),) * 3 + genotype.reduce[3:])
    assert genotype.skips == 11 and judge([row(0, genotype, **options)]) is None
    assert more.skips == 13 and "81 %" in judge([row(0, more, **options)]).reason


def test_mixtures_without_entropy():
    rows = [row(epoch, named("PDARTS"), entropy=entropy) for epoch, entropy in enumerate((2.0, 0.21, 0.2))]
    assert judge(rows[:2]) is None
    assert judge(rows) == Collapse("learner 1 can hardly change any more: its mixtures have 10 % of their largest entropy", 1)


def test_eigenvalues_of_any_learner():
    rows = [row(epoch, named("PDARTS"), [0.2, 0.1 * 1.05**epoch]) for epoch in range(0, 24, 2)]
    assert judge(rows[:-1]) is None
    assert judge(rows) == Collapse("the dominant eigenvalue of learner 1's architecture Hessian rises", 10)
    assert judge([*rows, row(23, named("PDARTS"))]) is None  # not measured in this epoch


def test_eigenvalues_of_another_stage_do_not_count():
    """What rises from one stage to the next is another network's."""
    rows = [row(epoch, named("PDARTS"), [0.2, 0.1]) for epoch in range(0, 24, 2)]
    rows += [row(epoch, named("PDARTS"), [0.2, 0.5], candidates=PRIMITIVES[:5], entropy=1.0) for epoch in range(24, 50, 2)]
    assert all(judge(rows[: i + 1]) is None for i in range(len(rows)))


def test_search_measures_and_goes_on(pictures, tiny):
    options = {"space": "nasbench201", "cells": 1, "learners": 1, "eigenvalue_every": 2, "epochs": 4}
    result = pamkd.Search(**tiny | options).run(*pictures)
    measured = [row["eigenvalues"] for row in result.history if row["kind"] == "epoch"]
    assert [values is None for values in measured] == [False, True, False, False]
    assert all(len(values) == 1 and math.isfinite(values[0]) for values in measured if values)


def test_search_stops_and_keeps_the_last_good_genotype(pictures, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(search_module, "judge", lambda rows: Collapse("told so", 0) if rows[-1]["epoch"] == 1 else None)
    options = tiny | {"epochs": 4, "stop_on_collapse": True, "tensorboard": False}
    result = Search(SearchConfig(out=tmp_path / "run", **options)).run(*pictures)
    first, last = (row for row in result.history if row["kind"] == "epoch")
    assert last["collapse"] == "told so" and first["genotypes"][result.learner] == result.genotype.to_json()
    assert json.loads((tmp_path / "run" / "genotype.json").read_text()) == result.genotype.to_json()
    again = Search(SearchConfig(out=tmp_path / "run", resume=True, **options)).run(*pictures)
    assert again.genotype == result.genotype and again.history == result.history
    assert torch.equal(again.learners[0].w, result.learners[0].w)
