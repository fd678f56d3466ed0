"""`pamkd reproduce`: list or run what stands behind a table or figure of the paper, and write it."""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pamkd.reproduce.figure1 import figure1
from pamkd.reproduce.neighbours import compare_neighbours
from pamkd.reproduce.paper import TABLES, Row
from pamkd.reproduce.scales import SCALES, Machine, Scale, columns, evaluation_config, search_config
from pamkd.reproduce.units import Unit, gather
from pamkd.reproduce.write import write_table
from pamkd.runs.lookup import open_table
from pamkd.spaces import SPACES


@dataclass(frozen=True)
class ReproduceConfig:
    """List or run the searches and evaluations behind a table or figure of the paper, and write it with the paper's figures."""

    what: tyro.conf.Positional[str]
    """table1 to table6, or figure1 to figure3."""
    scale: Literal["paper", "small", "smoke"] = "small"
    """The paper's setting; a minute a run on digits; or a test."""
    rows: tuple[str, ...] = ("*",)
    """Patterns of the rows to run, such as 'darts/*' or '*/mkd'; --list names them."""
    seeds: tuple[int, ...] = ()
    """Default: 10 at the scale paper, 5 at small, 2 at smoke."""
    space: str | None = None
    """Search in this space instead of the rows' own."""
    list: bool = False
    """Print the runs and whether they are done, and write what is there; run nothing."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs and tables; a command that was stopped goes on in it."""
    data: Path | None = None
    """Where the datasets lie; at the scales small and smoke, a folder of images (train/<class>/*.jpg, test/...) instead of digits."""
    table: Path | None = None
    """A table of NAS-Bench-201 (pamkd lookup) in which table4 looks its cells up, as the paper does, instead of training them."""
    device: str = "cpu"
    """A PyTorch device for all of it."""
    threads: int = 0
    """CPU threads; 0: PyTorch's choice."""
    workers: int = 0
    """Processes that decode images of lazily loaded datasets."""

    @property
    def machine(self) -> Machine:
        return Machine(self.data, self.device, self.threads, self.workers)


def reproduce(config: ReproduceConfig) -> list[Path]:
    """Run what is missing and write the table. Raises ValueError for an unknown table or row; returns the files written."""
    if config.threads < 0:
        raise ValueError(f"threads is {config.threads}: needed is 0 (PyTorch's choice) or more")
    if config.space is not None and config.space not in SPACES:
        raise ValueError(f"space is {config.space!r}: needed is one of {', '.join(SPACES)}")
    if config.table is not None and (config.what, config.scale) != ("table4", "paper"):
        raise ValueError(f"table is {config.table}: needed is None, except for table4 at the scale paper")
    looked_up = None if config.table is None else open_table(config.table)
    scale = _scale(config)
    pictures = f"-{config.data.resolve().name}" if config.data is not None and scale.dataset == "folder" else ""
    root = config.out / (config.scale + pictures)
    if config.what == "figure1":
        return figure1(config, root)
    if config.what not in TABLES:
        raise ValueError(
            f"{config.what!r} is no table or figure that can be reproduced; those are {', '.join(sorted(['figure1', *TABLES]))}"
        )
    table = TABLES[config.what]
    rows = [row for row in table.rows if any(fnmatch.fnmatchcase(row.key, pattern) for pattern in config.rows)]
    if config.space is not None:
        rows = [dataclasses.replace(row, space=config.space) for row in rows]
    if not rows:
        raise ValueError(f"no row of {config.what} matches {' '.join(config.rows)}; rows are {', '.join(row.key for row in table.rows)}")
    units: list[Unit] = []
    missing: list[str] = []
    for row in rows:
        try:
            units += _units(config, scale, row, root)
        except ValueError as error:
            missing.append(str(error))
    for unit in units:
        if config.list:
            print(f"{'done   ' if unit.done else 'to run '} {unit.row.key} {unit.column} seed {unit.seed}: {unit.commands()}")
        elif not unit.done:
            print(f"{config.what} {unit.row.key} {unit.column} seed {unit.seed}: {unit.search.folder}", file=sys.stderr, flush=True)
            unit.run()
    for sentence in missing:
        print(f"left out: {sentence}", file=sys.stderr)
    notes = _notes(config, missing)
    if config.what == "figure2" and not config.list:
        root.mkdir(parents=True, exist_ok=True)
        notes += compare_neighbours(units, root / "figure2.png")
    datasets = tuple(table.columns) if scale.dataset is None else (scale.dataset,)
    return write_table(root / config.what, table, datasets, rows, gather(units, looked_up), notes)


def _scale(config: ReproduceConfig) -> Scale:
    scale = SCALES[config.scale]
    return scale.of_images() if scale.dataset is not None and config.data is not None else scale


def _units(config: ReproduceConfig, scale: Scale, row: Row, root: Path) -> Sequence[Unit]:
    return [
        Unit.of(
            row,
            column,
            seed,
            search_config(scale, row, column, seed, config.machine),
            evaluation_config(scale, row, column, seed, config.machine),
            root,
            config.table,
        )
        for column in columns(scale, row)
        for seed in config.seeds or scale.seeds
    ]


def _notes(config: ReproduceConfig, missing: Sequence[str]) -> list[str]:
    notes = [f"Scale {config.scale}. Ours: mean ± sample standard deviation over seeds; a seed fixes split, weights and batches."]
    notes.append("A difference is ours less the reference's, seed by seed; p by exact sign flips, two-sided.")
    if config.space is not None:
        notes.append(f"All rows were searched in the space {config.space}.")
    if config.table is not None:
        notes.append(f"Errors are what {config.table} knows of the cells that were found.")
    if config.scale == "paper":
        notes.append(
            "Searches as in Sec. 4.2: 8 cells on CIFAR, 50 epochs; P-DARTS has its own three stages of 25 epochs and 5, 11 and 17 cells. "
            "What the section leaves open, batches and learning rates among it, is from the papers of the spaces."
        )
    else:
        notes.append("Ours is another dataset and a smaller network than the paper's: compare within a column, not across.")
    return notes + [f"Left out: {sentence}." for sentence in missing]
