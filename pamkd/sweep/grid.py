"""The YAML file of a sweep, and the runs that it stands for."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pamkd.reproduce.paper import LEARNERS, Row, Table
from pamkd.reproduce.units import Unit
from pamkd.runs import evaluate_presets, search_presets
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import OptionError
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.interrupt import seconds_of
from pamkd.runs.options import RunOptions, as_arguments, parse, read_config
from pamkd.runs.search import build_supernet

OF_THE_GRID = ("seed", "seeds", "method", "space", "dataset", "run", "genotype", "out", "resume", "overwrite", "max_time")
SHARED = ("data", "image_size", "device", "threads", "workers")  # an evaluation takes them from its search


@dataclass(frozen=True)
class Entry:
    """One value on an axis of the grid, with options of `pamkd search` of its own."""

    name: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.options.items())])


@dataclass(frozen=True)
class Grid:
    """A sweep: the axes of the grid, what all of its runs share, and how they are run."""

    path: Path
    seeds: tuple[int, ...] = (0,)
    methods: tuple[Entry, ...] = (Entry("pamkd", {}),)
    spaces: tuple[Entry, ...] = (Entry("darts", {}),)
    datasets: tuple[Entry, ...] = (Entry("digits", {}),)
    search: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""  # label of the method that others are compared with
    cluster: str = "local"
    parallel: int = 1
    retries: int = 1
    time: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(entry.label for entry in self.datasets)

    def rows(self) -> Iterator[tuple[Row, Entry, Entry]]:
        for space, method in itertools.product(self.spaces, self.methods):
            options = {"learners": LEARNERS[method.name]} if method.name in LEARNERS else {}
            key, label = f"{space.label}/{method.label}", f"{space.label}, {method.label}"
            yield Row(key, label, space.name, {}, method.name, options), space, method

    def table(self) -> Table:
        rows = tuple(made for made, _, _ in self.rows())
        return Table(self.path.stem, f"The sweep of {self.path.name}.", {}, rows, (self.reference,), command="pamkd sweep")

    def units(self, root: Path) -> list[Unit]:
        """One search and evaluation for each row, dataset and seed, in folders below `root`/runs.

        Raises ValueError where their options do not go together.
        """
        units = []
        for (made, space, method), dataset in itertools.product(self.rows(), self.datasets):
            where = f"{self.path}, {made.key} on {dataset.label}"
            names = {"space": space.name, "dataset": dataset.name}
            options = dict(made.options) | dict(self.search) | dict(space.options) | dict(dataset.options) | dict(method.options)
            preset = options.pop("preset", None)
            options |= names | {"method": method.name}
            if preset is not None and method.name != "pamkd":
                options = {"lambda": None} | options  # a preset's lambda is PAMKD's
            presets = search_presets.PRESETS
            search = _parsed(SearchConfig, _preset(preset, presets, names, f"{where}: search"), options, presets, f"{where}: search")
            try:
                build_supernet(search, classes=10, image_channels=3)
            except (ValueError, OptionError) as error:
                raise ValueError(f"{where}: {error}") from error
            evaluation = self._evaluation(search, names, where)
            for seed in self.seeds:
                configs = dataclasses.replace(search, seed=seed), dataclasses.replace(evaluation, seeds=(seed,))
                units.append(Unit.of(made, dataset.label, seed, *configs, root / "runs"))
        return units

    def _evaluation(self, search: SearchConfig, names: Mapping[str, str], where: str) -> EvaluateConfig:
        options = {name: getattr(search, name) for name in SHARED} | dict(self.evaluate)
        preset = options.pop("preset", evaluate_presets.preset_of(**names))
        preset = _preset(preset, evaluate_presets.PRESETS, names, f"{where}: evaluate")
        options |= {"dataset": names["dataset"]}
        return _parsed(EvaluateConfig, preset, options, evaluate_presets.PRESETS, f"{where}: evaluate")


def read_grid(path: Path) -> Grid:
    """The sweep of a YAML file. Raises ValueError, naming the file and the line's key, for anything that it cannot mean."""
    values = read_config(path)
    known = {entry.name for entry in dataclasses.fields(Grid)} - {"path"}
    for name in values:
        _need(name in known, path, f"unknown key {name!r}; known are {', '.join(sorted(known))}")
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("methods", "spaces", "datasets"):
            made[name] = tuple(_entries(path, name, value))
        elif name in ("search", "evaluate", "resources"):
            _need(isinstance(value, dict), path, f"{name} is {value!r}; needed are lines `option: value`")
            if name != "resources":
                _check_options(path, name, value)
            made[name] = value
        elif name in ("parallel", "retries"):
            least = 1 if name == "parallel" else 0
            _need(_is_whole(value) and value >= least, path, f"{name} is {value!r}; needed is a whole number, {least} or more")
            made[name] = value
        elif name == "seeds":
            fine = isinstance(value, list) and value and all(map(_is_whole, value)) and len(set(value)) == len(value)
            _need(bool(fine), path, f"seeds is {value!r}; needed is a list of different whole numbers such as [0, 1, 2]")
            made[name] = tuple(value)
        elif name == "cluster":
            _need(value in ("local", "slurm"), path, f"cluster is {value!r}; needed is local or slurm")
            made[name] = value
        elif name == "time":
            _need(bool(seconds_of(str(value))), path, f"time is {value!r}; needed is a duration such as 45m, 3h55m or 1d12h")
            made[name] = str(value)
        else:
            made[name] = value
    grid = Grid(path, **made)
    labels = [entry.label for entry in grid.methods]
    reference = grid.reference or ("pamkd" if "pamkd" in labels else labels[0])
    _need(reference in labels, path, f"reference is {reference!r}; needed is one of the methods: {', '.join(labels)}")
    return dataclasses.replace(grid, reference=reference)


