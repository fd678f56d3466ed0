"""A node of a cell: pointwise convolutions, BatchNorm and mixture of all branches that enter it, as one matrix product.

    y = sum_o w_o BatchNorm(P_o d_o) = sum_o diag(w_o / sigma_o) P_o d_o + constant,   sigma_o^2 = diag(P_o Cov(d_o) P_o^T) + eps

so that no P_o d_o is ever written. With M_o = sum over pixels of g (d_o - mean_o)^T, a_o = w_o / sigma_o and
g_z = diag(M_o P_o^T) / sigma_o, the gradients of w_o, P_o and d_o are sum(g_z), diag(a_o) (M_o - diag(g_z / sigma_o) P_o Cov(d_o)) and
P_o^T diag(a_o) (g - mean g) - P_o^T diag(a_o g_z / (n sigma_o)) P_o (d_o - mean_o).

Up to 32 channels in and out. float32, float64; bfloat16 and float16 maps with statistics, weights and sums in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import check_grid, dot_precision, number
from pamkd.kernels.batch_norm_statistics import chunking
from pamkd.kernels.covariance import covariance

MAX_CHANNELS = 32  # one tile; tiles of 64 spill registers


@triton.jit
def _matrix(ptr, rows, columns, n_rows, n_columns):
    """A matrix [n_rows, n_columns] at ptr, 0 outside."""
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(ptr + rows[:, None] * n_columns + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store_matrix(ptr, rows, columns, n_rows, n_columns, values):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    tl.store(ptr + rows[:, None] * n_columns + columns[None, :], values, mask=inside)


@triton.jit(do_not_specialize=["branches"])
def weights_kernel(
    pointwise_ptr,  # [L, O, k, c]
    mix_ptr,  # [L, O]
    mean_ptr,  # [L, O, c]
    covariance_ptr,  # [L, O, c, c]
    inv_std_ptr,  # [L, O, k]
    scaled_ptr,  # [L, O, k, c], diag(w / sigma) P, in the dtype of the maps
    offset_ptr,  # [L, k]
    eps: tl.float64,
    branches,
    k,
    c,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    part, set = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    row, column = part * BLOCK_K + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    offset = tl.zeros((BLOCK_K,), dtype)
    for o in range(0, branches):
        at = set * branches + o
        pointwise = _matrix(pointwise_ptr + at * k * c, row, column, k, c)
        cov = _matrix(covariance_ptr + at * c * c, tl.arange(0, BLOCK_C), column, c, c)
        spread = tl.dot(pointwise, cov, input_precision=PRECISION, out_dtype=dtype)  # [K, C] @ [C, C]
        inv_std = 1.0 / tl.sqrt(tl.sum(spread * pointwise, 1) + number(eps, dtype))
        tl.store(inv_std_ptr + at * k + row, inv_std, mask=row < k)
        scale = inv_std * tl.load(mix_ptr + at)
        scaled = (scale[:, None] * pointwise).to(scaled_ptr.dtype.element_ty)
        _store_matrix(scaled_ptr + at * k * c, row, column, k, c, scaled)
        mean = tl.load(mean_ptr + at * c + column, mask=column < c, other=0.0)
        offset -= tl.sum(scaled.to(dtype) * mean[None, :], 1)
    tl.store(offset_ptr + set * k + row, offset, mask=row < k)


@triton.jit(do_not_specialize=["branches", "n"])
def mixture_kernel(
    d_ptr,  # [L, O, n, c]
    scaled_ptr,  # [L, O, k, c]
    offset_ptr,  # [L, k]
    y_ptr,  # [L, n, k]
    branches,
    n,
    k,
    c,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK pixels of a node per program: the branches one after another into one accumulator."""
    block, set, n = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), n.to(tl.int64)
    dtype: tl.constexpr = offset_ptr.dtype.element_ty
    pixel, row, column = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK, BLOCK_K), dtype)
    for o in range(0, branches):
        at = set * branches + o
        d = _matrix(d_ptr + at * n * c, pixel, column, n, c)
        scaled = _matrix(scaled_ptr + at * k * c, row, column, k, c)
        acc = tl.dot(d, tl.trans(scaled), acc, input_precision=PRECISION, out_dtype=dtype)  # [B, C] @ [C, K]
    acc += tl.load(offset_ptr + set * k + row, mask=row < k, other=0.0)[None, :]
    _store_matrix(y_ptr + set * n * k, pixel, row, n, k, acc.to(y_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["branches", "n", "rows_of_chunk"])
def moments_kernel(
    grad_ptr,  # [L, n, k]
    d_ptr,  # [L, O, n, c]
    mean_ptr,  # [L, O, c]
    moments_ptr,  # [L, O, chunks, k, c]
    sums_ptr,  # [L, O, chunks, k]
    branches,
    n,
    k,
    c,
    rows_of_chunk,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """g^T (d - mean) and the sum of g over one chunk of the pixels of a branch."""
    chunk, at, n = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), n.to(tl.int64)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    row, column = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    mean = tl.load(mean_ptr + at * c + column, mask=column < c, other=0.0)
    moments, total = tl.zeros((BLOCK_K, BLOCK_C), dtype), tl.zeros((BLOCK_K,), dtype)
    end = tl.minimum((chunk + 1) * rows_of_chunk, n)
    for start in range(0, rows_of_chunk, BLOCK):
        pixel = chunk * rows_of_chunk + start + tl.arange(0, BLOCK)
        g = _matrix(grad_ptr + at // branches * n * k, pixel, row, end, k).to(dtype)
        away = _matrix(d_ptr + at * n * c, pixel, column, end, c).to(dtype) - mean[None, :]
        moments = tl.dot(tl.trans(g), away, moments, input_precision=PRECISION, out_dtype=dtype)  # [K, B] @ [B, C]; g is 0 outside
        total += tl.sum(g, 0)
    place = at * tl.num_programs(0) + chunk
    _store_matrix(moments_ptr + place * k * c, row, column, k, c, moments)
    tl.store(sums_ptr + place * k + row, total, mask=row < k)


@triton.jit(do_not_specialize=["n", "chunks"])
def gradients_kernel(
    moments_ptr,  # [L, O, chunks, k, c]
    sums_ptr,  # [L, O, chunks, k]
    pointwise_ptr,  # [L, O, k, c]
    mix_ptr,  # [L, O]
    mean_ptr,  # [L, O, c]
    covariance_ptr,  # [L, O, c, c]
    inv_std_ptr,  # [L, O, k]
    d_pointwise_ptr,  # [L, O, k, c]
    d_mix_ptr,  # [L, O]
    from_grad_ptr,  # [L, O, k, c] in the dtype of the maps
    from_map_ptr,  # [L, O, c, c] in the dtype of the maps
    constant_ptr,  # [L, O, c]
    n,
    k,
    c,
    chunks,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a branch's weights, and the matrices of dd = g from_grad - d from_map + constant."""
    at = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    row, column = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    moments, total = tl.zeros((BLOCK_K, BLOCK_C), dtype), tl.zeros((BLOCK_K,), dtype)
    for chunk in range(0, chunks):
        place = at * chunks + chunk
        moments += _matrix(moments_ptr + place * k * c, row, column, k, c)
        total += tl.load(sums_ptr + place * k + row, mask=row < k, other=0.0)
    pointwise = _matrix(pointwise_ptr + at * k * c, row, column, k, c)
    inv_std = tl.load(inv_std_ptr + at * k + row, mask=row < k, other=0.0)
    scale = inv_std * tl.load(mix_ptr + at)
    g_z = tl.sum(moments * pointwise, 1) * inv_std
    tl.store(d_mix_ptr + at, tl.sum(g_z, 0))
    cov = _matrix(covariance_ptr + at * c * c, tl.arange(0, BLOCK_C), column, c, c)
    spread = tl.dot(pointwise, cov, input_precision=PRECISION, out_dtype=dtype)  # [K, C] @ [C, C]
    d_pointwise = scale[:, None] * (moments - (g_z * inv_std)[:, None] * spread)
    _store_matrix(d_pointwise_ptr + at * k * c, row, column, k, c, d_pointwise)
    weighted = (scale * g_z * inv_std / n)[:, None] * pointwise
    from_map = tl.dot(tl.trans(pointwise), weighted, input_precision=PRECISION, out_dtype=dtype)  # [C, K] @ [K, C], symmetric
    # The constant belongs to the rounded matrices that the maps are multiplied with.
    from_map = from_map.to(from_map_ptr.dtype.element_ty)
    from_grad = (scale[:, None] * pointwise).to(from_grad_ptr.dtype.element_ty)
    mean = tl.load(mean_ptr + at * c + column, mask=column < c, other=0.0)
    constant = tl.sum(from_map.to(dtype) * mean[:, None], 0) - tl.sum((total / n)[:, None] * from_grad.to(dtype), 0)
    tl.store(constant_ptr + at * c + column, constant, mask=column < c)
    _store_matrix(from_grad_ptr + at * k * c, row, column, k, c, from_grad)
    _store_matrix(from_map_ptr + at * c * c, tl.arange(0, BLOCK_C), column, c, c, from_map)


@triton.jit(do_not_specialize=["branches", "n"])
def maps_backward_kernel(
    grad_ptr,  # [L, n, k]
    d_ptr,  # [L, O, n, c]
    from_grad_ptr,  # [L, O, k, c]
    from_map_ptr,  # [L, O, c, c]
    constant_ptr,  # [L, O, c]
    out_ptr,  # [L, O, n, c]
    branches,
    n,
    k,
    c,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK pixels of a branch per program."""
    block, at, n = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), n.to(tl.int64)
    dtype: tl.constexpr = constant_ptr.dtype.element_ty
    pixel, row, column = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    d = _matrix(d_ptr + at * n * c, pixel, column, n, c)
    from_map = _matrix(from_map_ptr + at * c * c, tl.arange(0, BLOCK_C), column, c, c)
    acc = tl.load(constant_ptr + at * c + column, mask=column < c, other=0.0)[None, :]
    acc -= tl.dot(d, from_map, input_precision=PRECISION, out_dtype=dtype)  # [B, C] @ [C, C]
    g = _matrix(grad_ptr + at // branches * n * k, pixel, row, n, k)
    from_grad = _matrix(from_grad_ptr + at * k * c, row, column, k, c)
    acc = tl.dot(g, from_grad, acc, input_precision=PRECISION, out_dtype=dtype)  # [B, K] @ [K, C]
    _store_matrix(out_ptr + at * n * c, pixel, column, n, c, acc.to(out_ptr.dtype.element_ty))


def _blocks(k: int, c: int) -> dict[str, int]:
    if max(k, c) > MAX_CHANNELS:
        raise ValueError(f"node_mixture: {c} channels in and {k} out; the kernel takes up to {MAX_CHANNELS}: use the eager composition")
    return {"BLOCK_K": max(16, triton.next_power_of_2(k)), "BLOCK_C": max(16, triton.next_power_of_2(c))}


def node_mixture(d: Tensor, pointwise: Tensor, mix: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maps d [L, O, n, c], weights [L, O, k, c] and mixture [L, O] (float32 for low-precision maps) -> y [L, n, k] in the dtype of d,
    and for backward the mean [L, O, c], covariance [L, O, c, c] and 1 / sigma [L, O, k] of the branches."""
    d, pointwise, mix = d.contiguous(), pointwise.contiguous(), mix.contiguous()
    (sets, branches, n, c), k = d.shape, pointwise.shape[2]
    blocks = _blocks(k, c)
    mean, cov = covariance(d.view(sets * branches, n, c))
    inv_std, scaled = mean.new_empty(sets, branches, k), d.new_empty(pointwise.shape)
    offset, y = mean.new_empty(sets, k), d.new_empty(sets, n, k)
    check_grid("node_mixture", sets=sets)
    weights_kernel[(triton.cdiv(k, 16), sets)](
        pointwise, mix, mean, cov, inv_std, scaled, offset, eps, branches, k, c,
        BLOCK_K=16, BLOCK_C=blocks["BLOCK_C"], PRECISION=dot_precision(mean.dtype), num_warps=4,
    )  # fmt: skip
    mixture_kernel[(triton.cdiv(n, 64), sets)](
        d, scaled, offset, y, branches, n, k, c, BLOCK=64, **blocks, PRECISION=dot_precision(d.dtype), num_warps=4, num_stages=2
    )
    return y, mean.view(sets, branches, c), cov.view(sets, branches, c, c), inv_std


def node_mixture_backward(
    grad: Tensor, d: Tensor, pointwise: Tensor, mix: Tensor, mean: Tensor, cov: Tensor, inv_std: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """grad [L, n, k] -> gradients of the maps [L, O, n, c], the weights [L, O, k, c] and the mixture [L, O]."""
    grad, d, pointwise, mix = grad.contiguous(), d.contiguous(), pointwise.contiguous(), mix.contiguous()
    (sets, branches, n, c), k = d.shape, pointwise.shape[2]
    blocks = _blocks(k, c)
    rows, chunks = chunking(n, 64)
    all_branches = sets * branches
    moments, sums = mean.new_empty(all_branches, chunks, k, c), mean.new_empty(all_branches, chunks, k)
    d_pointwise, d_mix, constant = torch.empty_like(pointwise), torch.empty_like(mix), torch.empty_like(mean)
    from_grad, from_map, d_maps = d.new_empty(pointwise.shape), d.new_empty(cov.shape), torch.empty_like(d)
    check_grid("node_mixture_backward", branches=all_branches)
    moments_kernel[(chunks, all_branches)](
        grad, d, mean, moments, sums, branches, n, k, c, rows,
        BLOCK=64, **blocks, PRECISION=dot_precision(d.dtype, mean.dtype), num_warps=4, num_stages=1,
    )  # fmt: skip
    gradients_kernel[(all_branches,)](
        moments, sums, pointwise, mix, mean, cov, inv_std, d_pointwise, d_mix, from_grad, from_map, constant, n, k, c, chunks,
        **blocks, PRECISION=dot_precision(mean.dtype), num_warps=8,
    )  # fmt: skip
    maps_backward_kernel[(triton.cdiv(n, 64), all_branches)](
        grad, d, from_grad, from_map, constant, d_maps, branches, n, k, c,
        BLOCK=64, **blocks, PRECISION=dot_precision(d.dtype), num_warps=4,
    )  # fmt: skip
    return d_maps, d_pointwise, d_mix
