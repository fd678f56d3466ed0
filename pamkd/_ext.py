"""Load the compiled operations. A kernel that this build lacks is replaced by one that says so."""

from __future__ import annotations

from pathlib import Path

import torch

from pamkd.ops._library import COMPILED, LIB

_PATH = Path(__file__).with_name("_C.so")
BUILT = _PATH.exists()
REBUILD = "reinstall with: pip install --no-build-isolation ."


def load() -> None:
    """Register the compiled kernels. Raises ImportError when the extension is there and does not load."""
    if BUILT:
        try:
            torch.ops.load_library(str(_PATH))
        except OSError as error:
            raise ImportError(
                f"pamkd's compiled operations failed to load under PyTorch {torch.__version__} ({error}); {REBUILD}"
            ) from error
    for op, keys in COMPILED.items():
        for key in keys:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pamkd::{op}", key):
                LIB.impl(op, _missing(op, key), key)


def _missing(op: str, key: str):
    why = f"the extension was built without its {key} kernel" if BUILT else "the C++ extension is not built"

    def raise_(*args, **kwargs):
        raise NotImplementedError(f"pamkd::{op}: {why}; {REBUILD}")

    return raise_
