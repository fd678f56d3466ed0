"""Every test: a fixed seed, uninitialised memory poisoned with NaN, one thread per worker of a parallel run."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def reproducible():
    torch.manual_seed(0)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    # Deterministic mode fills every new tensor with NaN (or the largest integer), also those that kernels allocate.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
