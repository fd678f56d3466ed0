"""Derivatives along a direction by central differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pamkd.distributed import ALL_HERE, Rows
from pamkd.ops import perturb

DEFAULT_FD_STEP = 1e-2  # DARTS: perturbations have this norm


def central_difference(
    gradients: Callable[[list[Tensor]], Sequence[Sequence[Tensor]]],
    points: Sequence[Tensor],
    directions: Sequence[Tensor],
    fd_step: float,
    rows: Rows = ALL_HERE,
) -> list[list[Tensor]]:
    """[g(x + e d) - g(x - e d)] / 2e, e = fd_step / ||d||, a list of tensors for every point x and its direction d, vectors both.

    `gradients` gets all x + e d and, behind them, all x - e d, and gives the list g of each. Norms are those on all `rows`. Perturbs
    copies: the points themselves are never written. A zero direction has derivatives zero.
    """
    perturbed = perturb if rows.group.size == 1 else partial(_perturb_together, rows=rows)
    ends, eps = zip(*(perturbed(point, direction, fd_step) for point, direction in zip(points, directions, strict=True)), strict=True)
    found = gradients([end[side] for side in (0, 1) for end in ends])
    scales = [torch.where(e > 0, 0.5 / e, 0) for e in eps]
    sides = zip(found[: len(points)], found[len(points) :], scales, strict=True)
    return [[(p - m) * scale for p, m in zip(plus, minus, strict=True)] for plus, minus, scale in sides]


def _perturb_together(point: Tensor, direction: Tensor, fd_step: float, rows: Rows) -> tuple[list[Tensor], Tensor]:
    """`perturb` of a vector of which each row has a part."""
    (square,) = rows.total([direction.square().sum()])
    eps = torch.where(square > 0, fd_step / square.sqrt(), 0)
    return [torch.addcmul(point, direction, sign * eps) for sign in (1, -1)], eps
