"""Presets of searches and evaluations: every one builds its network, with the counts and schedules of its paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.evaluate_presets import PRESETS as EVALUATIONS
from pamkd.runs.evaluate_presets import arguments, preset_of
from pamkd.runs.lookup import LookupConfig, lookup
from pamkd.runs.options import save_config
from pamkd.runs.schedule import linear
from pamkd.runs.search import build_supernet
from pamkd.runs.search_presets import PRESETS as SEARCHES
from pamkd.spaces.topology import Topology
from pamkd.trilevel.sgd import SGD

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "digits": 10, "folder": 120}
WEIGHTS = {
    "darts-cifar10": 1_930_618,
    "pdarts-cifar10": 1_275_834,
    "pdarts-cifar100": 1_298_964,
    "pcdarts-cifar10": 299_578,
    "pcdarts-cifar100": 322_708,
    "pcdarts-imagenet": 956_512,
    "prdarts-cifar10": 1_323_002,
    "drnas-cifar10": 2_221_750,
    "drnas-cifar100": 2_273_680,
    "drnas-imagenet": 3_642_896,
    "nasbench201-cifar10": 1_686_106,
    "nasbench201-imagenet16-120": 1_693_256,
    "drnas-nasbench201-cifar100": 1_691_956,
    "drnas-nasbench201-progressive-cifar10": 174_106,
    "s1-cifar10": 405_146,
    "s4-cifar10": 624_506,
    "darts-minus-cifar10": 1_971_578,
}


@pytest.mark.parametrize("name", SEARCHES)
def test_search_presets(name):
    config = SEARCHES[name]
    supernet = build_supernet(config, CLASSES[config.dataset], 3)
    assert name not in WEIGHTS or supernet.layout.count == WEIGHTS[name]
    assert config.phase(config.epochs // supernet.stages - 1) == "search"


def test_lambda_is_the_papers():
    weights = {"pcdarts-cifar100": 0.1, "pdarts-cifar10": 1.0, "pdarts-cifar100": 1.0}
    assert {name: SEARCHES[name].distill_weight for name in weights} == weights


@pytest.mark.parametrize(
    ("space", "dataset", "preset"),
    [
        ("pcdarts", "cifar10", "pcdarts-cifar10"),
        ("pcdarts", "imagenet", "pcdarts-imagenet"),
        ("s3", "imagenet", "darts-imagenet"),
        ("drnas-nasbench201", "cifar100", "nasbench201-cifar100"),
        ("nasbench201", "digits", "nasbench201-digits"),
        ("prdarts", "digits", "digits"),
        ("darts", "folder", None),
    ],
)
def test_evaluation_preset_of_a_space(space, dataset, preset):
    assert preset_of(space, dataset) == preset


def test_the_run_says_which_preset(tmp_path):
    save_config(SEARCHES["pdarts-cifar10"], tmp_path / "config.yaml")
    assert arguments(["--run", str(tmp_path)])[-4:-2] == ["--preset", "pdarts-cifar10"]
    words = arguments(["--genotype", str(Topology(("none",) * 6))])
    assert words[:4] == ["--out", "runs/cell-digits", "--preset", "nasbench201-digits"]


def test_linear_schedule():
    assert [linear(0.5, epoch, 250) for epoch in (0, 100, 244)] == pytest.approx([0.5, 0.5 * 145 / 245, 0.5 * 1 / 245])
    assert [linear(0.5, epoch, 250) for epoch in (245, 249)] == pytest.approx([0.5 / 245, 0.5 / (5 * 245)])
    config = EVALUATIONS["pcdarts-imagenet"]
    assert [config.learning_rate(epoch) for epoch in (0, 4, 5)] == pytest.approx([0.1, 0.5, 0.5 * 240 / 245])


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_presets(name):
    config = EVALUATIONS[name]
    assert isinstance(config, EvaluateConfig) and config.learning_rate(config.epochs - 1) > 0
    assert config.dataset == "digits" or config.data == Path("data")


def test_nesterov_equals_torch():
    weights = torch.randn(9, dtype=torch.float64)
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=3e-4, nesterov=True)
    buffer = torch.zeros_like(weights)
    for _ in range(3):
        grad = torch.randn(9, dtype=torch.float64)
        parameter.grad = grad.clone()
        optimizer.step()
        gradient = grad.clone().requires_grad_()
        new, buffer, coefficient = SGD(0.9, 3e-4, 0.0, True).update(weights, buffer, gradient, 0.1)
        assert torch.autograd.grad(new.sum(), gradient)[0] == pytest.approx(-0.1 * coefficient.item())
        weights, buffer = new.detach(), buffer.detach()
        torch.testing.assert_close(weights, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_lookup(tmp_path):
    cell = str(Topology(("nor_conv_3x3",) * 6))
    (tmp_path / "table.csv").write_text(f"architecture,cifar10_test\n{cell},88.5\n")
    text = lookup(LookupConfig(tmp_path / "table.csv", genotype=cell))
    assert f"cell: {cell}" in text and "88.50 %  rank 1 of 1" in text
    with pytest.raises(ValueError, match="is no cell of NAS-Bench-201"):
        lookup(LookupConfig(tmp_path / "table.csv", genotype="DARTS_V2"))
    with pytest.raises(ValueError, match="there is no table"):
        lookup(LookupConfig(tmp_path / "none", genotype=cell))
