"""Random search: architectures drawn from a space, each trained for a short time by itself, the best kept. The honest baseline."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from pamkd.data import Augmentation, generator
from pamkd.runs.config import OneOfSpaces, SearchConfig
from pamkd.runs.evaluate import Evaluation
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.folder import open_folder
from pamkd.runs.logs import write_json
from pamkd.runs.numerics import check_device
from pamkd.runs.options import FolderOptions
from pamkd.runs.search import build_supernet
from pamkd.runs.search_data import load_halves
from pamkd.spaces import SPACES
from pamkd.spaces.architecture import Architecture


@dataclass(frozen=True)
class RandomConfig(FolderOptions):
    """Draw architectures at random, train each for a short time, keep the one with the fewest validation errors.

    What is stopped begins anew.
    """

    space: OneOfSpaces = "darts"
    space_options: tuple[str, ...] = ()
    """What a space takes of its own, as name=value."""
    samples: int = 8
    """Architectures that are drawn and trained."""
    epochs: int = 5
    """Epochs of each training."""
    channels: int = 16
    """Channels of the first cell in these trainings."""
    cells: int = 8
    """Cells of the network (nasbench201: of each of its three stages)."""
    batch_size: int = 64
    """Images per batch."""
    lr: float = 0.025
    """Learning rate at the start; falls to 0 along a cosine."""
    train_portion: float = 0.5
    """Share of the training set that trains; the rest validates, as in a search."""
    seed: int = 0
    """Everything random is a function of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.space in SPACES, "space", f"one of {', '.join(SPACES)}")
        self.require(self.samples >= 1, "samples", "1 or more")
        self.require(0 < self.train_portion < 1, "train_portion", "a number between 0 and 1")
        training_of(self)  # whose options are checked before an earlier run is overwritten


@dataclass(frozen=True)
class RandomResult:
    """The best architecture, and every one that was drawn with its share of validation errors."""

    genotype: Architecture
    valid_error: float
    tried: list[tuple[Architecture, float]]


def training_of(config: RandomConfig) -> EvaluateConfig:
    """How each drawn architecture is trained."""
    return EvaluateConfig(
        channels=config.channels,
        cells=config.cells,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        auxiliary=0.0,
        drop_path=0.0,
        cutout=0,
        seeds=(config.seed,),
        device=config.device,
        workers=config.workers,
        threads=config.threads,
        deterministic=config.deterministic,
        tf32=config.tf32,
    )


def draw_architectures(config: RandomConfig, classes: int, image_channels: int) -> list[Architecture]:
    """Architectures of random parameters, so that the space's own rules of derivation hold."""
    # Of a supernet that is never run.
    search = SearchConfig(space=config.space, space_options=config.space_options, epochs=12, channels=48, cells=3)
    supernet = build_supernet(search, classes, image_channels)
    shape = supernet.init_alphas(torch.Generator()).shape
    return [supernet.genotype(torch.randn(shape, generator=generator(config.seed, "random", i))) for i in range(config.samples)]


def random_search(
    config: RandomConfig,
    train: Dataset[Any],
    valid: Dataset[Any],
    *,
    classes: int,
    image_channels: int,
    augment: Augmentation | None = None,
    plain: Augmentation | None = None,
) -> RandomResult:
    """Train every drawn architecture on one dataset and count its errors on the other."""
    training, tried = training_of(config), []
    for genotype in draw_architectures(config, classes, image_channels):
        result = Evaluation(training).run(genotype, train, valid, augment=augment, plain=plain, classes=classes)
        tried.append((genotype, result.test_error[0]))
    best, error = min(tried, key=lambda pair: pair[1])
    return RandomResult(best, error, tried)


def run(config: RandomConfig) -> tuple[RandomConfig, RandomResult]:
    """`pamkd random`: load the dataset, cut its training half, search, and write the run folder. The test set is not read."""
    out = config.out or Path("runs") / f"random-{config.space}-{config.dataset}-{config.seed}"
    config = dataclasses.replace(config, out=out)
    check_device(config.device)
    data = load_halves(config, config.seed, config.train_portion)
    open_folder(config, {"seed": config.seed} | data.facts)
    sizes = {"classes": len(data.train.classes), "image_channels": data.train.image_shape[0]}
    result = random_search(config, data.train, data.valid, augment=data.augment, plain=data.plain, **sizes)
    tried = [{"genotype": genotype.to_json(), "valid_error": error} for genotype, error in result.tried]
    write_json(out / "genotype.json", result.genotype.to_json())
    write_json(out / "result.json", {"genotype": result.genotype.to_json(), "valid_error": result.valid_error, "tried": tried})
    return config, result
