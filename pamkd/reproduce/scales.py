"""How large the runs behind a table are: the paper's, a laptop's, or a test's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pamkd.reproduce.paper import Row
from pamkd.runs import evaluate_presets
from pamkd.runs.config import SearchConfig
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.search_presets import PRESETS
from pamkd.spaces import SPACES


@dataclass(frozen=True)
class Scale:
    """Options over the presets. `dataset` None: the table's own datasets, with the paper's settings."""

    seeds: tuple[int, ...]
    dataset: str | None
    search: dict[str, Any]
    evaluation: dict[str, Any]

    def of_images(self) -> Scale:
        """The same over a folder of images of 16x16, in six tenths of the epochs."""
        search, evaluation = ({**part, "image_size": 16, "epochs": -(-6 * part["epochs"] // 10)} for part in (self.search, self.evaluation))
        return dataclasses.replace(self, dataset="folder", search=search, evaluation=evaluation | {"crop_padding": 2})


SCALES: dict[str, Scale] = {
    "paper": Scale(tuple(range(10)), None, {}, {}),
    # Handwritten digits, a supernet of 3 cells and 4 channels, first order as all rows of the paper's tables: a minute a run on one core.
    # `of_images`: a quarter of an hour a run on 10,000 images. arch_lr: of 6e-3, 5e-2, 1e-1 and 2e-1 the one that leaves plain searches
    # (seeds 101 and 102) the lowest validation loss; with a preset's 6e-3 so few steps hardly move an architecture.
    "small": Scale(
        tuple(range(5)),
        "digits",
        {"epochs": 10, "channels": 4, "cells": 3, "lr": 0.05, "arch_lr": 5e-2},
        {"epochs": 10},
    ),
    "smoke": Scale((0, 1), "digits", {"epochs": 1, "channels": 2, "cells": 3, "lr": 0.05}, {"channels": 2, "cells": 3, "epochs": 1}),
}
# Where the channels of a scale cannot be divided into the parts of a space.
CHANNELS = {"pcdarts": {"channels": 4}, "drnas": {"channels": 12}}
# Sec. 4.2 has 8 cells on CIFAR and 50 epochs, also where a space's own paper has others. P-DARTS keeps its stages, which neither fits.
STATED: dict[str, dict[str, Any]] = {"prdarts": {"cells": 8, "epochs": 50}, "drnas-nasbench201": {"epochs": 50}}


@dataclass(frozen=True)
class Machine:
    """Where the datasets lie, and what computes."""

    data: Path | None = None
    device: str = "cpu"
    threads: int = 0
    workers: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """Those of a search and of an evaluation alike."""
        return {"device": self.device, "threads": self.threads, "workers": self.workers}


def columns(scale: Scale, row: Row) -> tuple[str, ...]:
    """The datasets on which a row is run."""
    return tuple(row.paper) if scale.dataset is None else (scale.dataset,)


def search_config(scale: Scale, row: Row, column: str, seed: int, machine: Machine) -> SearchConfig:
    """The search of one row, column and seed. Raises ValueError where no setting of the row's space on the dataset is known."""
    options: dict[str, Any] = {"space": row.space, "method": row.method, "order": "first", "seed": seed}
    options |= machine.options | row.options
    if scale.dataset is not None:
        options |= {"dataset": scale.dataset, "data": machine.data} | CHANNELS.get(row.space, {})
        stages = getattr(SPACES[row.space], "stages", 1)  # each takes the same number of epochs
        epochs = -(-scale.search["epochs"] // stages) * stages
        return SearchConfig(**scale.search | {"epochs": epochs} | options)
    dataset = options.setdefault("dataset", column)
    if row.method != "pamkd":
        options.setdefault("distill_weight", None)  # a preset's lambda is PAMKD's (Sec. 4.2)
    base = PRESETS.get(f"{'darts1st' if row.space == 'darts' else row.space}-{dataset}")
    if base is None:
        raise ValueError(f"{row.key}: there is no preset of {row.space} on {dataset}, so the paper's setting is not known to this version")
    return dataclasses.replace(base, **STATED.get(row.space, {}) | options | ({"data": machine.data} if machine.data is not None else {}))


def evaluation_config(scale: Scale, row: Row, column: str, seed: int, machine: Machine) -> EvaluateConfig:
    name = evaluate_presets.preset_of(row.space, "digits" if column == "folder" else column)
    if name is None:
        raise ValueError(f"{row.key}: there is no preset for an evaluation on {column}")
    preset = evaluate_presets.PRESETS[name]
    options: dict[str, Any] = machine.options | {"seeds": (seed,), "dataset": column}
    return dataclasses.replace(preset, **scale.evaluation | options | ({"data": machine.data} if machine.data is not None else {}))
