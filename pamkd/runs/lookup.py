"""What a table knows of a cell of NAS-Bench-201, in place of training it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from pamkd.runs.errors import MissingExtra
from pamkd.runs.evaluate_config import EvaluateConfig, find_genotype
from pamkd.spaces.nasbench_table import NasBenchTable
from pamkd.spaces.topology import Topology


@dataclass(frozen=True)
class LookupConfig:
    """Accuracies and ranks of a NAS-Bench-201 cell in a table."""

    table: Path
    """A CSV file (plain or .gz) of cells and accuracies, or a file or folder of the packages nats_bench or nas_201_api."""
    run: Path | None = None
    """Run folder of a search on nasbench201: the cell that it found."""
    genotype: str | None = None
    """The string of a cell, or a genotype file (JSON)."""
    epochs: int = 200
    """Epochs of the training that the official packages are asked for: 12 or 200."""


def lookup(config: LookupConfig) -> str:
    """`pamkd lookup`. Raises ValueError where there is no such cell or table."""
    cell = find_genotype(EvaluateConfig(run=config.run, genotype=config.genotype))
    if not isinstance(cell, Topology):
        raise ValueError("the architecture is no cell of NAS-Bench-201: search one with --space nasbench201")
    return f"{cell.describe()}\n{_open(config).describe(cell)}"


def _open(config: LookupConfig) -> NasBenchTable:
    if config.table.name.endswith((".csv", ".csv.gz")):
        return NasBenchTable.from_csv(config.table)
    if not config.table.exists():
        raise ValueError(f"there is no table {config.table}")
    if config.table.suffix == ".pth":
        _need("nas_201_api", "nas-bench-201")
        from nas_201_api import NASBench201API

        return NasBenchTable.from_official(NASBench201API(str(config.table), verbose=False), config.epochs)
    _need("nats_bench", "nats_bench")
    from nats_bench import create

    return NasBenchTable.from_official(create(str(config.table), "tss", fast_mode=config.table.is_dir(), verbose=False), config.epochs)


def _need(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"this table needs the package {package}: pip install {package}, or give a CSV file")
