"""Group-wise relative similarity distillation in one call: embeddings of teacher and student to the loss."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from pamkd import ops, reference
from pamkd.ops._embeddings import check_embeddings, check_groups, example_embeddings, example_groups
from pamkd.ops._library import register


def grs_loss(
    teacher: Tensor,
    student: Tensor,
    groups_x: Tensor,
    groups_y: Tensor,
    eps: float = 0.01,
    *,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """sum_p [t_p != 0] relu(eps - t_p s_p) with t_p = s(X_p) - s(Y_p) of the teacher and s_p of the student, Eq. (7).

    `grs_hinge(s(teacher), s(student), eps)` with s = `group_min_similarity` over the groups of both sides.

    Args:
        teacher: embeddings [N, D], or [Kt, N, D] of several teachers; float32 or float64, or bfloat16 or float16 computed in
            float32; any strides. Detach it where it shall not learn.
        student: embeddings [N, D'] or [Ks, N, D'] of the same images; D' may differ from D.
        groups_x, groups_y: int64 [P, R], the rows of the two groups of each pair, R >= 2.
        eps: the margin.
        reduction: "sum" over the pairs (the paper's) or "mean".

    Returns:
        [Ks, Kt], without the dimension of an argument given as [N, D]: a scalar for one teacher and one student. float32 unless
        both are float64. Differentiable once, by both.

    Raises:
        TypeError: a dtype that is not usable, or differs between teacher and student.
        ValueError: a wrong shape, R < 2, groups larger than the batch, an empty batch, different devices, unknown reduction.
        RuntimeError: a group index out of range, or NaN or infinity in a row (it is named).
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"grs_loss: reduction is {reduction!r}; needed is 'sum' or 'mean'")
    for name, embeddings in (("teacher", teacher), ("student", student)):
        check_embeddings("grs_loss", name, embeddings, dims=(2, 3))
    if teacher.shape[-2] != student.shape[-2]:
        raise ValueError(f"grs_loss: teacher has {teacher.shape[-2]} rows and student {student.shape[-2]}; needed are the same images")
    if teacher.dtype != student.dtype:
        raise TypeError(f"grs_loss: teacher is {teacher.dtype} and student {student.dtype}; needed is one dtype")
    for name, groups in (("groups_x", groups_x), ("groups_y", groups_y)):
        check_groups("grs_loss", name, groups, teacher)
    if groups_x.shape != groups_y.shape:
        shapes = f"{tuple(groups_x.shape)} and {tuple(groups_y.shape)}"
        raise ValueError(f"grs_loss: groups_x and groups_y have shapes {shapes}; needed is one shape [P, R]")
    return _composed(ops, teacher, student, groups_x, groups_y, eps, reduction)


def _composed(
    parts: ModuleType, teacher: Tensor, student: Tensor, groups_x: Tensor, groups_y: Tensor, eps: float, reduction: str = "sum"
) -> Tensor:
    groups, pairs = torch.cat([groups_x, groups_y]), len(groups_x)

    def similarities(embeddings: Tensor) -> Tensor:
        sets = embeddings if embeddings.dim() == 3 else embeddings[None]
        similarity, _ = parts.group_min_similarity(sets, groups)
        return similarity.view(-1, 2, pairs).mT  # [K, P, 2]

    loss = parts.grs_hinge(similarities(teacher), similarities(student), eps)
    loss = loss / pairs if reduction == "mean" else loss
    if teacher.dim() == 2:
        loss = loss[:, 0]
    return loss[0] if student.dim() == 2 else loss


register(
    grs_loss,
    lambda *arguments: _composed(reference, *arguments),
    lambda: (example_embeddings(2, 0), example_embeddings(3, 1), example_groups(24, 5), (example_groups(24, 5).flip(0) + 1) % 40, 0.01),
    cpu="C++",
)
