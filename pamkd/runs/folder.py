"""The run folder: what lies in it, and how a new one begins."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

from pamkd.distributed import Mesh
from pamkd.runs import checkpoint
from pamkd.runs.logs import naming, summary_writer, write_json
from pamkd.runs.manifest import launchers, manifest
from pamkd.runs.options import CONFIG_NAME, FolderOptions, RunOptions, save_config

CHECKPOINT = Path("checkpoints") / "last.safetensors"
MANIFEST = "manifest.json"
Options = TypeVar("Options", bound=RunOptions)


def open_folder(config: FolderOptions, facts: dict[str, Any]) -> None:
    """Make `config.out` and write configuration and manifest. Raises ValueError where a run is, unless it may be overwritten."""
    folder = config.folder
    if isinstance(config, RunOptions) and config.tensorboard:
        summary_writer()  # before there is a folder that a second try would find
    if (folder / CONFIG_NAME).exists():
        if not (folder / MANIFEST).exists():  # which a run writes first
            raise ValueError(f"{folder} holds a {CONFIG_NAME} that no run wrote ({MANIFEST} is missing): choose another --out")
        if not config.overwrite:
            way = "continue it with --resume, " if isinstance(config, RunOptions) else ""
            raise ValueError(f"{folder} already holds a run: {way}replace it with --overwrite, or choose another --out")
        shutil.rmtree(folder)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MANIFEST, manifest(config.device) | facts)
    save_config(config, folder / CONFIG_NAME)


def continued(config: Options, mesh: Mesh) -> Options:
    """The configuration of processes that torchrun has started again, or SLURM a job: they go on with the run that the first ones began.

    A run that another command began is left alone, as in a first start.
    """
    again = {count: name for count, name in launchers().items() if os.environ.get(count, "0") != "0"}
    if config.out is None or config.resume or not again:
        return config
    path = config.out / MANIFEST
    begun_by = json.loads(path.read_text()).get("launchers", {}) if path.is_file() else {}
    ours = any(begun_by.get(count) == name for count, name in again.items())
    ours, begun = mesh.world.objects((ours, from_checkpoint(config)))[0]  # the launcher is the main process's
    return begun if ours else config


def from_checkpoint(config: Options) -> Options:
    """The run from its checkpoint where it has one, else from its start (in place of one that was killed before its first checkpoint)."""
    path = config.folder / CHECKPOINT
    begun = path.is_file() or checkpoint.previous(path).is_file()
    return dataclasses.replace(config, resume=begun, overwrite=not begun)
