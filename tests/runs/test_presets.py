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
from pamkd.runs.schedule import cosine, linear
from pamkd.runs.search import build_supernet
from pamkd.runs.search_presets import PRESETS as SEARCHES
from pamkd.spaces.topology import Topology
from pamkd.trilevel.sgd import SGD

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "digits": 10, "imagenet16-120": 120}
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
    "drnas-nasbench201-progressive-cifar100": 179_956,
    "drnas-nasbench201-progressive-imagenet16-120": 181_256,
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
        ("drnas-nasbench201", "imagenet16-120", "nasbench201-imagenet16-120"),
        ("prdarts", "digits", "digits"),
        ("darts", "folder", None),
    ],
)
def test_evaluation_preset_of_a_space(space, dataset, preset):
    assert preset_of(space, dataset) == preset


def test_the_run_says_which_preset(tmp_path):
    save_config(SEARCHES["pdarts-cifar10"], tmp_path / "config.yaml")
    assert arguments(["--run", str(tmp_path)])[-4:-2] == ["--preset", "pdarts-cifar10"]
    (tmp_path / "numbers.yaml").write_text("run: 5\ngenotype: 7\n")  # names all the same
    assert arguments(["--config", str(tmp_path / "numbers.yaml")])[:2] == ["--out", "5/evaluation"]
    words = arguments(["--genotype", str(Topology(("none",) * 6))])
    assert words[:4] == ["--out", "runs/cell-digits", "--preset", "nasbench201-digits"]


@pytest.mark.parametrize(
    ("genotype", "dataset", "preset"),
    [
        ("DARTS_V2", "cifar10", "darts-cifar10"),
        ("PC_DARTS_image", "imagenet", "pcdarts-imagenet"),
        ("PDARTS", "cifar100", "pdarts-cifar100"),
        ("DrNAS_cifar10", "cifar10", "drnas-cifar10"),
        ("cifar10_s0_0", "cifar10", "darts-minus-cifar10"),
        ("RobustDARTS_S1_wd3e-4_1", "cifar100", "s1-cifar100"),
        ("NASNet", "cifar10", "darts-cifar10"),
    ],
)
def test_a_published_genotype_says_which_preset(genotype, dataset, preset):
    words = arguments(["--genotype", genotype, "--dataset", dataset])
    assert words[words.index("--preset") + 1] == preset


# space and dataset: epochs, batch, lr, lr_min, weight decay, architecture's lr, warm-up, order, Nesterov's momentum, cutout
SEARCHED = {
    "darts-cifar10": (50, 64, 0.025, 0.001, 3e-4, 3e-4, 0, "second", False, 0),
    "pdarts-cifar10": (75, 96, 0.025, 0.0, 3e-4, 6e-4, 10, "first", False, 0),
    "pcdarts-cifar10": (50, 256, 0.1, 0.0, 3e-4, 6e-4, 15, "first", False, 0),
    "pcdarts-imagenet": (50, 1024, 0.5, 0.0, 3e-4, 6e-3, 35, "first", False, 0),
    "prdarts-cifar10": (200, 250, 0.025, 0.001, 5e-4, 3e-4, 0, "first", True, 0),
    "nasbench201-cifar10": (50, 64, 0.025, 0.001, 5e-4, 3e-4, 0, "first", True, 0),
    "drnas-nasbench201-cifar10": (100, 64, 0.025, 0.001, 3e-4, 3e-4, 0, "first", False, 0),
    "drnas-nasbench201-progressive-cifar100": (100, 64, 0.025, 0.001, 3e-4, 3e-4, 10, "first", False, 0),
    "drnas-cifar10": (50, 64, 0.1, 0.0, 3e-4, 6e-4, 10, "first", False, 0),
    "drnas-imagenet": (50, 512, 0.5, 0.0, 3e-4, 6e-3, 10, "first", False, 0),
    "s2-cifar10": (50, 64, 0.025, 0.001, 3e-4, 3e-4, 0, "second", False, 0),
    "darts-minus-cifar100": (50, 64, 0.025, 0.001, 3e-4, 3e-4, 0, "first", False, 0),
}


