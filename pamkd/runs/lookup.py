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
    cell = find_cell(EvaluateConfig(run=config.run, genotype=config.genotype))
    return f"{cell.describe()}\n{open_table(config.table, config.epochs).describe(cell)}"


def find_cell(config: EvaluateConfig) -> Topology:
    """The cell of a run, a file or a string. Raises ValueError where there is none, or another architecture."""
    cell = find_genotype(config)
    if not isinstance(cell, Topology):
        raise ValueError("the architecture is no cell of NAS-Bench-201: search one with --space nasbench201")
    return cell


def open_table(path: Path, epochs: int = 200) -> NasBenchTable:
    """A table in any of the forms that `LookupConfig.table` names. Raises ValueError without one, MissingExtra without its package."""
    if not path.exists():
        raise ValueError(f"there is no table {path}: give a CSV file, or a file or folder of nats_bench or nas_201_api")
    if path.name.endswith((".csv", ".csv.gz")):
        return NasBenchTable.from_csv(path)
    if path.suffix == ".pth":
        _need("nas_201_api")
        from nas_201_api import NASBench201API

        try:
            with torch.serialization.safe_globals(NUMBERS):
                api = NASBench201API(str(path), verbose=False)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} holds more than numbers, and reading it could execute code: {str(error)[-200:]}") from error
        return NasBenchTable.from_official(api, epochs)
    _need("nats_bench")
    from nats_bench import create

    return NasBenchTable.from_official(create(str(path), "tss", fast_mode=path.is_dir(), verbose=False), epochs)


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"this table needs the package {module}: pip install 'pamkd[nasbench]', or give a CSV file")
