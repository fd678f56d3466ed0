"""Derivatives along a direction by central differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pamkd.distributed import ALL_HERE, Rows
from pamkd.ops import perturb

DEFAULT_FD_STEP = 1e-2  # DARTS: perturbations have this norm


def central_difference(
    gradients: Callable[[list[Tensor]], list[Tensor]],
    points: Sequence[Tensor],
    directions: Sequence[Tensor],
    fd_step: float,
    rows: Rows = ALL_HERE,
) -> list[Tensor]:
    """[gradients(points + e * directions) - gradients(points - e * directions)] / 2e, e = fd_step / ||directions||.

    Points and directions are vectors of equal sizes; the norm is that of all directions together, on all `rows`. Perturbs
    copies: the points themselves are never written. A zero direction has derivatives zero.
    """
    point, direction = torch.cat(list(points)), torch.cat(list(directions))
    ends, eps = perturb(point, direction, fd_step) if rows.group.size == 1 else _perturb_together(point, direction, fd_step, rows)
    plus, minus = (gradients(list(end.split([len(point) for point in points]))) for end in ends)
    scale = torch.where(eps > 0, 0.5 / eps, 0)
    return [(p - m) * scale for p, m in zip(plus, minus, strict=True)]


def _perturb_together(point: Tensor, direction: Tensor, fd_step: float, rows: Rows) -> tuple[list[Tensor], Tensor]:
    """`perturb` of a vector of which each row has a part."""
    (square,) = rows.total([direction.square().sum()])
    eps = torch.where(square > 0, fd_step / square.sqrt(), 0)
    return [torch.addcmul(point, direction, sign * eps) for sign in (1, -1)], eps
