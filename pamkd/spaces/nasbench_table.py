"""Accuracies of all cells of NAS-Bench-201, from a CSV table or from the files of the official packages."""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pamkd.spaces.topology import Topology, every_topology

OFFICIAL = {  # our column: dataset and quantity of the official packages
    "cifar10_valid": ("cifar10-valid", "valid-accuracy"),
    "cifar10_test": ("cifar10", "test-accuracy"),
    "cifar100_valid": ("cifar100", "valid-accuracy"),
    "cifar100_test": ("cifar100", "test-accuracy"),
    "imagenet16_120_valid": ("ImageNet16-120", "valid-accuracy"),
    "imagenet16_120_test": ("ImageNet16-120", "test-accuracy"),
}


@dataclass(frozen=True)
class NasBenchTable:
    """Accuracy in percent of every cell that it knows, by column such as `cifar10_test`."""

    columns: dict[str, dict[Topology, float]]

    @classmethod
    def from_csv(cls, path: Path) -> NasBenchTable:
        """Read a CSV file (plain or .gz) with a column `architecture` of cell strings and columns of accuracies.

        Raises ValueError naming the file and line that cannot be read.
        """
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            rows = csv.DictReader(file)
            try:
                return cls(_columns(rows))
            except (csv.Error, EOFError, TypeError, ValueError, zlib.error) as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from error

    @classmethod
    def from_official(cls, api: Any, epochs: int = 200) -> NasBenchTable:
        """All cells from an object of `nats_bench.create(file, "tss")` or `nas_201_api.NASBench201API(file)`, the mean over seeds.

        Raises ValueError where it knows no training of so many epochs.
        """
        columns: dict[str, dict[Topology, float]] = {name: {} for name in OFFICIAL}
        available = _available(api)
        for cell in every_topology():
            index = api.query_index_by_arch(str(cell))
            if not available(index):
                continue
            for dataset, columns_of in itertools.groupby(OFFICIAL, key=lambda name: OFFICIAL[name][0]):
                try:
                    found = api.get_more_info(index, dataset, hp=str(epochs), is_random=False)
                except KeyError:  # the first version of the benchmark has one dataset for 12 epochs
                    continue
                for name in columns_of:
                    columns[name][cell] = float(found[OFFICIAL[name][1]])
            if _lazy(api):  # it keeps what it has read: 9 MB a cell
                api.arch2infos_dict.pop(index)
        columns = {name: known for name, known in columns.items() if known}
        if not columns:
            raise ValueError(f"epochs is {epochs}: the table has no trainings of so many; it has of 12 and of 200")
        return cls(columns)

    def accuracy(self, cell: Topology, column: str) -> float:
        """Raises ValueError where the table has no such column or cell."""
        known = self._column(column)
        if cell not in known:
            raise ValueError(f"the table has no cell {cell}")
        return known[cell]

    def rank(self, cell: Topology, column: str) -> int:
        """1 for the best cell of the column; cells of the same accuracy share the better rank."""
        own = self.accuracy(cell, column)
        return 1 + sum(other > own for other in self._column(column).values())

    def describe(self, cell: Topology) -> str:
        """One line for each column: accuracy and rank."""
        return "\n".join(
            f"{name:22} {self.accuracy(cell, name):6.2f} %  rank {self.rank(cell, name):,} of {len(known):,}"
            for name, known in self.columns.items()
        )

    def _column(self, column: str) -> dict[Topology, float]:
        if column not in self.columns:
            raise ValueError(f"the table has no column {column!r}; it has {', '.join(self.columns)}")
        return self.columns[column]


def _columns(rows: csv.DictReader[str]) -> dict[str, dict[Topology, float]]:
    names = [name for name in rows.fieldnames or () if name not in ("index", "architecture")]
    if "architecture" not in (rows.fieldnames or ()) or not names:
        raise ValueError("no table of NAS-Bench-201: needed is a column `architecture` and columns of accuracies")
    columns: dict[str, dict[Topology, float]] = {name: {} for name in names}
    for row in rows:
        if None in row.values():
            raise ValueError(f"{len(names)} accuracies and a cell are needed, and there are fewer entries")
        cell = Topology.parse(row["architecture"])
        for name in names:
            columns[name][cell] = float(row[name])
    return columns


def _available(api: Any) -> Callable[[int], bool]:
    """Whether an official package has results for the cell of an index."""
    if _lazy(api):
        return lambda index: index >= 0 and Path(api.archive_dir, f"{index:06d}.pickle.pbz2").is_file()
    return set(api.evaluated_indexes).__contains__


def _lazy(api: Any) -> bool:
    """Whether it reads a file for each cell when it is asked for it."""
    return getattr(api, "fast_mode", False)
