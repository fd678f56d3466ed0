"""The options of an evaluation, their presets, and what the command line leaves to the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pamkd.runs.options import CONFIG_NAME, RunOptions, read_config
from pamkd.runs.schedule import cosine
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
    schedule: Literal["cosine", "exponential"] = "cosine"
    """Learning rate over the epochs: half a cosine towards 0, or times `lr_decay` after each epoch."""
    lr_decay: float = 0.97
    """Factor per epoch of the exponential schedule."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 3e-4
    """Of all weights."""
    clip: float = 5.0
    """Largest gradient norm; 0: no clipping."""
    auxiliary: float = 0.4
    """Weight of the auxiliary head's loss; 0: no auxiliary head."""
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
        need(0 < self.lr_decay <= 1, "lr_decay", "a number above 0, 1 at most")
        need(self.clip >= 0, "clip", "0 (no clipping) or more")
        need(self.auxiliary >= 0, "auxiliary", "0 or more")
        need(0 <= self.drop_path < 1, "drop_path", "0 or more and below 1")
        need(0 <= self.label_smoothing < 1, "label_smoothing", "0 or more and below 1")
        need(len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds), "seeds", "one number or several different ones")

    def learning_rate(self, epoch: int) -> float:
        if self.schedule == "exponential":
            return self.lr * self.lr_decay**epoch
        return cosine(self.lr, 0.0, epoch, self.epochs)


PRESETS: dict[str, EvaluateConfig] = {
    # DARTS (Liu et al. 2019), the settings under which the paper compares: 600 epochs of 36 channels and 20 cells.
    "darts-cifar10": EvaluateConfig(dataset="cifar10", data=Path("data"), crop_padding=4),
    "darts-cifar100": EvaluateConfig(dataset="cifar100", data=Path("data"), crop_padding=4),
    "darts-imagenet": EvaluateConfig(
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
    ),
    # Half a minute on two cores.
    "digits": EvaluateConfig(
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
    ),
}
PRESET_OF = {"digits": "digits", "cifar10": "darts-cifar10", "cifar100": "darts-cifar100", "imagenet": "darts-imagenet"}  # by dataset


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


def arguments(argv: Sequence[str]) -> list[str]:
    """The words of a command line, before them those that `--run` and the dataset imply.

    From the run: dataset, its place and image size; the output folder; and the preset of the dataset. What the command
    line or its `--config` file says itself is left alone, and with `--resume` all but the folder.
    """
    argv = list(argv)
    run, file = _value(argv, "--run"), _value(argv, "--config")
    said = read_config(Path(file)) if file is not None else {}

    def given(option: str) -> Any:
        return _value(argv, "--" + option.replace("_", "-")) or said.get(option)

    run = run or said.get("run")
    implied: list[str] = []
    dataset = given("dataset")
    if run is not None and "--resume" not in argv and (Path(run) / CONFIG_NAME).is_file():
        saved = read_config(Path(run) / CONFIG_NAME)
        if dataset in (None, saved.get("dataset")):
            dataset = saved.get("dataset")
            for option in ("dataset", "data", "image_size"):
                if saved.get(option) is not None and not given(option):
                    implied += ["--" + option.replace("_", "-"), str(saved[option])]
    if not given("out") and (run is not None or given("genotype")):
        out = Path(run) / "evaluation" if run is not None else Path("runs") / f"{Path(given('genotype')).stem}-{dataset or 'digits'}"
        implied += ["--out", str(out)]
    preset = PRESET_OF.get(dataset or "digits")
    if preset and file is None and "--resume" not in argv and not given("preset"):
        implied += ["--preset", preset]
    return implied + argv


def _value(argv: list[str], option: str) -> str | None:
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(option + "="):
            return word.split("=", 1)[1]
    return None
