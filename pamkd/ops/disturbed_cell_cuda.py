"""`disturbed_cell` on a GPU: `mixed_cell_cuda` with kernels that draw (`kernels/draws.py`)."""

from __future__ import annotations

from torch import Tensor

from pamkd.ops import mixed_cell_cuda
from pamkd.reference.disturbance import Disturbance


def forward(
    s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, code: list[int], draws: list[int], keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """pamkd::disturbed_cell_forward."""
    return mixed_cell_cuda.forward(s0, s1, weights, mix, code, keep, Disturbance.decode(draws))


def backward(
    grad: Tensor, s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, nodes: Tensor, halves: Tensor, kept: Tensor,
    code: list[int], draws: list[int], need_s0: bool, need_s1: bool, need_weights: bool, need_mix: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """pamkd::disturbed_cell_backward."""
    needs = need_s0, need_s1, need_weights, need_mix
    return mixed_cell_cuda.backward(grad, s0, s1, weights, mix, nodes, halves, kept, code, *needs, Disturbance.decode(draws))
