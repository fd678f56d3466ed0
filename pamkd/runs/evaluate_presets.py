"""Evaluations with the settings of the papers, and what the command line leaves to the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.options import CONFIG_NAME, read_config, value_of

# DARTS (Liu et al. 2019), the settings under which the paper compares: 600 epochs of 36 channels and 20 cells.
_CIFAR10 = EvaluateConfig(dataset="cifar10", data=Path("data"), crop_padding=4)
_IMAGENET = EvaluateConfig(
    dataset="imagenet",
    data=Path("data"),
    stem="imagenet",
    channels=48,
    cells=14,
    epochs=250,
    batch_size=128,
    lr=0.1,
    schedule="exponential",
    weight_decay=3e-5,
    drop_path=0.0,
    label_smoothing=0.1,
    cutout=0,
)
_LINEAR = replace(_IMAGENET, schedule="linear", batch_size=256, auxiliary_norm=True)
_LARGE_BATCH = replace(_IMAGENET, schedule="linear", lr=0.5, lr_warmup_epochs=5)
_NASBENCH = EvaluateConfig(
    dataset="cifar10",
    data=Path("data"),
    crop_padding=4,
    channels=16,
    cells=5,
    epochs=200,
    batch_size=256,
    lr=0.1,
    nesterov=True,
    weight_decay=5e-4,
    clip=0.0,
    auxiliary=0.0,
    drop_path=0.0,
    cutout=0,
)
# What the papers' evaluations on CIFAR change of DARTS's.
_CIFAR: dict[str, dict[str, Any]] = {
    "darts": {},
    "pdarts": {"batch_size": 128, "drop_path": 0.3},
    "pcdarts": {"drop_path": 0.3},
    "prdarts": {"batch_size": 128, "drop_path": 0.3, "auxiliary": 0.0},
    "drnas": {"batch_size": 64, "drop_path": 0.3},
    "darts-minus": {},
    "s1": {},
    "s2": {"channels": 16},
    "s3": {},
    "s4": {"channels": 16},
}
# On CIFAR-100: RobustDARTS and DARTS- train 16 channels and 8 cells, PR-DARTS drops more paths.
_CIFAR100: dict[str, dict[str, Any]] = {
    **{space: {"channels": 16, "cells": 8} for space in ("s1", "s2", "s3", "s4", "darts-minus")},
    "prdarts": {"drop_path": 0.4},
}
_DIGITS = EvaluateConfig(
    channels=8,
    cells=4,
    epochs=20,
    batch_size=64,
    lr=0.05,
    auxiliary=0.0,
    drop_path=0.0,
    label_smoothing=0.1,
    crop_padding=1,
    cutout=4,
)

PRESETS: dict[str, EvaluateConfig] = {
    **{f"{space}-cifar10": replace(_CIFAR10, **changes) for space, changes in _CIFAR.items()},
    **{
        f"{space}-cifar100": replace(_CIFAR10, dataset="cifar100", **changes | _CIFAR100.get(space, {}))
        for space, changes in _CIFAR.items()
    },
    "darts-imagenet": _IMAGENET,
    "pdarts-imagenet": _LINEAR,
    "pcdarts-imagenet": replace(_LARGE_BATCH, batch_size=1024),
    "prdarts-imagenet": replace(_LINEAR, label_smoothing=0.2),
    "drnas-imagenet": replace(_LARGE_BATCH, batch_size=768),
    "darts-minus-imagenet": _LINEAR,
    "nasbench201-cifar10": _NASBENCH,
    "nasbench201-cifar100": replace(_NASBENCH, dataset="cifar100"),
    "nasbench201-imagenet16-120": replace(_NASBENCH, dataset="imagenet16-120", crop_padding=2),
    # Half a minute on two cores.
    "digits": _DIGITS,
    "nasbench201-digits": replace(_DIGITS, cells=1),
}

# The space of published genotypes whose names begin so; of others DARTS's.
_SPACES = {
    "|": "nasbench201",
    "PDARTS": "pdarts",
    "PC_DARTS": "pcdarts",
    "PRDARTS": "prdarts",
    "DrNAS": "drnas",
    "cifar10_s": "darts-minus",
    "cifar100_s": "darts-minus",
    "RobustDARTS_S1": "s1",
}


def preset_of(space: str, dataset: str) -> str | None:
    """The preset that an evaluation of a cell of this space takes where none is named: the space's own, or DARTS's."""
    space = "nasbench201" if space == "drnas-nasbench201" else space
    return next((name for name in (f"{space}-{dataset}", f"darts-{dataset}", dataset) if name in PRESETS), None)


def arguments(argv: Sequence[str]) -> list[str]:
    """The words of a command line, before them those that `--run`, `--genotype` and the dataset imply.

    From the run: dataset, its place and image size; the output folder; and the preset of the space (of the run or of a published
    genotype) and the dataset. What the command line or its `--config` file says itself is left alone, and with `--resume` all but the
    folder.
    """
    argv = list(argv)
    run, file = value_of(argv, "--run"), value_of(argv, "--config")
    said = read_config(Path(file)) if file is not None else {}

    def given(option: str) -> Any:
        return value_of(argv, "--" + option.replace("_", "-")) or said.get(option)

    run = run or (None if said.get("run") is None else str(said["run"]))
    implied: list[str] = []
    dataset = given("dataset")
    space = next((space for begin, space in _SPACES.items() if str(given("genotype")).startswith(begin)), "darts")
    if run is not None and "--resume" not in argv and (Path(run) / CONFIG_NAME).is_file():
        saved = read_config(Path(run) / CONFIG_NAME)
        space = saved.get("space", space)
        if dataset in (None, saved.get("dataset")):
            dataset = saved.get("dataset")
            for option in ("dataset", "data", "image_size"):
                if saved.get(option) is not None and not given(option):
                    implied += ["--" + option.replace("_", "-"), str(saved[option])]
    if not given("out") and (run is not None or given("genotype")):
        name = "cell" if space == "nasbench201" else Path(str(given("genotype") or "")).stem
        out = Path(run) / "evaluation" if run is not None else Path("runs") / f"{name}-{dataset or 'digits'}"
        implied += ["--out", str(out)]
    preset = preset_of(space, dataset or "digits")
    if preset and file is None and "--resume" not in argv and not given("preset"):
        implied += ["--preset", preset]
    return implied + argv
