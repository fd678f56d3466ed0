"""Cosines of all pairs of rows: row normalisation and Gram matrix in one kernel, and the gradient of its rows.

Offsets of rows are 64-bit throughout, so tensors may pass 2^31 elements. float32 and float64; bfloat16 and float16 are read as they are and
computed in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import REGISTERS, cdiv, check_grid, computed, dot_precision, row_columns, widened


@triton.jit
def row_scale(e_ptr, rows, inside, d, BLOCK_D: tl.constexpr):
    """1 / max(norm, 1e-8) of rows [B] of e [*, d]. Sums squares relative to the largest value so far: none overflows."""
    largest = widened(tl.zeros(rows.shape, e_ptr.dtype.element_ty))
    total = tl.zeros(rows.shape, largest.dtype)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        x = widened(tl.load(e_ptr + rows[:, None] * d + column[None, :], mask=inside[:, None] & (column < d)[None, :], other=0.0))
        larger = tl.maximum(largest, tl.max(tl.abs(x), 1))
        unit = tl.where(larger > 0, larger, 1.0)
        x = x / unit[:, None]
        shrink = largest / unit
        total = total * shrink * shrink + tl.sum(x * x, 1)
        largest = larger
    norm = largest * tl.sqrt(total)
    return tl.where(norm > 1e-8, 1.0 / norm, 1e8).to(norm.dtype)


@triton.jit
def cosine_tile(
    e_ptr, rows, scale, inside, others, other_scale, other_inside, d, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr
):  # -> [rows, others]
    """Products of normalised rows. Rows are scaled before the product, so that large ones do not overflow in it."""
    acc = tl.zeros((rows.shape[0], others.shape[0]), scale.dtype)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        within = column < d
        x = tl.load(e_ptr + rows[:, None] * d + column[None, :], mask=inside[:, None] & within[None, :], other=0.0)
        y = tl.load(e_ptr + others[:, None] * d + column[None, :], mask=other_inside[:, None] & within[None, :], other=0.0)
        x, y = widened(x) * scale[:, None], widened(y) * other_scale[:, None]
        acc = tl.dot(x, tl.trans(y), acc, input_precision=PRECISION, out_dtype=acc.dtype)  # [I, D] @ [D, J] -> [I, J]
    return acc


@triton.jit
def _gram_of_set(e_ptr, cosine_ptr, scale_ptr, i, j, n, d, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    row, column = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    m_row, m_column = row < n, column < n
    scale = row_scale(e_ptr, row, m_row, d, BLOCK_D)
    column_scale = row_scale(e_ptr, column, m_column, d, BLOCK_D)
    if i == j:
        tl.store(scale_ptr + row, scale, mask=m_row)
    cosine = cosine_tile(e_ptr, row, scale, m_row, column, column_scale, m_column, d, BLOCK_D, PRECISION)
    inside = m_row[:, None] & m_column[None, :]
    # Above the diagonal and its mirror image from the same number: exactly symmetric in every precision.
    tl.store(cosine_ptr + row[:, None] * n + column[None, :], cosine, mask=inside & (row[:, None] <= column[None, :]))
    tl.store(cosine_ptr + column[None, :] * n + row[:, None], cosine, mask=inside & (row[:, None] < column[None, :]))


@triton.jit(do_not_specialize=["sets", "n"])
def gram_kernel(
    first_ptr,  # [sets, n, d]
    second_ptr,  # [*, n, second_d] or None: further sets of the same number of rows, of another width
    cosine_ptr,  # [all sets, n, n]
    scale_ptr,  # [sets, n]
    second_scale_ptr,
    counter_ptr,  # one integer that becomes 0, or None
    sets,
    n,
    d,
    second_d,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i, j, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    if counter_ptr is not None:  # noqa: SIM102 (decided when compiled)
        if i + j + k == 0:
            tl.store(counter_ptr, 0)
    if j < i:
        return
    cosine_ptr += k * n * n
    if second_ptr is None:
        _gram_of_set(first_ptr + k * n * d, cosine_ptr, scale_ptr + k * n, i, j, n, d, BLOCK, BLOCK_D, PRECISION)
    else:
        if k < sets:
            _gram_of_set(first_ptr + k * n * d, cosine_ptr, scale_ptr + k * n, i, j, n, d, BLOCK, BLOCK_D, PRECISION)
        else:
            k -= sets
            second_ptr += k * n * second_d
            _gram_of_set(second_ptr, cosine_ptr, second_scale_ptr + k * n, i, j, n, second_d, BLOCK, BLOCK_D, PRECISION)


@triton.jit(do_not_specialize=["n"])
def gram_backward_kernel(
    grad_ptr,  # [L, n, n]
    e_ptr,  # [L, n, d]
    cosine_ptr,  # [L, n, n]
    scale_ptr,  # [L, n]
    out_ptr,  # [L, n, d]
    n,
    d,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """With G = grad + grad.T: de_i = scale_i (sum_j G_ij u_j - [norm > 1e-8] sum_j G_ij cos_ij u_i)."""
    i, part, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    grad_ptr, cosine_ptr = grad_ptr + k * n * n, cosine_ptr + k * n * n
    e_ptr, out_ptr, scale_ptr = e_ptr + k * n * d, out_ptr + k * n * d, scale_ptr + k * n
    row, column = i * BLOCK + tl.arange(0, BLOCK), part * BLOCK_D + tl.arange(0, BLOCK_D)
    m_row, m_column = row < n, column < d
    acc = tl.zeros((BLOCK, BLOCK_D), scale_ptr.dtype.element_ty)
    own = tl.zeros((BLOCK,), scale_ptr.dtype.element_ty)
    for start in range(0, n, BLOCK):
        other = (start + tl.arange(0, BLOCK)).to(tl.int64)
        m_other = other < n
        inside = m_row[:, None] & m_other[None, :]
        both = tl.load(grad_ptr + row[:, None] * n + other[None, :], mask=inside, other=0.0)
        both += tl.load(grad_ptr + other[None, :] * n + row[:, None], mask=inside, other=0.0)
        cosine = tl.load(cosine_ptr + row[:, None] * n + other[None, :], mask=inside, other=0.0)
        unit = widened(tl.load(e_ptr + other[:, None] * d + column[None, :], mask=m_other[:, None] & m_column[None, :], other=0.0))
        unit *= tl.load(scale_ptr + other, mask=m_other, other=0.0)[:, None]
        own += tl.sum(both * cosine, 1)
        acc = tl.dot(both, unit, acc, input_precision=PRECISION, out_dtype=acc.dtype)  # [I, J] @ [J, D] -> [I, D]
    scale = tl.load(scale_ptr + row, mask=m_row, other=0.0)
    inside = m_row[:, None] & m_column[None, :]
    unit = widened(tl.load(e_ptr + row[:, None] * d + column[None, :], mask=inside, other=0.0)) * scale[:, None]
    own = tl.where(scale < 1e8, own, 0.0)  # the norm of a shorter row counts as the constant 1e-8
    tl.store(out_ptr + row[:, None] * d + column[None, :], scale[:, None] * (acc - own[:, None] * unit), mask=inside)


def gram(first: Tensor, second: Tensor | None = None, counter: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """first [L, n, d], second [M, n, d'] contiguous -> cosines [L + M, n, n] and the scales [L, n] and [M, n], in one launch.

    `counter`, one integer, is set to 0 on the way.
    """
    sets, n, d = first.shape
    total = sets + (0 if second is None else second.shape[0])
    dtype = computed(first.dtype)
    cosine, scale = first.new_empty(total, n, n, dtype=dtype), first.new_empty(sets, n, dtype=dtype)
    second_scale = None if second is None else second.new_empty(second.shape[:2], dtype=dtype)
    # Small batches take small tiles: more programs.
    block = 32 if n <= 256 or first.dtype == torch.float64 else 64
    tiles = cdiv(n, block)
    check_grid("pairwise_cosine", tiles, rows=tiles, sets=total)
    gram_kernel[(tiles, tiles, total)](
        first, second, cosine, scale, second_scale, counter, sets, n, d, d if second is None else second.shape[2],
        BLOCK=block, BLOCK_D=row_columns(first.dtype), PRECISION=dot_precision(dtype), num_warps=block // 8,
        num_stages=2, maxnreg=REGISTERS,
    )  # fmt: skip
    return cosine, scale, second_scale


def pairwise_cosine(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """embeddings [L, N, D] -> cosines [L, N, N] and 1 / max(norm, 1e-8) of each row [L, N]."""
    cosine, scale, _ = gram(embeddings.contiguous())
    return cosine, scale


def pairwise_cosine_backward(grad: Tensor, embeddings: Tensor, cosine: Tensor, scale: Tensor) -> Tensor:
    """grad [L, N, N] -> gradient of the embeddings [L, N, D]."""
    embeddings = embeddings.contiguous()
    sets, n, d = embeddings.shape
    out = torch.empty_like(embeddings)
    block_d = 64 if embeddings.dtype == scale.dtype else 32  # what is widened takes registers
    check_grid("pairwise_cosine_backward", cdiv(n, 32), columns=cdiv(d, block_d), sets=sets)
    gram_backward_kernel[(cdiv(n, 32), cdiv(d, block_d), sets)](
        grad.contiguous(), embeddings, cosine, scale, out, n, d,
        BLOCK=32, BLOCK_D=block_d, PRECISION=dot_precision(scale.dtype), num_warps=8, num_stages=2,
    )  # fmt: skip
    return out
