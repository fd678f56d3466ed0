"""What a run folder holds, read so that half-written and damaged files cost no more than what they held."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pamkd.runs.options import CONFIG_NAME, read_config
from pamkd.spaces.architecture import Architecture, architecture_from_json

EVALUATION = "evaluation"  # folder in a search's run folder


@dataclass
class Run:
    """A search or an evaluation. `problems` are sentences for the reader."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    genotype: Architecture | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)  # one row per epoch (and seed)
    steps: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    evaluation: Run | None = None

    @property
    def is_evaluation(self) -> bool:
        return "seeds" in self.config or any("seed" in row for row in self.epochs)

    @property
    def learners(self) -> int:
        """K."""
        count = self.config.get("learners")
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
        rows = [row["train_loss"] for row in (*self.epochs, *self.steps) if isinstance(row.get("train_loss"), list)]
        return max(map(len, rows), default=0)


def read_run(folder: Path) -> Run:
    """Raises ValueError when the folder holds no run."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give the --out folder of pamkd search or pamkd evaluate")
    if not (folder / CONFIG_NAME).is_file() and not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} holds no run ({CONFIG_NAME} is missing): give the --out folder of pamkd search or pamkd evaluate")
    run = _read(folder)
    inner = folder / EVALUATION
    if not run.is_evaluation and inner.is_dir():
        run.evaluation = _read(inner)
    return run


def _read(folder: Path) -> Run:
    run = Run(folder)
    try:
        run.config = read_config(folder / CONFIG_NAME)
    except (ValueError, UnicodeDecodeError) as error:
        run.problems.append(f"The configuration is missing: {error}.")
    run.manifest = _read_json(run, "manifest.json") or {}
    if not run.manifest:
        run.problems.append("There is no manifest: device, versions and command are unknown.")
    run.result = _read_json(run, "result.json") or {}
    genotype = _read_json(run, "genotype.json") or run.result.get("genotype")
    if genotype is not None:
        try:
            run.genotype = architecture_from_json(genotype)
        except ValueError as error:
            run.problems.append(f"The genotype cannot be used: {error}.")
    _read_rows(run)
    return run


def _read_json(run: Run, name: str) -> dict[str, Any] | None:
    try:
        value = json.loads((run.folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        run.problems.append(f"{name} cannot be read: {error}.")
        return None
    if not isinstance(value, dict):
        run.problems.append(f"{name} holds a {type(value).__name__} where a table of names and values is needed.")
        return None
    return value


def _read_rows(run: Run) -> None:
    try:
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        run.problems.append("There are no metrics (metrics.jsonl): no curves yet.")
        return
    epochs, steps, bad = {}, {}, []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            row["epoch"] = int(row["epoch"])
            place = (row.get("seed", 0), row["epoch"])
            if row["kind"] == "epoch":
                epochs[place] = row
            elif row["kind"] == "step":
                row["step"] = int(row["step"])
                steps[(*place, row["step"])] = row
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            bad.append(i)
    run.epochs, run.steps = list(epochs.values()), list(steps.values())
    if bad == [len(lines) - 1]:
        run.problems.append("The last line of metrics.jsonl is cut short and was left out.")
    elif bad:
        run.problems.append(f"{len(bad)} of {len(lines)} lines of metrics.jsonl cannot be read and were left out.")
    if not run.epochs:
        run.problems.append("No epoch is complete yet.")


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def numbers(value: Any, count: int) -> list[float | None]:
    """`count` numbers, None where one is missing or not finite."""
    entries = value if isinstance(value, list) else []
    return [number(entries[i]) if i < len(entries) else None for i in range(count)]


def matrix(value: Any, rows: int, columns: int) -> list[list[float | None]]:
    entries = value if isinstance(value, list) else []
    return [numbers(entries[i] if i < len(entries) else None, columns) for i in range(rows)]


def entry(value: Any, *path: str | int | None) -> Any:
    """`value[path[0]][path[1]]...`, None where there is no such entry."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def retained(run: Run) -> tuple[Architecture | None, int | None]:
    """The result's genotype and learner, else what the last epoch would give."""
    learner = run.result.get("learner")
    if run.genotype is not None:
        return run.genotype, learner if isinstance(learner, int) else None
    if not run.epochs:
        return None, None
    losses = numbers(run.epochs[-1].get("valid_loss"), run.learners)
    known = {k: loss for k, loss in enumerate(losses) if loss is not None}
    if not known:
        return None, None
    best = min(known, key=known.__getitem__)
    return genotype_of(run.epochs[-1], best), best


def genotype_of(row: dict[str, Any], learner: int) -> Architecture | None:
    try:
        return architecture_from_json(entry(row, "genotypes", learner))
    except ValueError:
        return None
