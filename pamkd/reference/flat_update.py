"""Updates of flat weight sets composed of plain PyTorch calls."""

from __future__ import annotations

import torch
from torch import Tensor


def sgd_update(
    weights: Tensor, buffer: Tensor, gradient: Tensor, lr: float, momentum: float, weight_decay: float, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """m' = momentum m + c g + weight_decay w, w' = w - lr m', c = min(1, clip / (||g|| + 1e-6)) (1 where clip is 0)."""
    norm = torch.linalg.vector_norm(gradient.detach(), dim=-1)
    coefficient = (clip / (norm + 1e-6)).clamp(max=1.0) if clip else torch.ones_like(norm)
    buffer = momentum * buffer + (coefficient[..., None] * gradient + weight_decay * weights)
    return weights - lr * buffer, buffer, coefficient


def perturb(point: Tensor, direction: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """(point + eps direction, point - eps direction) and eps = step / ||direction||, 0 where the direction is."""
    norm = torch.linalg.vector_norm(direction.detach(), dim=-1)
    eps = torch.where(norm > 0, step / norm, 0)
    return torch.stack([torch.addcmul(point, direction, sign * eps[..., None]) for sign in (1, -1)]), eps
