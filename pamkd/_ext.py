"""Load the compiled operations. A kernel that this build lacks is replaced by one that says why."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from pamkd.ops._library import COMPILED, IMPLEMENTATIONS, LIB

PATH = Path(__file__).with_name("_C.so")
CUDA_PATH = PATH.with_name("_cuda.so")
REBUILD = "reinstall with: pip install --no-build-isolation ."


def load() -> str | None:
    """Register the compiled kernels. Returns why they could not be loaded; each operation then raises with that reason."""
    problem = _load(PATH, "C++ extension")
    if torch.version.cuda and CUDA_PATH.exists():
        problem = problem or _load(CUDA_PATH, "CUDA part of the extension")
    else:  # the eager composition takes their place, and says so
        for devices in IMPLEMENTATIONS.values():
            if "CUDA C++" in devices.get("cuda", ""):
                del devices["cuda"]
    for op, keys in COMPILED.items():
        for key in keys:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pamkd::{op}", key):
                LIB.impl(op, _missing(op, problem or f"the C++ extension was built without its {key} kernel"), key)
    return problem


def _load(path: Path, what: str) -> str | None:
    if not path.exists():
        return f"the {what} is not built"
    if cut := missing_bytes(path):
        return f"the {what} is built but its file is cut short ({cut} bytes are missing at the end of {path})"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the {what} is built but failed to load under PyTorch {torch.__version__} ({error})"
    return None


def missing_bytes(path: Path) -> int:
    """How many bytes a shared library lacks at its end: the loader would not refuse it but die of SIGBUS.

    The table of sections stands at the end of an ELF file, and the header says where.
    """
    with path.open("rb") as file:
        header = file.read(64)
    if header[:5] != b"\x7fELF\x02" or len(header) < 64:
        return 0  # not ELF of 64 bits: the loader checks it
    offset, size, count = struct.unpack_from("<Q", header, 40)[0], *struct.unpack_from("<HH", header, 58)
    return max(0, offset + size * count - path.stat().st_size)


def _missing(op: str, why: str) -> Callable[..., NoReturn]:
    def raise_(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"pamkd::{op}: {why}; {REBUILD}")

    return raise_


PROBLEM = load()
