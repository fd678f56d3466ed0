"""Inputs in every layout that a caller may bring, and the accuracy that is asked of a kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x [a, b, c] in memory that is contiguous, transposed, a slice of a wider tensor, and reversed in axis order."""
    wide = torch.full((x.shape[0], x.shape[1], 2 * x.shape[2] + 1), float("nan"), dtype=x.dtype)
    wide[..., 1::2] = x
    return {
        "contiguous": x.contiguous(),
        "transposed": x.mT.contiguous().mT,
        "sliced": wide[..., 1::2],
        "axes": x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    }


def assert_accurate(ours: Tensor, eager: Tensor, truth: Tensor, *, rounding: float = 8) -> None:
    """The error against the float64 truth is at most twice eager's in the same dtype, plus `rounding` units in the last place."""
    assert ours.dtype == eager.dtype and ours.shape == truth.shape
    scale = max(1.0, truth.abs().max().item())
    allowed = 2 * (eager.double() - truth).abs().max().item() + rounding * torch.finfo(ours.dtype).eps * scale
    assert (ours.double() - truth).abs().max().item() <= allowed


def assert_repeatable(runs: list[list[Tensor]]) -> None:
    """The second run has the bits of the first; the others, with other numbers of threads, are equal to rounding in float32."""
    for first, again, *others in zip(*runs, strict=True):
        assert torch.equal(first, again)
        for other in others:
            assert (other - first).abs().max() <= 2e-6 * max(1.0, first.abs().max().item())
