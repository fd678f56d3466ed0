"""The hinge on group-wise relative similarity, Eq. (7), and its gradient. float32, float64; bfloat16, float16 are computed in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import cdiv, check_grid, computed, number, widened


@triton.jit
def difference(similarity_ptr, k, pair, inside, count):
    """s(X_p) - s(Y_p) of set k for pairs p [B]; similarity [*, count, 2], count in 64 bits."""
    at = similarity_ptr + 2 * (k * count + pair)
    return widened(tl.load(at, mask=inside, other=0.0)) - widened(tl.load(at + 1, mask=inside, other=0.0))


@triton.jit
def hinge(t, s, eps):
    """[t != 0] relu(eps - t s). NaN stays NaN."""
    loss = eps - t * s
    return tl.where((t == 0) | (loss <= 0), 0.0, loss)


@triton.jit
def difference_gradient(grad_ptr, own_ptr, k, other_ptr, others, pair, inside, count, eps, grad_k, grad_o, OF_TEACHER: tl.constexpr):
    """d (sum over o of grad[k, o] hinge) / d (difference of set k of `own`), for pairs [B].

    own and other [*, count, 2] are the similarities of both sides; grad[k, o] is at k * grad_k + o * grad_o.
    """
    own = difference(own_ptr, k, pair, inside, count)
    total = tl.zeros(pair.shape, own.dtype)
    for o in range(0, others):
        other = difference(other_ptr, o, pair, inside, count)
        teacher = own if OF_TEACHER else other
        active = (teacher != 0) & (eps - own * other > 0)
        total -= tl.where(active, tl.load(grad_ptr + k * grad_k + o * grad_o) * other, 0.0)
    return total


@triton.jit(do_not_specialize=["teachers", "count"])
def hinge_kernel(teacher_ptr, student_ptr, loss_ptr, eps: tl.float64, teachers, count, BLOCK: tl.constexpr):
    """teacher [Kt, count, 2], student [Ks, count, 2] -> loss [Ks, Kt]; one of its numbers per program."""
    program, count = tl.program_id(0).to(tl.int64), count.to(tl.int64)
    dtype: tl.constexpr = loss_ptr.dtype.element_ty
    eps = number(eps, dtype)
    total = tl.zeros((BLOCK,), dtype)
    for start in range(0, count, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        inside = pair < count
        t = difference(teacher_ptr, program % teachers, pair, inside, count)
        s = difference(student_ptr, program // teachers, pair, inside, count)
        total += hinge(t, s, eps)
    tl.store(loss_ptr + program, tl.sum(total, 0))


@triton.jit(do_not_specialize=["teachers", "students", "count"])
def hinge_backward_kernel(
    grad_ptr,  # [Ks, Kt]
    teacher_ptr,  # [Kt, count, 2]
    student_ptr,  # [Ks, count, 2]
    d_teacher_ptr,
    d_student_ptr,
    eps: tl.float64,
    teachers,
    students,
    count,
    BLOCK: tl.constexpr,
):
    """BLOCK pairs of one set per program, teachers first."""
    block, k, count = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), count.to(tl.int64)
    pair = block * BLOCK + tl.arange(0, BLOCK)
    inside = pair < count
    eps = number(eps, grad_ptr.dtype.element_ty)
    if k < teachers:
        gradient = difference_gradient(grad_ptr, teacher_ptr, k, student_ptr, students, pair, inside, count, eps, 1, teachers, True)
        at = d_teacher_ptr + 2 * (k * count + pair)
    else:
        k -= teachers
        gradient = difference_gradient(grad_ptr, student_ptr, k, teacher_ptr, teachers, pair, inside, count, eps, teachers, 1, False)
        at = d_student_ptr + 2 * (k * count + pair)
    tl.store(at, gradient, mask=inside)
    tl.store(at + 1, -gradient, mask=inside)


def grs_hinge(teacher: Tensor, student: Tensor, eps: float) -> Tensor:
    """teacher [Kt, P, 2], student [Ks, P, 2] -> [Ks, Kt]."""
    (teachers, count, _), students = teacher.shape, student.shape[0]
    loss = teacher.new_empty(students, teachers, dtype=computed(teacher.dtype))
    if loss.numel():
        hinge_kernel[(loss.numel(),)](teacher.contiguous(), student.contiguous(), loss, eps, teachers, count, BLOCK=1024, num_warps=4)
    return loss


def grs_hinge_backward(grad: Tensor, teacher: Tensor, student: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """grad [Ks, Kt] -> gradients of teacher [Kt, P, 2] and student [Ks, P, 2]."""
    teacher, student = teacher.contiguous(), student.contiguous()
    (teachers, count, _), students = teacher.shape, student.shape[0]
    d_teacher, d_student = torch.empty_like(teacher), torch.empty_like(student)
    check_grid("grs_hinge_backward", cdiv(count, 256), sets=teachers + students)
    if count and teachers + students:
        hinge_backward_kernel[(cdiv(count, 256), teachers + students)](
            grad.contiguous(), teacher, student, d_teacher, d_student, eps, teachers, students, count, BLOCK=256, num_warps=4
        )  # fmt: skip
    return d_teacher, d_student
