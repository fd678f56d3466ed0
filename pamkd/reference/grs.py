"""Group-wise relative similarity composed of plain PyTorch calls: the oracle of the compiled operations, twice differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_NORM = 1e-8  # as torch.nn.functional.cosine_similarity


def normalized(embeddings: Tensor) -> Tensor:
    """`e / e.norm(dim=-1, keepdim=True).clamp_min(1e-8)`, with finite first and second derivatives also for zero rows."""
    square = (embeddings * embeddings).sum(-1, keepdim=True)
    long = square > MIN_NORM**2
    # The inner `where` keeps the square root of 0, whose derivative is infinite, out of the graph.
    return embeddings * torch.where(long, torch.where(long, square, 1).rsqrt(), 1 / MIN_NORM)


def pairwise_cosine(embeddings: Tensor) -> Tensor:
    """[L, N, D] -> [L, N, N], `u @ u.mT` with `u = e / e.norm(dim=-1, keepdim=True).clamp_min(1e-8)`."""
    unit = normalized(embeddings)
    return unit @ unit.mT


def group_min_similarity(embeddings: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """embeddings [L, N, D], groups [G, R] -> smallest cosine in each group [L, G] and its pair of rows [L, G, 2]; ties: the first."""
    (count, size), n = groups.shape, embeddings.shape[1]
    first, second = torch.triu_indices(size, size, 1, device=groups.device)
    rows = torch.stack([groups[:, first], groups[:, second]], -1)  # [G, R (R - 1) / 2, 2]
    if n * n <= count * size * size:
        cosine = pairwise_cosine(embeddings)[:, rows[..., 0], rows[..., 1]]
    else:
        unit = normalized(embeddings)[:, groups]  # [L, G, R, D]
        cosine = (unit @ unit.mT)[..., first, second]
    smallest = cosine.argmin(-1, keepdim=True)  # documented to be the first of equal ones
    pairs = rows.expand(len(embeddings), -1, -1, -1).gather(2, smallest[..., None].expand(-1, -1, -1, 2))
    return cosine.gather(-1, smallest).squeeze(-1), pairs.squeeze(2)


def grs_hinge(teacher: Tensor, student: Tensor, eps: float) -> Tensor:
    """teacher [Kt, P, 2], student [Ks, P, 2] -> [Ks, Kt], `sum_p [t_p != 0] relu(eps - t_p s_p)` over differences t, s."""
    t = (teacher[..., 0] - teacher[..., 1])[None]
    s = (student[..., 0] - student[..., 1])[:, None]
    return torch.where(t != 0, torch.relu(eps - t * s), 0).sum(-1)


def grs_loss(e_teacher: Tensor, e_student: Tensor, groups_x: Tensor, groups_y: Tensor, eps: float = 0.01, reduction: str = "sum") -> Tensor:
    """`grs_hinge` of the `group_min_similarity` of both; [N, D] or [K, N, D] each -> [Ks, Kt] without the dimensions not given."""
    groups, count = torch.cat([groups_x, groups_y]), len(groups_x)

    def similarities(embeddings: Tensor) -> Tensor:
        sets = embeddings if embeddings.dim() == 3 else embeddings[None]
        return group_min_similarity(sets, groups)[0].view(-1, 2, count).mT  # [K, P, 2]

    loss = grs_hinge(similarities(e_teacher), similarities(e_student), eps)
    loss = loss / count if reduction == "mean" else loss
    if e_teacher.dim() == 2:
        loss = loss[:, 0]
    return loss[0] if e_student.dim() == 2 else loss
