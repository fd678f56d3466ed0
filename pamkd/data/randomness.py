"""Counter-based randomness: every draw is a function of a seed and the names of what it is for, so no state is ever saved."""

from __future__ import annotations

import hashlib
import json

import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """The first 63 bits of sha256 of `[seed, *names]`: independent streams for different names, the same on every machine."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded by `derived_seed(seed, *names)`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, *names))
