"""The `pamkd::` operator library and the helpers that every operation file uses."""

from __future__ import annotations

import torch

LIB = torch.library.Library("pamkd", "DEF")

# operation -> dispatch keys whose kernel lives in the compiled extension; checked by pamkd._ext after loading it.
COMPILED: dict[str, tuple[str, ...]] = {}


def define(schema: str, *, compiled: tuple[str, ...] = ("CPU",)) -> str:
    """Define an operation of the library; returns its qualified name."""
    LIB.define(schema)
    name = schema.split("(")[0]
    COMPILED[name] = compiled
    return f"pamkd::{name}"


def deny_double_backward(name: str, advice: str) -> None:
    """Make differentiating the backward operation `name` raise: an opaque kernel would return a wrong second derivative."""

    def backward(ctx, *grads):
        raise NotImplementedError(f"{name} has no second derivative: {advice}")

    torch.library.register_autograd(name, backward, lib=LIB)
