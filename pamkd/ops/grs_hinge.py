"""The hinge on group-wise relative similarity: does a student order the pairs of groups as a teacher does?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pamkd import reference
from pamkd.ops._checks import check_numbers, check_tensors
from pamkd.ops._embeddings import computed, readable
from pamkd.ops._library import LIB, define, deny_double_backward, has_kernel, register, triton_kernels

define("grs_hinge(Tensor teacher, Tensor student, float eps) -> Tensor")
define("grs_hinge_backward(Tensor grad, Tensor teacher, Tensor student, float eps) -> (Tensor, Tensor)")


def grs_hinge(teacher: Tensor, student: Tensor, eps: float) -> Tensor:
    """G_kj of Eq. (7): `sum_p [t_p != 0] relu(eps - t_p s_p)`, t_p = s(X_p) - s(Y_p) of teacher j and s_p of student k.

    Args:
        teacher: [Kt, P, 2], the similarities of both groups of each pair; float32 or float64, or bfloat16 or float16 computed in
            float32; any strides.
        student: [Ks, P, 2], of the same dtype and device.
        eps: the margin. A pair that the teacher finds equally similar expresses no relation and contributes 0.

    Returns:
        [Ks, Kt]. Differentiable once, by both; twice through `pamkd.reference.grs_hinge`.

    Raises:
        TypeError: no dense tensors of one floating-point dtype on one device, or eps is no number.
        ValueError: a wrong shape.
        NotImplementedError: differentiated twice, or in forward mode.
    """
    check_tensors("grs_hinge", teacher=teacher, student=student)
    check_numbers("grs_hinge", eps=eps)
    if teacher.dim() != 3 or student.dim() != 3 or teacher.shape[1:] != student.shape[1:] or teacher.shape[2] != 2:
        shapes = f"{tuple(teacher.shape)} and {tuple(student.shape)}"
        raise ValueError(f"grs_hinge: teacher and student have shapes {shapes}; needed are [Kt, P, 2] and [Ks, P, 2]")
    teacher, student = readable("grs_hinge", teacher), readable("grs_hinge", student)
    if not has_kernel("grs_hinge", teacher):
        return reference.grs_hinge(teacher, student, eps)
    return torch.ops.pamkd.grs_hinge(teacher, student, eps)


@torch.library.register_fake("pamkd::grs_hinge", lib=LIB)
def _(teacher, student, eps):
    return teacher.new_empty(student.shape[0], teacher.shape[0], dtype=computed(teacher.dtype))


@torch.library.register_fake("pamkd::grs_hinge_backward", lib=LIB)
def _(grad, teacher, student, eps):
    return teacher.new_empty(teacher.shape), student.new_empty(student.shape)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.eps = inputs[2]


def _backward(ctx, grad):
    return *torch.ops.pamkd.grs_hinge_backward(grad, *ctx.saved_tensors, ctx.eps), None


def _example() -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(0)
    return *(torch.rand(k, 24, 2, dtype=torch.float64, generator=random).requires_grad_() for k in (3, 2)), 0.01


torch.library.register_autograd("pamkd::grs_hinge", _backward, setup_context=_setup, lib=LIB)
triton_kernels("grs_hinge", "grs_hinge", "grs_hinge_backward")
deny_double_backward("pamkd::grs_hinge_backward", "use pamkd.reference.grs_hinge")
register(grs_hinge, reference.grs_hinge, _example, cpu="C++", cuda="Triton")