@pytest.mark.parametrize("name", SEARCHED)
def test_the_papers_searches(name):
    config = SEARCHES[name]
    schedule = (config.epochs, config.batch_size, config.lr, config.lr_min, config.weight_decay, config.arch_lr, config.warmup_w_epochs)
    assert (*schedule, config.order, config.nesterov, config.cutout) == SEARCHED[name]
    assert (config.momentum, config.clip, config.arch_weight_decay, config.eigenvalue_every) == (0.9, 5.0, 1e-3, 0)
    assert config.arch_clip == (5.0 if "pdarts" in name or "imagenet" in name else 0.0)
    assert config.lr_warmup_epochs == (5 if "imagenet" in name else 0)


# space and dataset: channels, cells, epochs, batch, lr, weight decay, drop-path, cutout, auxiliary head, label smoothing
EVALUATED = {
    "darts-cifar10": (36, 20, 600, 96, 0.025, 3e-4, 0.2, 16, 0.4, 0.0),
    "darts-imagenet": (48, 14, 250, 128, 0.1, 3e-5, 0.0, 0, 0.4, 0.1),
    "pdarts-cifar100": (36, 20, 600, 128, 0.025, 3e-4, 0.3, 16, 0.4, 0.0),
    "pdarts-imagenet": (48, 14, 250, 256, 0.1, 3e-5, 0.0, 0, 0.4, 0.1),
    "pcdarts-cifar10": (36, 20, 600, 96, 0.025, 3e-4, 0.3, 16, 0.4, 0.0),
    "pcdarts-imagenet": (48, 14, 250, 1024, 0.5, 3e-5, 0.0, 0, 0.4, 0.1),
    "prdarts-cifar10": (36, 20, 600, 128, 0.025, 3e-4, 0.3, 16, 0.0, 0.0),
    "prdarts-cifar100": (36, 20, 600, 128, 0.025, 3e-4, 0.4, 16, 0.0, 0.0),
    "prdarts-imagenet": (48, 14, 250, 256, 0.1, 3e-5, 0.0, 0, 0.4, 0.2),
    "drnas-cifar10": (36, 20, 600, 64, 0.025, 3e-4, 0.3, 16, 0.4, 0.0),
    "drnas-imagenet": (48, 14, 250, 768, 0.5, 3e-5, 0.0, 0, 0.4, 0.1),
    "darts-minus-cifar10": (36, 20, 600, 96, 0.025, 3e-4, 0.2, 16, 0.4, 0.0),
    "darts-minus-cifar100": (16, 8, 600, 96, 0.025, 3e-4, 0.2, 16, 0.4, 0.0),
    "darts-minus-imagenet": (48, 14, 250, 256, 0.1, 3e-5, 0.0, 0, 0.4, 0.1),
    "s1-cifar10": (36, 20, 600, 96, 0.025, 3e-4, 0.2, 16, 0.4, 0.0),
    "s3-cifar100": (16, 8, 600, 96, 0.025, 3e-4, 0.2, 16, 0.4, 0.0),
    "s4-cifar10": (16, 20, 600, 96, 0.025, 3e-4, 0.2, 16, 0.4, 0.0),
    "nasbench201-cifar10": (16, 5, 200, 256, 0.1, 5e-4, 0.0, 0, 0.0, 0.0),
}


@pytest.mark.parametrize("name", EVALUATED)
def test_the_papers_evaluations(name):
    config = EVALUATIONS[name]
    size = (config.channels, config.cells, config.epochs, config.batch_size, config.lr, config.weight_decay)
    assert (*size, config.drop_path, config.cutout, config.auxiliary, config.label_smoothing) == EVALUATED[name]
    space = name.rsplit("-", 1)[0]
    assert (config.nesterov, config.clip) == ((True, 0.0) if space == "nasbench201" else (False, 5.0))
    linear_or_not = "exponential" if space == "darts" else "linear"
    assert config.schedule == (linear_or_not if "imagenet" in name else "cosine") and config.momentum == 0.9
    if "imagenet" in name:
        assert (config.auxiliary_norm is True) == (space in ("pdarts", "prdarts", "darts-minus"))


def test_cosine_schedule():
    assert [cosine(0.025, 0.001, epoch, 50) for epoch in (0, 1, 25, 49)] == pytest.approx([0.025, 0.0249763, 0.013, 0.00102368], abs=5e-8)


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
    for name in ("none", "none.csv"):
        with pytest.raises(ValueError, match=f"there is no table .*{name}: give a CSV file"):
            lookup(LookupConfig(tmp_path / name, genotype=cell))
