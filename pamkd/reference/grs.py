"""Group-wise relative similarity composed of plain PyTorch calls: the oracle of the compiled operations, twice differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_NORM = 1e-8  # as torch.nn.functional.cosine_similarity


def pairwise_cosine(embeddings: Tensor) -> Tensor:
    """[L, N, D] -> [L, N, N], `u @ u.mT` with `u = e / e.norm(dim=-1, keepdim=True).clamp_min(1e-8)`."""
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True).clamp_min(MIN_NORM)
    return unit @ unit.mT


def group_min_similarity(embeddings: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """embeddings [L, N, D], groups [G, R] -> smallest cosine in each group [L, G] and its pair of rows [L, G, 2]; ties: the first."""
    first, second = torch.triu_indices(groups.shape[1], groups.shape[1], 1, device=groups.device)
    rows = torch.stack([groups[:, first], groups[:, second]], -1)  # [G, R (R - 1) / 2, 2]
    cosine = pairwise_cosine(embeddings)[:, rows[..., 0], rows[..., 1]]
    smallest = cosine.argmin(-1, keepdim=True)  # documented to be the first of equal ones
    pairs = rows.expand(len(embeddings), -1, -1, -1).gather(2, smallest[..., None].expand(-1, -1, -1, 2))
    return cosine.gather(-1, smallest).squeeze(-1), pairs.squeeze(2)


def grs_hinge(teacher: Tensor, student: Tensor, eps: float) -> Tensor:
    """teacher [Kt, P, 2], student [Ks, P, 2] -> [Ks, Kt], `sum_p [t_p != 0] relu(eps - t_p s_p)` over differences t, s."""
    t = (teacher[..., 0] - teacher[..., 1])[None]
    s = (student[..., 0] - student[..., 1])[:, None]
    return torch.where(t != 0, torch.relu(eps - t * s), 0).sum(-1)
