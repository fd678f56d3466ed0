"""Every search space through a search of two steps or more, two learners, stopped and continued."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import Interrupted, OptionError
from pamkd.runs.search import Search
from pamkd.spaces import SPACES
from tests.runs.test_search import InterruptedAt, assert_same

# What a space needs to be small: more channels for its parts, epochs for its stages, other options.
OPTIONS = {"pcdarts": {"channels": 4}}


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
    ],
)
def test_foreign_options_of_a_space(options, message, pictures, tiny):
    with pytest.raises(OptionError, match=message):
        Search(**tiny | options).run(*pictures)


def test_options_of_a_space_reach_it(pictures, tiny):
    result = Search(**tiny | {"space": "darts-minus", "space_options": ("space=s2", "beta=0.5"), "epochs": 1}).run(*pictures)
    network = result.learners[0].network
    assert (network.space, network.beta, network.moment.epochs) == ("s2", 0.5, 1)
