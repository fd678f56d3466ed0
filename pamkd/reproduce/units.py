"""The runs behind a table: each in a folder of its own, shared by the tables that need it, and continued where it was left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pamkd.report.run_folder import read_run
from pamkd.report.summary import seconds_of
from pamkd.reproduce.paper import Row
from pamkd.runs.config import SearchConfig
from pamkd.runs.evaluate import evaluate
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.evaluate_presets import PRESETS, preset_of
from pamkd.runs.folder import from_checkpoint
from pamkd.runs.lock import held
from pamkd.runs.lookup import find_cell
from pamkd.runs.options import FREE, RunOptions, as_arguments, to_dict
from pamkd.runs.search import search
from pamkd.spaces.nasbench_table import NasBenchTable


@dataclass(frozen=True)
class Measured:
    """What one search and evaluation gave."""

    seed: int
    test_error: float  # %
    test_error_top5: float  # %
    valid_loss: float  # of the retained learner's supernet
    parameters: float
    search_seconds: float
    evaluation_seconds: float
    valid_error: float = math.nan  # %, of a cell that a table knows


@dataclass(frozen=True)
class Unit:
    row: Row
    column: str
    seed: int
    search: SearchConfig
    evaluation: EvaluateConfig
    table: Path | None = None  # of NAS-Bench-201: the cell that is found is looked up in it instead of trained

    @classmethod
    def of(
        cls, row: Row, column: str, seed: int, search: SearchConfig, evaluation: EvaluateConfig, root: Path, table: Path | None = None
    ) -> Unit:
        """The unit with its folders below `root`, named by what is computed: another row that needs the same run finds it."""
        configs = {"search": _changed(search), "evaluation": _changed(evaluation)}
        what: dict[str, Any] = {
            part: [pair for pair in pairs if pair[0] not in (*FREE, "seed", "seeds", "run")] for part, pairs in configs.items()
        }
        if search.dataset == "folder" and search.data is not None:  # other datasets are the same wherever they lie
            what["data"] = str(search.data.resolve())
        folder = root / f"{row.method}-{row.space}-{search.dataset}-{digest(what)}" / f"seed-{seed}"
        return cls(
            row,
            column,
            seed,
            dataclasses.replace(search, out=folder),
            dataclasses.replace(evaluation, run=folder, out=folder / "evaluation"),
            table,
        )

    @property
    def done(self) -> bool:
        last = self.evaluation if self.table is None else self.search
        return (last.folder / "result.json").is_file()

    def run(self) -> None:
        """Search and evaluate what is still missing; another command that runs the same is waited for."""
        with held(self.search.folder.with_name(f"{self.search.folder.name}.lock"), wait=True):
            if not (self.search.folder / "result.json").is_file():
                search(from_checkpoint(self.search))
            if not self.done:
                evaluate(from_checkpoint(self.evaluation))

    def measured(self, table: NasBenchTable | None = None) -> Measured | None:
        """What is there; with `table`, what it knows of the cell."""
        if not self.done:
            return None
        run = read_run(self.search.folder)
        if table is not None:
            cell, name = find_cell(EvaluateConfig(run=self.search.folder)), self.column.replace("-", "_")
            valid, test = (100 - table.accuracy(cell, f"{name}_{part}") for part in ("valid", "test"))
            return Measured(self.seed, test, math.nan, min(run.result["valid_loss"]), math.nan, seconds_of(run), math.nan, valid)
        if run.evaluation is None:
            return None
        return Measured(
            self.seed,
            100 * run.evaluation.result["test_error_mean"],
            100 * run.evaluation.epochs[-1].get("test_error_top5", math.nan),
            min(run.result["valid_loss"]),
            run.evaluation.result["parameters"],
            seconds_of(run),
            seconds_of(run.evaluation),
        )

    def commands(self) -> str:
        """The same by hand: what differs from the defaults, and for the evaluation from the preset that its run implies."""
        search = f"pamkd search {shlex.join(as_arguments(SearchConfig, dict(_changed(self.search)), 'search'))}"
        if self.table is not None:
            return f"{search}  &&  pamkd lookup --run {shlex.quote(str(self.search.folder))} --table {shlex.quote(str(self.table))}"
        implied = preset_of(self.search.space, self.evaluation.dataset)
        changed = dict(_changed(self.evaluation, PRESETS[implied] if implied else EvaluateConfig()))
        evaluation = as_arguments(EvaluateConfig, {"run": changed.pop("run"), "dataset": self.evaluation.dataset} | changed, "evaluation")
        return f"{search}  &&  pamkd evaluate {shlex.join(evaluation)}"


def digest(what: Any) -> str:
    """Eight letters for a value that JSON can write."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def gather(units: Sequence[Unit], table: NasBenchTable | None = None) -> dict[tuple[str, str], list[Measured]]:
    """What the units that are done gave, by row key and column."""
    found: dict[tuple[str, str], list[Measured]] = {}
    for unit in units:
        measured = unit.measured(table)
        if measured is not None:
            found.setdefault((unit.row.key, unit.column), []).append(measured)
    return found


def _changed(config: RunOptions, default: RunOptions | None = None) -> list[tuple[str, Any]]:
    """The options that are not those of `default`, by default of the command line without any."""
    values = to_dict(default or type(config)())
    return [(name, value) for name, value in to_dict(config).items() if value != values[name]]
