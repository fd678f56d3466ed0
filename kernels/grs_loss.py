"""Embeddings of teachers and students to the hinge of Eq. (7): two launches forward and two backward where all cosines are taken.

Forward: all cosines of all sets, then minima of the groups and hinges. Backward: a reverse index of the rows that have the minima, then the
gradient of each row. Up to 1024 rows the backward index is one launch; all cosines are taken up to 1024 rows and wherever they
cost less than those of the groups. float32 and float64; bfloat16 and float16 are read as they are and computed in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import cdiv, check_grid, computed, next_power_of_2, number
from pamkd.kernels.group_min_similarity import (
    FEW_ROWS,
    group_min_similarity,
    group_minima,
    lookup_blocks,
    reverse_index,
    store_row_gradient,
    weighted_partners,
)
from pamkd.kernels.grs_hinge import difference, difference_gradient, grs_hinge, hinge
from pamkd.kernels.pairwise_cosine import gram


@triton.jit
def _store_minima(cosine_ptr, groups_ptr, similarity_ptr, pairs_ptr, pair, inside, n, size, BLOCK_R: tl.constexpr):
    """Of one side of the pairs; similarity [*, 2] and pairs [*, 2, 2] point to that side."""
    similarity, first, second = group_minima(cosine_ptr, groups_ptr, pair, inside, n, size, BLOCK_R)
    tl.store(similarity_ptr + 2 * pair, similarity, mask=inside)
    tl.store(pairs_ptr + 4 * pair, first, mask=inside)
    tl.store(pairs_ptr + 4 * pair + 1, second, mask=inside)


@triton.jit(do_not_specialize=["teachers", "students", "n", "count", "size"])
def loss_kernel(
    cosine_ptr,  # [Kt + Ks, n, n]
    x_ptr,  # [count, size]
    y_ptr,
    similarity_ptr,  # [Kt + Ks, count, 2]
    pairs_ptr,  # [Kt + Ks, count, 2, 2]
    partial_ptr,  # [blocks, Ks, Kt]
    counter_ptr,  # how many blocks are done
    loss_ptr,  # [Ks, Kt]
    eps: tl.float64,
    factor: tl.float64,
    teachers,
    students,
    n,
    count,
    size,
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """BLOCK pairs of groups of all sets per program. The last program to finish adds what all found, always in the same order."""
    block, count = tl.program_id(0).to(tl.int64), count.to(tl.int64)
    dtype: tl.constexpr = loss_ptr.dtype.element_ty
    pair = block * BLOCK + tl.arange(0, BLOCK)
    inside = pair < count
    for k in range(0, teachers + students):
        cosine = cosine_ptr + k * n.to(tl.int64) * n
        similarity, pairs = similarity_ptr + 2 * k * count, pairs_ptr + 4 * k * count
        _store_minima(cosine, x_ptr, similarity, pairs, pair, inside, n, size, BLOCK_R)
        _store_minima(cosine, y_ptr, similarity + 1, pairs + 2, pair, inside, n, size, BLOCK_R)
    tl.debug_barrier()  # the similarities are read by other threads than wrote them
    eps = number(eps, dtype)
    for s in range(0, students):
        of_student = difference(similarity_ptr, teachers + s, pair, inside, count)
        for t in range(0, teachers):
            found = hinge(difference(similarity_ptr, t, pair, inside, count), of_student, eps)
            tl.store(partial_ptr + (block * students + s) * teachers + t, tl.sum(tl.where(inside, found, 0.0), 0))
    tl.debug_barrier()  # all of this program's sums are written before it counts itself
    blocks = tl.num_programs(0)
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == blocks - 1:
        for at in range(0, students * teachers):
            total = tl.zeros((128,), dtype)
            for start in range(0, blocks, 128):
                other = (start + tl.arange(0, 128)).to(tl.int64)
                total += tl.load(partial_ptr + other * (students * teachers) + at, mask=other < blocks, other=0.0, cache_modifier=".cg")
            tl.store(loss_ptr + at + tl.arange(0, 1), tl.sum(total, 0) * number(factor, dtype))


@triton.jit
def _row_gradient(
    grad_ptr, own_ptr, other_ptr, others, e_ptr, scale_ptr, pairs_ptr, order_ptr, starts_ptr, out_ptr,
    k, row, part, n, d, count, eps, factor, grad_k, grad_o, OF_TEACHER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Of one row of set k of a side, BLOCK_D columns."""
    column = part * BLOCK_D + tl.arange(0, BLOCK_D)
    if part * BLOCK_D < d:  # the other side may be wider
        e_ptr, out_ptr, scale_ptr = e_ptr + k * n * d, out_ptr + k * n * d, scale_ptr + k * n
        pairs_ptr, order_ptr, starts_ptr = pairs_ptr + 4 * k * count, order_ptr + 4 * k * count, starts_ptr + k * (n + 1)
        acc = tl.zeros((BLOCK_D,), scale_ptr.dtype.element_ty)
        own = tl.zeros((BLOCK_M,), scale_ptr.dtype.element_ty)
        end = tl.load(starts_ptr + row + 1)
        for start in range(tl.load(starts_ptr + row), end, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            inside = m < end
            # An entry is a pair of groups, a side of it (x, y) and one of the two rows.
            entry = tl.load(order_ptr + m, mask=inside, other=0).to(tl.int64)
            weight = difference_gradient(
                grad_ptr, own_ptr, k, other_ptr, others, entry // 4, inside, count, eps, grad_k, grad_o, OF_TEACHER
            )
            weight *= tl.where(entry % 4 < 2, factor, -factor)
            own += weight * tl.load(own_ptr + 2 * k * count + entry // 2, mask=inside, other=0.0)
            acc += weighted_partners(e_ptr, scale_ptr, pairs_ptr, entry, inside, weight, column, n, d)
        store_row_gradient(e_ptr, scale_ptr, out_ptr, row, acc, tl.sum(own, 0), column, d)


@triton.jit(do_not_specialize=["teachers", "students", "first", "n", "count"])
def loss_backward_kernel(
    grad_ptr,  # [Ks, Kt]
    teacher_ptr,  # [Kt, n, d]
    student_ptr,  # [Ks, n, student_d]
    similarity_ptr,  # [Kt + Ks, count, 2]
    pairs_ptr,  # [Kt + Ks, count, 2, 2]
    teacher_scale_ptr,  # [Kt, n]
    student_scale_ptr,  # [Ks, n]
    order_ptr,  # [*, 4 count], of sets from `first` on
    starts_ptr,  # [*, n + 1]
    d_teacher_ptr,
    d_student_ptr,
    eps: tl.float64,
    factor: tl.float64,
    teachers,
    students,
    first,  # set of the first program
    n,
    d,
    student_d,
    count,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row of one set and BLOCK_D columns per program; teachers first."""
    row, part, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n, count = n.to(tl.int64), count.to(tl.int64)
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    eps, factor = number(eps, dtype), number(factor, dtype)
    students_similarity = similarity_ptr + 2 * teachers * count
    if first + k < teachers:
        _row_gradient(
            grad_ptr, similarity_ptr, students_similarity, students, teacher_ptr, teacher_scale_ptr,
            pairs_ptr, order_ptr, starts_ptr, d_teacher_ptr,
            k, row, part, n, d, count, eps, factor, 1, teachers, True, BLOCK_M, BLOCK_D,
        )  # fmt: skip
    else:
        skipped = teachers - first  # sets of teachers in the index
        _row_gradient(
            grad_ptr, students_similarity, similarity_ptr, teachers, student_ptr, student_scale_ptr,
            pairs_ptr + 4 * teachers * count, order_ptr + 4 * skipped * count, starts_ptr + skipped * (n + 1), d_student_ptr,
            k - skipped, row, part, n, student_d, count, eps, factor, teachers, 1, False, BLOCK_M, BLOCK_D,
        )  # fmt: skip


def _sets(embeddings: Tensor) -> Tensor:
    """[N, D] or [K, N, D] -> contiguous [K, N, D]."""
    return (embeddings if embeddings.dim() == 3 else embeddings[None]).contiguous()


def grs_loss(
    e_teacher: Tensor, e_student: Tensor, groups_x: Tensor, groups_y: Tensor, eps: float, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Embeddings [N, D] or [K, N, D] and groups [P, R] -> loss [Ks, Kt] (less the dimensions not given), similarity [K, P, 2], pairs
    [K, P, 2, 2] of teachers and then students, and the scales [Kt, N], [Ks, N] of rows."""
    teacher, student = _sets(e_teacher), _sets(e_student)
    (teachers, n, _), students = teacher.shape, student.shape[0]
    count, size = groups_x.shape
    sets, factor = teachers + students, 1 / count if mean else 1.0
    shape = (*e_student.shape[:-2], *e_teacher.shape[:-2])
    if n > FEW_ROWS and n * n > 2 * count * size * size:
        groups = torch.stack([groups_x, groups_y], 1).flatten(0, 1)
        found = [group_min_similarity(e, groups) for e in (teacher, student)]
        similarity = torch.cat([similarity for similarity, _, _ in found]).view(sets, count, 2)
        pairs = torch.cat([pairs for _, pairs, _ in found]).view(sets, count, 2, 2)
        loss = grs_hinge(similarity[:teachers], similarity[teachers:], eps) * factor
        return loss.view(shape), similarity, pairs, found[0][2], found[1][2]
    counter = groups_x.new_empty(1, dtype=torch.int32)
    cosine, teacher_scale, student_scale = gram(teacher, student, counter)
    dtype = computed(teacher.dtype)
    similarity, pairs = teacher.new_empty(sets, count, 2, dtype=dtype), groups_x.new_empty(sets, count, 2, 2)
    blocks = lookup_blocks(size)
    programs = cdiv(count, blocks["BLOCK"])
    partial = teacher.new_empty(programs, students, teachers, dtype=dtype)
    loss = teacher.new_empty(students, teachers, dtype=dtype)
    loss_kernel[(programs,)](
        cosine, groups_x.contiguous(), groups_y.contiguous(), similarity, pairs, partial, counter, loss, eps, factor,
        teachers, students, n, count, size, **blocks, num_warps=4,
    )  # fmt: skip
    return loss.view(shape), similarity, pairs, teacher_scale, student_scale


def grs_loss_backward(
    grad: Tensor,
    e_teacher: Tensor,
    e_student: Tensor,
    similarity: Tensor,
    pairs: Tensor,
    teacher_scale: Tensor,
    student_scale: Tensor,
    eps: float,
    mean: bool,
    need_teacher: bool,
    need_student: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of both embeddings; empty where not needed."""
    teacher, student = _sets(e_teacher), _sets(e_student)
    (teachers, n, d), (students, _, student_d) = teacher.shape, student.shape
    count = similarity.shape[1]
    d_teacher = e_teacher.new_empty(e_teacher.shape if need_teacher else 0)
    d_student = e_student.new_empty(e_student.shape if need_student else 0)
    first, last = 0 if need_teacher else teachers, teachers + students if need_student else teachers
    if first == last:
        return d_teacher, d_student
    used = pairs[first:last]
    order, starts = reverse_index(used.reshape(last - first, -1), n)
    widest = max(d if need_teacher else 0, student_d if need_student else 0)
    block_d = min(256, max(32, next_power_of_2(widest)))
    check_grid("grs_loss_backward", n, columns=cdiv(widest, block_d), sets=last - first)
    loss_backward_kernel[(n, cdiv(widest, block_d), last - first)](
        grad.contiguous(), teacher, student, similarity, pairs, teacher_scale, student_scale, order, starts, d_teacher, d_student,
        eps, 1 / count if mean else 1.0, teachers, students, first, n, d, student_d, count,
        BLOCK_M=8, BLOCK_D=block_d, num_warps=block_d // 64 or 1,
    )  # fmt: skip
    return d_teacher, d_student
