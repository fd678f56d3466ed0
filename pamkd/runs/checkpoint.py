"""Checkpoints: one safetensors file, written atomically, checked by a digest, loaded without executing anything."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pamkd.runs.errors import CheckpointError

FORMAT = "pamkd-checkpoint-1"
T = TypeVar("T")


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON-serialisable meta. The old file stays until the new one is complete on disk.

    Raises OSError, with the old file intact, when the disk is full.
    """
    tensors = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    text = json.dumps(meta)
    header = {"format": FORMAT, "meta": text, "digest": _digest(tensors, text)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as other files of the run; save_file lets nobody else read its own
        save_file(tensors, temporary, header)
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (SafetensorError, OSError) as error:  # the first wraps the operating system's message
        what = f"could not write {path}: {error}; the previous checkpoint is intact"
        raise OSError(f"{what}: make room there or make it writable, then continue with --resume") from error
    finally:
        temporary.unlink(missing_ok=True)


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is."""
    return path.with_stem(path.stem + "-previous")


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and meta of a checkpoint, or where it is absent, cut short, altered or foreign, of the one before it.

    Says so in a warning then. Raises CheckpointError when that one cannot be used either.
    """
    return restore(path, lambda tensors, meta: (tensors, meta))


def restore(path: Path, take: Callable[[dict[str, Tensor], dict[str, Any]], T]) -> T:
    """`take(tensors, meta)` of `load`, which also goes to the checkpoint before where `take` fails, because the last is another run's."""
    try:
        return _take(path, take)
    except CheckpointError as error:
        try:
            found = _take(previous(path), take)
        except CheckpointError:
            raise error from None
        warnings.warn(f"{error}. The one before it is used: {previous(path)}", stacklevel=2)
        return found


def _take(path: Path, take: Callable[[dict[str, Tensor], dict[str, Any]], T]) -> T:
    found = _load(path)
    try:
        return take(*found)
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"checkpoint {path} does not hold what this run needs ({what}): it belongs to another") from error


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: start again without --resume (--overwrite)")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or no safetensors file ({error}): restore it or start again without --resume"
        ) from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this program (format {header.get('format')!r}, needed {FORMAT!r})")
    if header.get("digest") != _digest(tensors, header.get("meta", "")):
        raise CheckpointError(
            f"checkpoint {path} is damaged: its contents do not match its digest; restore it or start again without --resume"
        )
    return tensors, json.loads(header["meta"])


def _sync_folder(folder: Path) -> None:
    """So that the renaming outlives a power failure too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(tensors: dict[str, Tensor], meta: str) -> str:
    sha = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
