"""One step of a search in one file: everything that it was made of, so that it can be taken again elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pamkd.runs import checkpoint
from pamkd.runs.search_state import SearchState, Step
from pamkd.trilevel.passes import Batch

BUNDLE = Path("divergence.safetensors")  # in a run folder; the one before it is kept too


def save(path: Path, state: SearchState, step: Step, message: str) -> None:
    """Write the state before the step, the step, and what was said of it."""
    tensors, meta = state.snapshot()
    network = state.learners[0].network
    for name in ("train", "valid"):
        tensors |= {f"{name}.{part}": value for part, value in getattr(step, name)._asdict().items()}
    meta["step_of"] = {"lr": step.lr, "phase": step.phase, "number": step.number}
    meta |= {"classes": network.classes, "image_channels": network.image_channels, "message": message}
    checkpoint.save(path, tensors, meta)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], Step]:
    """State, meta and step of a bundle. Raises ValueError or CheckpointError for a file that is none."""
    if not path.is_file():
        raise ValueError(f"there is no bundle {path}: a search writes {BUNDLE} into its folder when a step diverges")
    tensors, meta = checkpoint.load(path)
    if "step_of" not in meta:
        raise ValueError(f"{path} is a checkpoint, no step: needed is the {BUNDLE} of a run folder")
    train, valid = (Batch(*(tensors[f"{name}.{part}"] for part in Batch._fields)) for name in ("train", "valid"))
    return tensors, meta, Step(train, valid, **meta["step_of"])
