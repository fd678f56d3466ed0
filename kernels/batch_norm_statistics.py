"""Mean and biased variance of the columns of channels-last matrices. Two launches: of chunks of rows, then of the chunks.

Means and sums of squared deviations are merged by the rule of Chan, Golub and LeVeque (1983), so a large mean costs no accuracy.
float32, float64; bfloat16 and float16 in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import check_grid

CHUNKS = 256  # of rows at most


@triton.jit
def merged_mean(count, mean, other_count, other_mean):
    """Mean of the union, and the difference of means; counts are floating-point, other_count may be 0."""
    delta = other_mean - mean
    return mean + delta * (other_count / tl.maximum(count + other_count, 1.0)), delta


@triton.jit
def chunk_rows(chunk, rows_of_chunk, n, dtype: tl.constexpr):
    """How many of n rows lie in a chunk, as a floating-point number."""
    return tl.maximum(tl.minimum(n - chunk * rows_of_chunk, rows_of_chunk), 0).to(dtype)


@triton.jit(do_not_specialize=["n", "rows_of_chunk"])
def chunk_kernel(x_ptr, mean_ptr, squares_ptr, n, c, rows_of_chunk, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """x [L, n, c] -> means and sums of squared deviations [L, chunks, c] of chunks of rows."""
    chunk, part, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n = n.to(tl.int64)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    column = part * BLOCK_C + tl.arange(0, BLOCK_C)
    m_column = column < c
    mean, squares = tl.zeros((BLOCK_C,), dtype), tl.zeros((BLOCK_C,), dtype)
    seen = tl.zeros((1,), dtype)
    for start in range(0, rows_of_chunk, BLOCK):
        row = chunk * rows_of_chunk + start + tl.arange(0, BLOCK)
        m_row = (row < n) & (start + tl.arange(0, BLOCK) < rows_of_chunk)
        inside = m_row[:, None] & m_column[None, :]
        x = tl.load(x_ptr + (k * n + row[:, None]) * c + column[None, :], mask=inside, other=0.0).to(dtype)
        rows = tl.sum(m_row.to(dtype), 0)
        block_mean = tl.sum(x, 0) / tl.maximum(rows, 1.0)
        away = tl.where(inside, x - block_mean[None, :], 0.0)
        mean, delta = merged_mean(seen, mean, rows, block_mean)
        squares += tl.sum(away * away, 0) + delta * delta * (seen * rows / tl.maximum(seen + rows, 1.0))
        seen += rows
    at = (k * tl.num_programs(0) + chunk) * c + column
    tl.store(mean_ptr + at, mean, mask=m_column)
    tl.store(squares_ptr + at, squares, mask=m_column)


@triton.jit(do_not_specialize=["n", "rows_of_chunk", "chunks"])
def merge_kernel(chunk_mean_ptr, chunk_squares_ptr, mean_ptr, variance_ptr, n, c, rows_of_chunk, chunks, BLOCK_C: tl.constexpr):
    """[L, chunks, c] -> mean and variance [L, c]."""
    part, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n = n.to(tl.int64)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    column = part * BLOCK_C + tl.arange(0, BLOCK_C)
    m_column = column < c
    mean, squares = tl.zeros((BLOCK_C,), dtype), tl.zeros((BLOCK_C,), dtype)
    seen = tl.zeros((1,), dtype)
    for chunk in range(0, chunks):
        at = (k * chunks + chunk) * c + column
        rows = chunk_rows(chunk, rows_of_chunk, n, dtype)
        mean, delta = merged_mean(seen, mean, rows, tl.load(chunk_mean_ptr + at, mask=m_column, other=0.0))
        squares += tl.load(chunk_squares_ptr + at, mask=m_column, other=0.0)
        squares += delta * delta * (seen * rows / tl.maximum(seen + rows, 1.0))
        seen += rows
    tl.store(mean_ptr + k * c + column, mean, mask=m_column)
    tl.store(variance_ptr + k * c + column, squares / seen, mask=m_column)


def chunking(n: int, block: int) -> tuple[int, int]:
    """Rows of a chunk, a multiple of `block`, and how many chunks there are."""
    rows = block * triton.cdiv(n, block * CHUNKS)
    return rows, triton.cdiv(n, rows)


def batch_norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [L, n, c], n >= 1 -> mean and biased variance [L, c], in float32 or, for float64, in float64."""
    x = x.contiguous()
    sets, n, c = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    block_c = min(64, max(16, triton.next_power_of_2(c)))
    rows, chunks = chunking(n, 64)
    chunk_mean, chunk_squares = (x.new_empty(sets, chunks, c, dtype=dtype) for _ in range(2))
    mean, variance = (x.new_empty(sets, c, dtype=dtype) for _ in range(2))
    check_grid("batch_norm_statistics", columns=triton.cdiv(c, block_c), sets=sets)
    chunk_kernel[(chunks, triton.cdiv(c, block_c), sets)](x, chunk_mean, chunk_squares, n, c, rows, BLOCK=64, BLOCK_C=block_c, num_warps=4)
    merge_kernel[(triton.cdiv(c, block_c), sets)](
        chunk_mean, chunk_squares, mean, variance, n, c, rows, chunks, BLOCK_C=block_c, num_warps=1
    )
    return mean, variance
