"""Random search: what it draws, what it keeps, its run folder."""

from __future__ import annotations

import json

import pytest

from pamkd.runs.errors import OptionError
from pamkd.runs.evaluate_config import EvaluateConfig, find_genotype
from pamkd.runs.random_search import RandomConfig, draw_architectures, random_search, run
from pamkd.spaces import SPACES


@pytest.mark.parametrize("space", SPACES)
def test_draws_from_every_space(space):
    config = RandomConfig(space=space, samples=6)
    drawn = draw_architectures(config, 10, 3)
    assert len(set(map(str, drawn))) == 6 and drawn == draw_architectures(config, 10, 3)
    assert drawn != draw_architectures(RandomConfig(space=space, samples=6, seed=1), 10, 3)


def test_keeps_the_best(pictures):
    config = RandomConfig(space="nasbench201", samples=2, epochs=1, channels=2, cells=1, batch_size=8)
    result = random_search(config, *pictures, classes=3, image_channels=1)
    assert result.valid_error == min(error for _, error in result.tried) and (result.genotype, result.valid_error) in result.tried


def test_run_folder(tmp_path):
    config, result = run(RandomConfig(samples=1, epochs=1, channels=2, cells=3, batch_size=256, out=tmp_path / "run"))
    assert find_genotype(EvaluateConfig(run=config.out)) == result.genotype
    assert len(json.loads((config.out / "result.json").read_text())["tried"]) == 1
    with pytest.raises(ValueError, match="already holds a run: replace it with --overwrite, or"):
        run(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "x"}, "one of darts"),
        ({"samples": 0}, "1 or more"),
        ({"train_portion": 1.0}, "between 0 and 1"),
        ({"batch_size": 1}, "batch_size is 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(OptionError, match=message):
        RandomConfig(**options)