def _entries(path: Path, axis: str, value: Any) -> Iterator[Entry]:
    """Of a list of names, or of `name: {option: value}`."""
    what = f"{axis} is {value!r}; needed is a list of names, or of `name: {{option: value}}`"
    _need(isinstance(value, list) and bool(value), path, what)
    seen = set()
    for item in value:
        if isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict):
            ((name, options),) = item.items()
            _check_options(path, f"{axis}: {name}", options)
        else:
            _need(isinstance(item, str), path, what)
            name, options = item, {}
        entry = Entry(str(name), options)
        _need(entry.label not in seen, path, f"{axis} has {entry.label!r} twice")
        seen.add(entry.label)
        yield entry


def _check_options(path: Path, where: str, options: Mapping[str, Any]) -> None:
    for name in options:
        _need(name not in OF_THE_GRID, path, f"{where} has the option {name!r}, which the sweep sets itself")


def _preset(name: Any, presets: Mapping[str, Any], names: Mapping[str, str], where: str) -> str | None:
    """A preset's name with {space} and {dataset} filled in."""
    if name is None:
        return None
    filled = str(name).replace("{space}", names["space"]).replace("{dataset}", names["dataset"])
    if filled not in presets:
        raise ValueError(f"{where}: unknown preset {filled!r}; known are {', '.join(presets)}")
    return filled


def _parsed(kind: type[RunOptions], preset: str | None, options: Mapping[str, Any], presets: Mapping[str, Any], where: str) -> Any:
    """The configuration, checked as `pamkd search` checks its command line. Raises ValueError with one sentence."""
    head = [] if preset is None else ["--preset", preset]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what the command line's parser prints before it exits
            return parse(kind, head + as_arguments(kind, dict(options), where), presets, "pamkd sweep")
    except OptionError as error:
        raise ValueError(f"{where}: {error}") from error
    except SystemExit:
        wrong = next((name for name in options if not _readable(kind, {name: options[name]}, presets)), None)
        what = f"option {wrong} is {options[wrong]!r}" if wrong is not None else "its options cannot be read"
        command = "evaluate" if kind is EvaluateConfig else "search"
        raise ValueError(f"{where}: {what}; what it takes is told by pamkd {command} --help") from None


def _readable(kind: type[RunOptions], options: dict[str, Any], presets: Mapping[str, Any]) -> bool:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parse(kind, as_arguments(kind, options, ""), presets, "")
    except SystemExit:
        return False
    except OptionError:
        pass
    return True


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _need(condition: bool, path: Path, what: str) -> None:
    if not condition:
        raise ValueError(f"sweep file {path}: {what}")
