"""Options as dataclasses: the command line, YAML files and the library's keywords are the same fields, checked once."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

import tyro
import yaml

from pamkd.distributed import started_with_others
from pamkd.runs.errors import OptionError
from pamkd.runs.interrupt import seconds_of
from pamkd.runs.logs import write_atomically

DatasetName = Literal["digits", "cifar10", "cifar100", "imagenet16-120", "imagenet", "folder"]

CONFIG_NAME = "config.yaml"  # in a run folder
OF_THE_COMMAND = ("resume", "overwrite")  # what a command does with the folder: no part of what is saved there

# Options that may differ between a run and its continuation: they do not change what is computed.
FREE = (
    "data",
    "download",
    "out",
    "resume",
    "overwrite",
    "max_time",
    "threads",
    "workers",
    "learner_rows",
    "log_every",
    "tensorboard",
    "on_divergence",
    "cuda_graphs",
    "stacked",
)


@dataclass(frozen=True)
class FolderOptions:
    """What every command that leaves a run folder has: the images, where the results go, and what computes them."""

    dataset: DatasetName = "digits"
    """Images. `folder` is any tree train/<class>/*.jpg, with test/<class>/*.jpg for an evaluation."""
    data: Path | None = None
    """Where the dataset lies (not needed for digits)."""
    download: bool = False
    """Fetch cifar10 or cifar100 into `data` where a network exists."""
    image_size: int | None = None
    """Resize a folder's images to this height and width."""
    crop_padding: int | None = None
    """Random crop after padding by so many pixels; default: an eighth of the image size, 0 for digits and imagenet."""
    flip: bool | None = None
    """Random horizontal flips; default: yes, except for digits."""
    cutout: int = 0
    """Side of a square erased at random; 0: none."""
    out: Path | None = None
    """Run folder; default: a name below runs/ (an evaluation of a search: below its folder)."""
    overwrite: bool = False
    """Delete an earlier run in `out` first."""
    device: str = "cpu"
    """A PyTorch device."""
    threads: int = 0
    """CPU threads; 0: PyTorch's choice."""
    workers: int = 0
    """Processes that decode images of lazily loaded datasets."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time (needs --threads; docs/search.md says what a GPU cannot promise)."""
    tf32: bool = False
    """Matrix products and convolutions of float32 in TF32 on a GPU: faster, with 10 bits of mantissa."""

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():  # the command line has seen to it, the library's users may not
            self.require(_is(getattr(self, name), kind), name, _words(kind))
        for option in ("threads", "workers", "cutout"):
            self.require(getattr(self, option) >= 0, option, "0 or more")
        self.require(self.threads > 0 or not self.deterministic, "threads", "a number with --deterministic: sums depend on it")
        alone = not (self.download and started_with_others())
        self.require(alone, "download", "False with several processes: fetch the dataset in one process first")

    @property
    def folder(self) -> Path:
        """The run folder. Raises OptionError where the run has none."""
        if self.out is None:
            raise OptionError("out is None: needed is a run folder")
        return self.out

    def require(self, condition: bool, name: str, what: str) -> None:
        """Raise OptionError, naming the option and its value, unless the condition holds."""
        if not condition:
            shown = "lambda (distill_weight)" if name == "distill_weight" else name
            raise OptionError(f"{shown} is {getattr(self, name)!r}: needed is {what}")


@dataclass(frozen=True)
class RunOptions(FolderOptions):
    """What a search and an evaluation have beyond that: checkpoints, curves, and several processes."""

    resume: bool = False
    """Continue the run in `out` from its last checkpoint, bit for bit on the CPU."""
    max_time: str | None = None
    """End with a checkpoint after so long (90, 45m, 3h55m, 1d12h); --resume continues."""
    sync_batch_norm: bool = False
    """With several processes that share a batch: BatchNorm on the statistics of the whole batch, slower and as one process has them."""
    tensorboard: bool = False
    """Also write TensorBoard files (needs the package tensorboard)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.max_time is None or bool(self.seconds), "max_time", "a duration such as 90, 45m, 3h55m or 1d12h")
        self.require(not (self.resume and self.overwrite), "resume", "either --resume or --overwrite")

    @property
    def seconds(self) -> float | None:
        return None if self.max_time is None else seconds_of(self.max_time)


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that options have."""
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if outer is Literal:
        return isinstance(value, str) and value in inner
    if outer in (typing.Union, UnionType):
        return any(_is(value, part) for part in inner)
    if outer is tuple:
        return isinstance(value, tuple) and all(_is(part, inner[0]) for part in value)
    return isinstance(value, {int: Integral, float: Real}.get(kind, kind)) and (kind is bool or not isinstance(value, bool))


def _words(kind: Any) -> str:
    """A type of options in words."""
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if outer is Literal:
        return f"one of {', '.join(inner)}"
    if outer in (typing.Union, UnionType):
        return " or ".join(map(_words, inner))
    if outer is tuple:
        return f"a tuple, each entry {_words(inner[0])}"
    simple = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", Path: "a pathlib.Path", NoneType: "None"}
    return simple[kind]


def to_dict(config: Any) -> dict[str, Any]:
    """The options of a configuration as plain values, under the names of the command line and of YAML files."""
    return {_option(field): _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def fixed(config: Any, free: Sequence[str] = FREE) -> dict[str, Any]:
    """The options that a continued run must share with the one that it continues; of a deterministic one also its threads."""
    return {name: value for name, value in to_dict(config).items() if name not in free or (name == "threads" and config.deterministic)}


def first_difference(config: Any, saved: Mapping[str, Any], free: Sequence[str] = FREE) -> tuple[str, Any, Any] | None:
    """Name, saved value and value of the first option, but the free ones, that a continuation has otherwise than the saved run.

    An option that the saved run lacks came with a later version: that run had its default.
    """
    defaults = to_dict(type(config)())
    differences = ((name, saved.get(name, defaults[name]), value) for name, value in fixed(config, free).items())
    return next((difference for difference in differences if difference[1] != difference[2]), None)


def save_config(config: Any, path: Path) -> None:
    """Write the options as YAML, in one step."""
    options = {name: value for name, value in to_dict(config).items() if name not in OF_THE_COMMAND}
    write_atomically(path, yaml.safe_dump(options, sort_keys=False))


def read_config(path: Path) -> dict[str, Any]:
    """The options of a YAML file, unchecked. Raises ValueError when it cannot be read or is no mapping."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ValueError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"configuration file {path} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"configuration file {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"configuration file {path} holds a {type(values).__name__}; needed are lines `option: value`")
    return values


def as_arguments(kind: type, values: dict[str, Any], where: str) -> list[str]:
    """Options as command-line words, so that a file's values are checked exactly as typed ones are. Raises ValueError for unknown ones."""
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


def parse(kind: type, argv: Sequence[str], presets: Mapping[str, Any], prog: str, about: str | None = None) -> Any:
    """A configuration from the command line: a preset, then a YAML file (`--config`), then the options given.

    `about` is what `--help` says of the command, by default what the options' class says of itself.
    With `--resume` the saved configuration of the run in `--out` takes the place of the preset. Raises ValueError or OptionError for
    what cannot be used, and SystemExit, after a text, as the command-line parser does.
    """
    argv = list(argv)
    preset, config = _take(argv, "--preset"), _take(argv, "--config")
    if preset is not None and preset not in presets:
        raise ValueError(f"unknown preset {preset!r}; known are {', '.join(presets)}")
    words: list[str] = []
    out = value_of(argv, "--out")
    if "--resume" in argv and out is not None:
        saved = Path(out) / CONFIG_NAME
        if not saved.is_file():
            raise ValueError(f"--resume: there is no run in {saved.parent} ({CONFIG_NAME} is missing); start it without --resume")
        values = {name: value for name, value in read_config(saved).items() if name not in OF_THE_COMMAND}
        words += as_arguments(kind, values, str(saved))
    if config is not None:
        words += as_arguments(kind, read_config(Path(config)), f"configuration file {config}")
    description = f"{about or kind.__doc__}\n\n"
    description += f"Also: --preset NAME ({', '.join(presets)}) and --config FILE.yaml, which options given here override."
    description += f" The defaults below are those of the preset {preset}." if preset else ""
    return tyro.cli(kind, args=words + argv, default=presets[preset] if preset else kind(), prog=prog, description=description)


def value_of(argv: Sequence[str], option: str) -> str | None:
    """The value of an option among the words of a command line, None where it is not given."""
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(option + "="):
            return word.split("=", 1)[1]
    return None


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


def _option(field: dataclasses.Field[Any]) -> str:
    return {"distill_weight": "lambda"}.get(field.name, field.name)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
