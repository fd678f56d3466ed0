"""Derivatives along a direction by central differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pamkd.distributed import ALL_HERE, Rows

DEFAULT_FD_STEP = 1e-2  # DARTS: perturbations have this norm


def central_difference(
    gradients: Callable[[list[Tensor]], list[Tensor]],
    points: Sequence[Tensor],
    directions: Sequence[Tensor],
    fd_step: float,
    like: Sequence[Tensor],
    rows: Rows = ALL_HERE,
) -> list[Tensor]:
    """[gradients(points + e * directions) - gradients(points - e * directions)] / 2e, e = fd_step / ||directions||.

    Points and directions are vectors of equal shapes; the norm is that of all directions together, on all `rows`. Perturbs copies: the
    points themselves are never written. A zero direction has derivatives zero, shaped as `like`.
    """
    (lengths,) = rows.gather([[torch.linalg.vector_norm(direction)] for direction in directions])
    norm = torch.linalg.vector_norm(lengths)
    if norm == 0:
        return [torch.zeros_like(x) for x in like]
    eps = fd_step / norm
    plus, minus = (
        gradients([torch.addcmul(point, direction, sign * eps) for point, direction in zip(points, directions, strict=True)])
        for sign in (1, -1)
    )
    return [(p - m) / (2 * eps) for p, m in zip(plus, minus, strict=True)]
