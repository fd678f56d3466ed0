"""Derivatives along a direction by central differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pamkd.ops import perturb

DEFAULT_FD_STEP = 1e-2  # DARTS: perturbations have this norm


def central_difference(
    gradients: Callable[[list[Tensor]], list[Tensor]], points: Sequence[Tensor], directions: Sequence[Tensor], fd_step: float
) -> list[Tensor]:
    """[gradients(points + e * directions) - gradients(points - e * directions)] / 2e, e = fd_step / ||directions||.

    Points and directions are vectors of equal sizes; the norm is that of all directions together. Perturbs copies: the
    points themselves are never written. A zero direction has derivatives zero.
    """
    ends, eps = perturb(torch.cat(list(points)), torch.cat(list(directions)), fd_step)
    plus, minus = (gradients(list(end.split([len(point) for point in points]))) for end in ends)
    scale = torch.where(eps > 0, 0.5 / eps, 0)
    return [(p - m) * scale for p, m in zip(plus, minus, strict=True)]
