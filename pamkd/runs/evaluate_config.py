"""The options of an evaluation, and the architecture that they name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pamkd.runs.options import CONFIG_NAME, RunOptions
from pamkd.runs.schedule import cosine, linear
from pamkd.spaces.architecture import Architecture, architecture_from_json
from pamkd.spaces.genotype import PUBLISHED
from pamkd.spaces.topology import Topology


@dataclass(frozen=True)
class EvaluateConfig(RunOptions):
    """Train a found or published architecture from scratch and test it."""

    run: Path | None = None
    """Run folder of a search: its genotype is trained, on its dataset where --dataset names no other."""
    genotype: str | None = None
    """A genotype file (JSON), the name of a published genotype such as DARTS_V2, or the string of a NAS-Bench-201 cell."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers: one 3x3 convolution, or three of stride 2 for large images."""
    channels: int = 36
    """Channels of the first cell."""
    cells: int = 20
    """Cells of the network."""
    epochs: int = 600
    """Epochs of training."""
    batch_size: int = 96
    """Images per batch."""
    lr: float = 0.025
    """Learning rate at the start."""
    schedule: Literal["cosine", "exponential", "linear"] = "cosine"
    """Learning rate over the epochs: half a cosine towards 0, times `lr_decay` after each epoch, or a line towards 0."""
    lr_decay: float = 0.97
    """Factor per epoch of the exponential schedule."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's momentum."""
    lr_warmup_epochs: int = 0
    """First epochs in which the learning rate rises along a line."""
    weight_decay: float = 3e-4
    """Of all weights."""
    clip: float = 5.0
    """Largest gradient norm; 0: no clipping."""
    auxiliary: float = 0.4
    """Weight of the auxiliary head's loss; 0: no auxiliary head."""
    auxiliary_norm: bool | None = None
    """BatchNorm behind the auxiliary head's last convolution; default: with the cifar stem only, as DARTS."""
    drop_path: float = 0.2
    """Probability of dropping a branch in the last epoch; grows linearly from 0."""
    label_smoothing: float = 0.0
    """Share of a label spread over all classes."""
    cutout: int = 16
    """Side of a square erased at random; 0: none."""
    seeds: tuple[int, ...] = (0,)
    """One training for each; everything random in it is a function of its seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need = self.require
        need(self.run is None or self.genotype is None, "genotype", "either --run or --genotype, not both")
        need(self.epochs >= 1, "epochs", "1 or more")
        need(self.batch_size >= 2, "batch_size", "2 or more (BatchNorm)")
        need(self.lr > 0, "lr", "a positive number")
        need(self.schedule != "linear" or self.epochs > 5, "epochs", "more than 5 for the linear schedule")
        need(0 <= self.lr_warmup_epochs < self.epochs, "lr_warmup_epochs", "0 or more and below the number of epochs")
        need(0 <= self.momentum < 1, "momentum", "0 or more and below 1")
        need(self.weight_decay >= 0, "weight_decay", "0 or more")
        need(0 < self.lr_decay <= 1, "lr_decay", "a number above 0, 1 at most")
        need(self.clip >= 0, "clip", "0 (no clipping) or more")
        need(self.auxiliary >= 0, "auxiliary", "0 or more")
        need(0 <= self.drop_path < 1, "drop_path", "0 or more and below 1")
        need(0 <= self.label_smoothing < 1, "label_smoothing", "0 or more and below 1")
        need(len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds), "seeds", "one number or several different ones")

    def learning_rate(self, epoch: int) -> float:
        if epoch < self.lr_warmup_epochs:
            return self.lr * (epoch + 1) / self.lr_warmup_epochs
        if self.schedule == "exponential":
            return self.lr * self.lr_decay**epoch
        if self.schedule == "linear":
            return linear(self.lr, epoch, self.epochs)
        return cosine(self.lr, 0.0, epoch, self.epochs)


def find_genotype(config: EvaluateConfig) -> Architecture:
    """The genotype of the run, the file or the name. Raises ValueError saying which is missing."""
    if config.run is not None:
        path = config.run / "genotype.json"
        if not (config.run / CONFIG_NAME).is_file():
            raise ValueError(f"there is no run in {config.run} ({CONFIG_NAME} is missing): give the --out folder of a pamkd search")
        if not path.is_file():
            how = f"finish it with pamkd search --out {config.run} --resume"
            raise ValueError(f"the search in {config.run} has found no genotype yet (genotype.json is missing): {how}")
    elif config.genotype is None:
        raise ValueError("nothing to evaluate: give --run FOLDER of a search, or --genotype with a file or the name of a published one")
    elif config.genotype in PUBLISHED:
        return PUBLISHED[config.genotype]
    elif config.genotype.startswith("|"):
        return Topology.parse(config.genotype)
    else:
        path = Path(config.genotype)
        if not path.is_file():
            raise ValueError(f"genotype {config.genotype!r} is neither a file nor a published one; those are {', '.join(PUBLISHED)}")
    return read_genotype(path)


def read_genotype(path: Path) -> Architecture:
    """The genotype of a JSON file. Raises ValueError naming the file when it holds none."""
    try:
        return architecture_from_json(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
