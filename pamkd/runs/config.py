"""The configuration of a search: one dataclass that is the command line, the YAML file and the library's options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from pamkd.runs.errors import OptionError
from pamkd.runs.logs import write_atomically
from pamkd.spaces import SPACES

CONFIG_NAME = "config.yaml"  # in a run folder


def require(config: Any, condition: bool, name: str, what: str) -> None:
    """Raise OptionError, naming the option and its value, unless the condition holds."""
    if not condition:
        raise OptionError(f"{name} is {getattr(config, name)!r}: needed is {what}")


@dataclass(frozen=True)
class SearchConfig:
    """Search an architecture with mutually teaching learners."""

    dataset: Literal["digits", "cifar10", "cifar100", "imagenet", "folder"] = "digits"
    """Images to search on. `folder` is any tree train/<class>/*.jpg."""
    data: Path | None = None
    """Where the dataset lies (not needed for digits)."""
    download: bool = False
    """Fetch cifar10 or cifar100 into `data` where a network exists."""
    image_size: int | None = None
    """Resize a folder's images to this height and width."""
    space: str = "darts"
    """Search space."""
    method: Literal["pamkd"] = "pamkd"
    """How the learners teach each other."""
    learners: int = 2
    """K. With 1 nobody teaches: plain DARTS."""
    order: Literal["first", "second"] = "second"
    """Hypergradient: first order keeps the direct term only."""
    hypergradient: Literal["finite", "exact"] = "finite"
    """Second-order terms by finite differences of gradients, or by double backward (slower, much more memory)."""
    fd_step: float = 1e-2
    """Norm of the finite-difference perturbation; DARTS and the paper take 0.01 (see docs/hypergradient.md)."""
    epochs: int = 50
    """Epochs of the whole search, warm-up included."""
    warmup_v_epochs: int = 0
    """First epochs in which only V is trained."""
    warmup_w_epochs: int = 0
    """Epochs after those in which V and W are trained and the architectures stand still."""
    batch_size: int = 64
    """Images per training and per validation batch."""
    channels: int = 16
    """Channels of the supernet's first cell."""
    cells: int = 8
    """Cells of the supernet."""
    distill_weight: Annotated[float, tyro.conf.arg(name="lambda")] = 0.5
    """lambda, the weight of what better learners teach."""
    epsilon: float = 0.01
    """Margin of the group-similarity hinge, Eq. (7)."""
    group_size: int = 5
    """R, images per group."""
    group_pairs: int = 0
    """Pairs of groups drawn in each step; 0: the batch size."""
    group_reduction: Literal["sum", "mean"] = "sum"
    """Over the pairs: the paper sums; the mean makes lambda independent of their number."""
    lr: float = 0.025
    """Learning rate of V and W at the start; falls to `lr_min` along a cosine."""
    lr_min: float = 0.001
    """Learning rate at the end."""
    momentum: float = 0.9
    """Of the SGD for V and W."""
    weight_decay: float = 3e-4
    """Of V and W."""
    clip: float = 5.0
    """Largest gradient norm of one learner's V or W; 0: no clipping."""
    arch_lr: float = 3e-4
    """Learning rate of Adam (betas 0.5, 0.999) for the architectures."""
    arch_weight_decay: float = 1e-3
    """Of the architectures."""
    train_portion: float = 0.5
    """Share of the training set that trains weights; the rest validates and trains architectures. (imagenet: 10 % and 2.5 %.)"""
    crop_padding: int | None = None
    """Random crop after padding by so many pixels; default: an eighth of the image size, 0 for digits and imagenet."""
    flip: bool | None = None
    """Random horizontal flips; default: yes, except for digits."""
    cutout: int = 0
    """Side of a square erased at random; 0: none."""
    seed: int = 0
    """Everything random is a function of it."""
    out: Path | None = None
    """Run folder; default: runs/<space>-<dataset>-<seed>."""
    resume: bool = False
    """Continue the run in `out` from its last checkpoint, bit for bit on the CPU."""
    overwrite: bool = False
    """Delete an earlier run in `out` first."""
    device: str = "cpu"
    """A PyTorch device."""
    threads: int = 0
    """CPU threads; 0: PyTorch's choice."""
    workers: int = 0
    """Processes that decode images of lazily loaded datasets."""
    log_every: int = 10
    """Steps between two rows of step metrics."""
    tensorboard: bool = True
    """Also write TensorBoard files (needs the package tensorboard)."""

    def __post_init__(self) -> None:
        need = partial(require, self)
        need(self.space in SPACES, "space", f"one of {', '.join(SPACES)}")
        need(self.learners >= 1, "learners", "1 or more")
        need(self.epochs >= 1, "epochs", "1 or more")
        need(self.warmup_v_epochs >= 0, "warmup_v_epochs", "0 or more")
        need(self.warmup_w_epochs >= 0, "warmup_w_epochs", "0 or more")
        need(self.warmup_v_epochs + self.warmup_w_epochs < self.epochs, "epochs", "more epochs than both warm-ups take together")
        need(self.batch_size >= 1, "batch_size", "1 or more")
        need(self.fd_step > 0, "fd_step", "a positive number")
        need(self.distill_weight >= 0, "distill_weight", "0 or more (lambda)")
        need(self.epsilon >= 0, "epsilon", "0 or more")
        need(self.group_size >= 2, "group_size", "2 or more images per group")
        need(self.group_pairs >= 0, "group_pairs", "0 (the batch size) or more")
        need(0 < self.train_portion < 1, "train_portion", "a number between 0 and 1")
        fixed = self.dataset == "imagenet"
        need(not fixed or self.train_portion == 0.5, "train_portion", "no value of your own with imagenet, whose shares are 10 % and 2.5 %")
        need(self.learners == 1 or 2 * self.group_size <= self.batch_size, "batch_size", f"at least 2 * group_size = {2 * self.group_size}")
        need(not (self.resume and self.overwrite), "resume", "either --resume or --overwrite")

    def phase(self, epoch: int) -> Literal["warmup-v", "warmup-w", "search"]:
        if epoch < self.warmup_v_epochs:
            return "warmup-v"
        return "warmup-w" if epoch < self.warmup_v_epochs + self.warmup_w_epochs else "search"


# Options that may differ between a run and its continuation: they do not change what is computed.
FREE = ("data", "download", "out", "resume", "overwrite", "threads", "workers", "log_every", "tensorboard")

PRESETS: dict[str, SearchConfig] = {
    # Paper, Sec. 4.2, over the settings of DARTS: lambda 0.5, R = 5, epsilon 0.01, 50 epochs, halves of 25,000.
    "darts-cifar10": SearchConfig(dataset="cifar10", data=Path("data"), crop_padding=4),
    "darts-cifar100": SearchConfig(dataset="cifar100", data=Path("data"), crop_padding=4),
    "darts1st-cifar10": SearchConfig(dataset="cifar10", data=Path("data"), crop_padding=4, order="first"),
    "darts1st-cifar100": SearchConfig(dataset="cifar100", data=Path("data"), crop_padding=4, order="first"),
    "demo": SearchConfig(epochs=10, channels=4, cells=3, batch_size=64, arch_lr=6e-3, lr=0.05),
}


def to_dict(config: Any) -> dict[str, Any]:
    """The options of a configuration as plain values, under the names of the command line and of YAML files."""
    return {_option(field): _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def save_config(config: Any, path: Path) -> None:
    write_atomically(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def read_config(path: Path) -> dict[str, Any]:
    """The options of a YAML file, unchecked. Raises ValueError when it cannot be read or is no mapping."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ValueError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"configuration file {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"configuration file {path} holds a {type(values).__name__}; needed are lines `option: value`")
    return values


def as_arguments(kind: type, values: dict[str, Any], where: str) -> list[str]:
    """Options as command-line words, so that a file's values are checked exactly as typed ones are."""
    fields = {_option(field): field for field in dataclasses.fields(kind)}
    words: list[str] = []
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"{where}: unknown option {name!r}; known are {', '.join(fields)}")
        flag = name.replace("_", "-")
        if isinstance(fields[name].default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{where}: option {name} is {value!r}; needed is true or false")
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words


def parse(kind: type, argv: Sequence[str], presets: Mapping[str, Any], prog: str) -> Any:
    """A configuration from the command line: a preset, then a YAML file (`--config`), then the options given.

    With `--resume` the saved configuration of the run in `--out` takes the place of the preset.
    """
    argv = list(argv)
    preset, config = _take(argv, "--preset"), _take(argv, "--config")
    if preset is not None and preset not in presets:
        raise ValueError(f"unknown preset {preset!r}; known are {', '.join(presets)}")
    words: list[str] = []
    if "--resume" in argv and "--out" in argv[:-1]:
        saved = Path(argv[argv.index("--out") + 1]) / CONFIG_NAME
        if not saved.is_file():
            raise ValueError(f"--resume: there is no run in {saved.parent} ({CONFIG_NAME} is missing); start it without --resume")
        words += as_arguments(kind, read_config(saved), str(saved))
    if config is not None:
        words += as_arguments(kind, read_config(Path(config)), f"configuration file {config}")
    description = f"{kind.__doc__}\n\nAlso: --preset NAME ({', '.join(presets)}) and --config FILE.yaml, which options given here override."
    return tyro.cli(kind, args=words + argv, default=presets[preset] if preset else kind(), prog=prog, description=description)


def _take(argv: list[str], option: str) -> str | None:
    """Remove `option value` or `option=value` from the words and return the value."""
    for i, word in enumerate(argv):
        if word == option:
            if i + 1 == len(argv):
                raise ValueError(f"{option} needs a value")
            value = argv[i + 1]
            del argv[i : i + 2]
            return value
        if word.startswith(option + "="):
            return argv.pop(i).split("=", 1)[1]
    return None


def _option(field: dataclasses.Field) -> str:
    return {"distill_weight": "lambda"}.get(field.name, field.name)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
