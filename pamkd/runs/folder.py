"""The run folder: what lies in it, and how a new one begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pamkd.runs.logs import write_json
from pamkd.runs.manifest import manifest
from pamkd.runs.options import CONFIG_NAME, RunOptions, save_config

CHECKPOINT = Path("checkpoints") / "last.safetensors"


def open_folder(config: RunOptions, facts: dict[str, Any]) -> None:
    """Make `config.out` and write configuration and manifest. Raises ValueError where a run is, unless it may be overwritten."""
    folder = config.out
    if (folder / CONFIG_NAME).exists():
        if not config.overwrite:
            raise ValueError(
                f"{folder} already holds a run: continue it with --resume, replace it with --overwrite, or choose another --out"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / CONFIG_NAME)
    write_json(folder / "manifest.json", manifest(config.device) | facts)
