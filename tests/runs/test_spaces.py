"""Every search space through a search of two steps or more, two learners, stopped and continued."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from pamkd.report import write_report
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import Interrupted, OptionError
from pamkd.runs.evaluate import Evaluation
from pamkd.runs.evaluate_config import EvaluateConfig, read_genotype
from pamkd.runs.export import load_network, weights_name
from pamkd.runs.search import Search
from pamkd.spaces import SPACES
from tests.runs.test_search import InterruptedAt, assert_same

# What a space needs to be small: more channels for its parts, epochs for its stages, other options.
OPTIONS = {
    "pcdarts": {"channels": 4},
    "pdarts": {"epochs": 3, "space_options": ("growth=1",)},
    "drnas": {"channels": 4, "space_options": ("partials=[2,1]",)},
    "drnas-nasbench201": {"channels": 4, "cells": 1, "space_options": ("partials=[4,2]", "keep=[3]", "kl=0.01")},
    "nasbench201": {"cells": 1},
}


def options_of(space, tiny):
    return tiny | {"space": space} | OPTIONS.get(space, {})


@pytest.mark.parametrize("space", SPACES)
def test_search_and_resume(space, pictures, tiny, tmp_path):
    config = SearchConfig(out=tmp_path / "whole", tensorboard=False, **options_of(space, tiny))
    whole = Search(config).run(*pictures)
    assert all(loss > 0 for loss in whole.valid_loss) and len(whole.genotypes) == 2
    assert min((learner.alphas - learner.network.init_alphas(torch.Generator())).abs().max() for learner in whole.learners) > 0.02
    cut = dataclasses.replace(config, out=tmp_path / "cut")
    calls = 2 * 3 * config.epochs - 3  # in the last epoch, the second of its three steps
    with pytest.raises(Interrupted):
        Search(cut).run(*pictures, augment=InterruptedAt(calls, 15))
    assert_same(whole, Search(dataclasses.replace(cut, resume=True)).run(*pictures))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space_options": ("partial",)}, "needed is words such as partial=2"),
        ({"space_options": ("depth=3",)}, r"space darts does not take them \(.*'depth'\)"),
        ({"space_options": ("partials=: :",)}, "needed are values such as 2 or .6,4. .while parsing"),
    ],
)
def test_foreign_options_of_a_space(options, message, pictures, tiny):
    with pytest.raises(OptionError, match=message):
        Search(**tiny | options).run(*pictures)


def test_options_of_a_space_reach_it(pictures, tiny):
    result = Search(**tiny | {"space": "darts-minus", "space_options": ("space=s2", "beta=0.5"), "epochs": 1}).run(*pictures)
    network = result.learners[0].network
    assert (network.space, network.beta, network.moment.epochs) == ("s2", 0.5, 1)


@pytest.mark.parametrize(("space", "options"), [("s4", {}), ("pcdarts", {}), ("nasbench201", {"cells": 1})])
def test_what_it_finds_trains_by_itself(space, options, pictures, tiny, tmp_path):
    """Search, evaluation, report and export of one run folder."""
    config = SearchConfig(out=tmp_path / "run", tensorboard=False, **options_of(space, tiny) | options | {"epochs": 1})
    found = Search(config).run(*pictures).genotype
    evaluation = EvaluateConfig(
        out=tmp_path / "run" / "evaluation", channels=4, cells=3, epochs=1, batch_size=8, auxiliary=0.0, drop_path=0.0
    )
    result = Evaluation(evaluation).run(read_genotype(tmp_path / "run" / "genotype.json"), *pictures)
    assert result.genotype == found and result.parameters > 0 and 0 <= result.test_error[0] <= 1
    text = write_report(tmp_path / "run").read_text()
    assert "Entropy of the architecture weights" in text and found.describe().splitlines()[0][:20] in text
    network, _ = load_network(tmp_path / "run" / "evaluation" / weights_name(0))
    assert network.genotype == found


def test_a_space_of_ones_own(pictures, tiny):
    """The example of docs/spaces.md, as it stands there."""
    text = (Path(__file__).parents[2] / "docs" / "spaces.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    before = dict(SPACES)
    try:
        exec(code, {"__name__": "example"})
        (name,) = set(SPACES) - set(before)
        result = Search(**tiny | {"space": name}).run(*pictures)
        assert {op for op, _ in result.genotype.normal} <= {"skip_connect", "sep_conv_3x3", "dil_conv_3x3"}
        assert result.learners[0].alphas.shape == (2, 14, 4)
    finally:
        for name in set(SPACES) - set(before):
            del SPACES[name]
