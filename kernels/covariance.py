"""Mean and biased covariance of the columns of channels-last matrices: what BatchNorm after a pointwise convolution needs of its input.

Two launches like `batch_norm_statistics`, by the same rule for the means; the products are on matrix instructions.
float32, float64; bfloat16 and float16 in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import check_grid, dot_precision
from pamkd.kernels.batch_norm_statistics import chunk_rows, chunking, merged_mean


@triton.jit
def _columns(d_ptr, k, row, m_row, column, m_column, n, c, dtype: tl.constexpr):
    """A block of rows and columns, its column means, and its deviations from them (0 outside)."""
    inside = m_row[:, None] & m_column[None, :]
    x = tl.load(d_ptr + (k * n + row[:, None]) * c + column[None, :], mask=inside, other=0.0).to(dtype)
    mean = tl.sum(x, 0) / tl.maximum(tl.sum(m_row.to(dtype), 0), 1.0)
    return mean, tl.where(inside, x - mean[None, :], 0.0)


@triton.jit(do_not_specialize=["n", "rows_of_chunk"])
def chunk_kernel(
    d_ptr,  # [L, n, c]
    mean_ptr,  # [L, chunks, c]
    products_ptr,  # [L, chunks, c, c], sums of products of deviations
    n,
    c,
    rows_of_chunk,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One chunk of rows and a tile of the covariance per program."""
    chunk, part, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n = n.to(tl.int64)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    tiles = tl.cdiv(c, BLOCK_C)
    i, j = part // tiles * BLOCK_C + tl.arange(0, BLOCK_C), part % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    m_i, m_j = i < c, j < c
    mean_i, mean_j = tl.zeros((BLOCK_C,), dtype), tl.zeros((BLOCK_C,), dtype)
    products = tl.zeros((BLOCK_C, BLOCK_C), dtype)
    seen = tl.zeros((1,), dtype)
    for start in range(0, rows_of_chunk, BLOCK):
        row = chunk * rows_of_chunk + start + tl.arange(0, BLOCK)
        m_row = (row < n) & (start + tl.arange(0, BLOCK) < rows_of_chunk)
        rows = tl.sum(m_row.to(dtype), 0)
        block_i, away_i = _columns(d_ptr, k, row, m_row, i, m_i, n, c, dtype)
        block_j, away_j = _columns(d_ptr, k, row, m_row, j, m_j, n, c, dtype)
        mean_i, delta_i = merged_mean(seen, mean_i, rows, block_i)
        mean_j, delta_j = merged_mean(seen, mean_j, rows, block_j)
        # [I, B] @ [B, J] -> [I, J]
        products = tl.dot(tl.trans(away_i), away_j, products, input_precision=PRECISION, out_dtype=dtype)
        products += (delta_i * (seen * rows / tl.maximum(seen + rows, 1.0)))[:, None] * delta_j[None, :]
        seen += rows
    at = k * tl.num_programs(0) + chunk
    tl.store(products_ptr + (at * c + i[:, None]) * c + j[None, :], products, mask=m_i[:, None] & m_j[None, :])
    if part % tiles == 0:
        tl.store(mean_ptr + at * c + i, mean_i, mask=m_i)


@triton.jit(do_not_specialize=["n", "rows_of_chunk", "chunks"])
def merge_kernel(
    chunk_mean_ptr, products_ptr, mean_ptr, covariance_ptr, n, c, rows_of_chunk, chunks, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Chunks [L, chunks, c] and [L, chunks, c, c] -> mean [L, c], covariance [L, c, c]; BLOCK_I of its rows per program."""
    part, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n = n.to(tl.int64)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    tiles = tl.cdiv(c, BLOCK_C)
    i, j = part // tiles * BLOCK_I + tl.arange(0, BLOCK_I), part % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    m_i, m_j = i < c, j < c
    inside = m_i[:, None] & m_j[None, :]
    mean_i, mean_j = tl.zeros((BLOCK_I,), dtype), tl.zeros((BLOCK_C,), dtype)
    products = tl.zeros((BLOCK_I, BLOCK_C), dtype)
    seen = tl.zeros((1,), dtype)
    for chunk in range(0, chunks):
        at = k * chunks + chunk
        rows = chunk_rows(chunk, rows_of_chunk, n, dtype)
        mean_i, delta_i = merged_mean(seen, mean_i, rows, tl.load(chunk_mean_ptr + at * c + i, mask=m_i, other=0.0))
        mean_j, delta_j = merged_mean(seen, mean_j, rows, tl.load(chunk_mean_ptr + at * c + j, mask=m_j, other=0.0))
        products += tl.load(products_ptr + (at * c + i[:, None]) * c + j[None, :], mask=inside, other=0.0)
        products += (delta_i * (seen * rows / tl.maximum(seen + rows, 1.0)))[:, None] * delta_j[None, :]
        seen += rows
    tl.store(covariance_ptr + (k * c + i[:, None]) * c + j[None, :], products / seen[:, None], mask=inside)
    if part % tiles == 0:
        tl.store(mean_ptr + k * c + i, mean_i, mask=m_i)


def covariance(d: Tensor) -> tuple[Tensor, Tensor]:
    """d [L, n, c], n >= 1 -> mean [L, c] and biased covariance [L, c, c], in float32 or, for float64, in float64."""
    d = d.contiguous()
    sets, n, c = d.shape
    dtype = torch.float64 if d.dtype == torch.float64 else torch.float32
    block_c = min(32, max(16, triton.next_power_of_2(c)))
    tiles = triton.cdiv(c, block_c)
    rows, chunks = chunking(n, 64)
    chunk_mean, products = d.new_empty(sets, chunks, c, dtype=dtype), d.new_empty(sets, chunks, c, c, dtype=dtype)
    mean, result = d.new_empty(sets, c, dtype=dtype), d.new_empty(sets, c, c, dtype=dtype)
    parts = triton.cdiv(c, 16) * tiles
    check_grid("covariance", tiles=tiles * tiles, sets=sets)
    chunk_kernel[(chunks, tiles * tiles, sets)](
        d, chunk_mean, products, n, c, rows,
        BLOCK=64, BLOCK_C=block_c, PRECISION=dot_precision(d.dtype, dtype), num_warps=4, num_stages=1,
    )  # fmt: skip
    merge_kernel[(parts, sets)](chunk_mean, products, mean, result, n, c, rows, chunks, BLOCK_I=16, BLOCK_C=block_c, num_warps=4)
    return mean, result
