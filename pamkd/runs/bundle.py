"""One step of a search in one file: everything that it was made of, so that it can be taken again elsewhere."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pamkd.methods.method import Phase
from pamkd.runs import checkpoint
from pamkd.runs.errors import CheckpointError
from pamkd.runs.search_state import SearchState, Step
from pamkd.trilevel.passes import Batch

BUNDLE = Path("divergence.safetensors")  # in a run folder; the one before it is kept too
T = TypeVar("T")


def save(path: Path, state: SearchState, step: Step, message: str) -> None:
    """Write the state before the step, the step, and what was said of it: all processes together, by the main one."""
    tensors, meta = state.snapshot()
    network, columns = state.learners[0].network, state.mesh.columns
    for name in ("train", "valid"):
        images, labels = getattr(step, name)
        tensors |= {f"{name}.images": columns.gather(images)[0], f"{name}.labels": labels}
    meta["step_of"] = {"lr": step.lr, "phase": step.phase, "number": step.number}
    meta |= {"classes": network.classes, "image_channels": network.image_channels, "message": message}
    meta["parts"] = 1 if columns.synchronised else columns.group.size  # of a batch, from which BatchNorm took statistics
    if state.mesh.main:
        checkpoint.save(path, tensors, meta)


def load(path: Path, take: Callable[[dict[str, Tensor], dict[str, Any], Step], T]) -> T:
    """`take(tensors, meta, step)` of a bundle. Raises ValueError where there is none, CheckpointError for a file that is none."""
    if not path.is_file():
        raise ValueError(f"there is no bundle {path}: a search writes {BUNDLE} into its folder when a step diverges")

    def with_step(tensors: dict[str, Tensor], meta: dict[str, Any]) -> T:
        if "step_of" not in meta:
            raise CheckpointError(f"{path} is a checkpoint, no step: needed is the {BUNDLE} of a run folder")
        lr, phase, number = (meta["step_of"][name] for name in ("lr", "phase", "number"))
        if phase not in typing.get_args(Phase):
            raise ValueError(f"phase {phase!r}")
        train, valid = (_batch(tensors, name, meta) for name in ("train", "valid"))
        return take(tensors, meta, Step(train, valid, float(lr), phase, int(number)))

    return checkpoint.restore(path, with_step)


def _batch(tensors: dict[str, Tensor], name: str, meta: dict[str, Any]) -> Batch:
    images, labels = (tensors[f"{name}.{part}"] for part in Batch._fields)
    shaped = images.dim() == 4 and images.shape[1] == meta["image_channels"] and labels.shape == images.shape[:1] and len(labels) > 0
    if not (shaped and images.is_floating_point() and labels.dtype == torch.int64 and 0 <= labels.min() <= labels.max() < meta["classes"]):
        raise ValueError(f"{name}: images {images.dtype} {tuple(images.shape)}, labels {labels.dtype} {tuple(labels.shape)}")
    return Batch(images, labels)
