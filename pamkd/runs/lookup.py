"""What a table knows of a cell of NAS-Bench-201, in place of training it."""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pamkd.runs.errors import MissingExtra
from pamkd.runs.evaluate_config import EvaluateConfig, find_genotype
from pamkd.spaces.nasbench_table import NasBenchTable
from pamkd.spaces.topology import Topology

# What a file of nas_201_api holds besides plain values: numbers of NumPy, under the names of versions 1 and 2. PyTorch reads no others.
_SCALAR = np.float64(0).__reduce__()[0]
_KINDS = [type(np.dtype(name)) for name in ("float64", "float32", "int64")]
NUMBERS: list[Any] = [(_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"), np.dtype, *_KINDS]


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
    if not config.table.exists():
        raise ValueError(f"there is no table {config.table}: give a CSV file, or a file or folder of nats_bench or nas_201_api")
    if config.table.name.endswith((".csv", ".csv.gz")):
        return NasBenchTable.from_csv(config.table)
    if config.table.suffix == ".pth":
        _need("nas_201_api")
        from nas_201_api import NASBench201API

        try:
            with torch.serialization.safe_globals(NUMBERS):
                api = NASBench201API(str(config.table), verbose=False)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{config.table} holds more than numbers, and reading it could execute code: {str(error)[-200:]}") from error
        return NasBenchTable.from_official(api, config.epochs)
    _need("nats_bench")
    from nats_bench import create

    return NasBenchTable.from_official(create(str(config.table), "tss", fast_mode=config.table.is_dir(), verbose=False), config.epochs)


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"this table needs the package {module}: pip install 'pamkd[nasbench]', or give a CSV file")
