"""Group-wise relative similarity distillation in one operation: embeddings of teacher and student to the loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pamkd import reference
from pamkd.ops._checks import check_numbers, check_tensors
from pamkd.ops._embeddings import check_embeddings, check_groups, computed, example_embeddings, example_groups, readable
from pamkd.ops._library import LIB, define, deny_double_backward, has_kernel, register, triton_kernels

# Kept for the backward pass, of teachers and then students: the similarities [K, P, 2], the rows that have them
# [K, P, 2, 2], and 1 / max(norm, 1e-8) of all rows [K, N].
define(
    "grs_loss(Tensor e_teacher, Tensor e_student, Tensor groups_x, Tensor groups_y, float eps, bool mean)"
    " -> (Tensor loss, Tensor similarity, Tensor pairs, Tensor teacher_scale, Tensor student_scale)"
)
define(
    "grs_loss_backward(Tensor grad, Tensor e_teacher, Tensor e_student, Tensor similarity, Tensor pairs, Tensor teacher_scale,"
    " Tensor student_scale, float eps, bool mean, bool need_teacher, bool need_student) -> (Tensor, Tensor)"
)


def grs_loss(
    e_teacher: Tensor,
    e_student: Tensor,
    groups_x: Tensor,
    groups_y: Tensor,
    eps: float = 0.01,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """sum_p [t_p != 0] relu(eps - t_p s_p) with t_p = s(X_p) - s(Y_p) of the teacher and s_p of the student, Eq. (7).

    `grs_hinge(s(e_teacher), s(e_student), eps)` with s = `group_min_similarity` over the groups of both sides, as one operation.

    Args:
        e_teacher: embeddings [N, D], or [Kt, N, D] of several teachers; float32 or float64, or bfloat16 or float16 computed in
            float32; any strides. Detach it where it shall not learn: that also saves its part of the backward pass.
        e_student: embeddings [N, D'] or [Ks, N, D'] of the same images, of the same dtype; D' may differ from D.
        groups_x, groups_y: int64 [P, R], the rows of the two groups of each pair, R >= 2.
        eps: the margin.
        reduction: "sum" over the pairs (the paper's) or "mean".

    Returns:
        [Ks, Kt], without the dimension of an argument given as [N, D]: a scalar for one teacher and one student. float64 for
        float64, else float32. Differentiable once, by both; twice through `pamkd.reference.grs_loss`.

    Raises:
        TypeError: no dense tensors, a dtype that is not usable, dtypes or devices that differ, or eps is no number.
        ValueError: a wrong shape, R < 2, groups larger than the batch, an empty batch, unknown reduction; a
            group index out of range, NaN or infinity in a row (on the CPU; on CUDA, where nothing waits for the
            device, the similarity of such a group is NaN).
        NotImplementedError: differentiated twice, or in forward mode.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"grs_loss: reduction is {reduction!r}; needed is 'sum' or 'mean'")
    for name, embeddings in (("e_teacher", e_teacher), ("e_student", e_student)):
        check_embeddings("grs_loss", name, embeddings, dims=(2, 3))
    check_tensors("grs_loss", e_teacher=e_teacher, e_student=e_student)
    check_numbers("grs_loss", eps=eps)
    if e_teacher.shape[-2] != e_student.shape[-2]:
        rows = f"e_teacher has {e_teacher.shape[-2]} rows and e_student {e_student.shape[-2]}"
        raise ValueError(f"grs_loss: {rows}; needed are the same images")
    for name, groups in (("groups_x", groups_x), ("groups_y", groups_y)):
        check_groups("grs_loss", name, groups, e_teacher)
    if groups_x.shape != groups_y.shape:
        shapes = f"{tuple(groups_x.shape)} and {tuple(groups_y.shape)}"
        raise ValueError(f"grs_loss: groups_x and groups_y have shapes {shapes}; needed is one shape [P, R]")
    e_teacher, e_student = readable("grs_loss", e_teacher), readable("grs_loss", e_student)
    if not has_kernel("grs_loss", e_teacher):
        return reference.grs_loss(e_teacher, e_student, groups_x, groups_y, eps, reduction)
    return torch.ops.pamkd.grs_loss(e_teacher, e_student, groups_x, groups_y, eps, reduction == "mean")[0]


@torch.library.register_fake("pamkd::grs_loss", lib=LIB)
def _(e_teacher, e_student, groups_x, groups_y, eps, mean):
    teachers, students = e_teacher.shape[:-2], e_student.shape[:-2]
    sets, pairs, rows = teachers.numel() + students.numel(), groups_x.shape[0], e_teacher.shape[-2]
    dtype = computed(e_teacher.dtype)
    return (
        e_teacher.new_empty(*students, *teachers, dtype=dtype),
        e_teacher.new_empty(sets, pairs, 2, dtype=dtype),
        groups_x.new_empty(sets, pairs, 2, 2),
        e_teacher.new_empty(teachers.numel(), rows, dtype=dtype),
        e_student.new_empty(students.numel(), rows, dtype=dtype),
    )


@torch.library.register_fake("pamkd::grs_loss_backward", lib=LIB)
def _(grad, e_teacher, e_student, similarity, pairs, teacher_scale, student_scale, eps, mean, need_teacher, need_student):
    return e_teacher.new_empty(e_teacher.shape if need_teacher else 0), e_student.new_empty(e_student.shape if need_student else 0)


def _setup(ctx, inputs, output):
    e_teacher, e_student, _, _, ctx.eps, ctx.mean = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(e_teacher, e_student, *output[1:])


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 6
    wanted = ctx.needs_input_grad[:2]
    grads = torch.ops.pamkd.grs_loss_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.mean, *wanted)
    return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None, None, None


def _example() -> tuple[Any, ...]:
    groups = example_groups(24, 5)
    return example_embeddings(2, 0), example_embeddings(3, 1), groups, (groups.flip(0) + 1) % 40, 0.01


torch.library.register_autograd("pamkd::grs_loss", _backward, setup_context=_setup, lib=LIB)
triton_kernels("grs_loss", "grs_loss", "grs_loss_backward")
deny_double_backward("pamkd::grs_loss_backward", "use pamkd.reference.grs_loss")
register(grs_loss, reference.grs_loss, _example, cpu="C++", cuda="Triton")
