"""The smallest cosine within groups of rows and the pair that has it: from the Gram matrix or from gathered rows, and its gradient.

Of equal pairs the first in row-major order counts. A pair with a row that is NaN or infinite, or an index out of range, is smaller than
all others and its similarity is NaN: nothing waits for the device to raise an error. float32 and float64; bfloat16 and float16 are read
as they are and computed in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import cdiv, check_grid, computed, dot_precision, next_power_of_2, row_columns, widened
from pamkd.kernels.pairwise_cosine import cosine_tile, gram, row_scale

FEW_ROWS = 1024  # up to here the reverse index is one kernel, beyond it a sort
ANY_PAIR: tl.constexpr = tl.constexpr(2**62)  # an order later than that of every pair


@triton.jit
def _keys(cosine, inside):
    """What the minimum is taken of: NaN before everything, what is no pair of the group after everything."""
    return tl.where(inside, tl.where(cosine != cosine, float("-inf"), cosine), float("inf")).to(cosine.dtype)


@triton.jit
def _earlier(key, order, best, best_order):
    return (key < best) | ((key == best) & (order < best_order))


@triton.jit
def group_minima(cosine_ptr, groups_ptr, group, inside, n, size, BLOCK_R: tl.constexpr):
    """cosine [n, n], groups [*, size]; group [B] -> the smallest cosine of each and its two rows, all [B]."""
    dtype: tl.constexpr = cosine_ptr.dtype.element_ty
    best = tl.full(group.shape, float("inf"), dtype)
    best_order = tl.full(group.shape, ANY_PAIR, tl.int64)
    for start in range(0, size, BLOCK_R):
        b = start + tl.arange(0, BLOCK_R)
        m_b = inside[:, None] & (b < size)[None, :]
        second = tl.load(groups_ptr + group[:, None] * size + b[None, :], mask=m_b, other=0)  # [B, BLOCK_R]
        m_second = (second >= 0) & (second < n)
        key = tl.full(second.shape, float("inf"), dtype)
        order = tl.full(second.shape, ANY_PAIR, tl.int64)
        for a in range(0, tl.minimum(size, start + BLOCK_R) - 1):
            first = tl.load(groups_ptr + group * size + a, mask=inside, other=0)[:, None]
            known = m_second & (first >= 0) & (first < n)
            cosine = tl.load(cosine_ptr + first * n + second, mask=m_b & known, other=float("nan"))
            this = _keys(cosine, m_b & (b > a)[None, :])
            this_order = a * size + b[None, :].to(tl.int64) + tl.zeros(second.shape, tl.int64)
            take = _earlier(this, this_order, key, order)
            key, order = tl.where(take, this, key), tl.where(take, this_order, order)
        smallest = tl.min(key, 1)
        smallest_order = tl.min(tl.where(key == smallest[:, None], order, ANY_PAIR), 1)
        take = _earlier(smallest, smallest_order, best, best_order)
        best, best_order = tl.where(take, smallest, best), tl.where(take, smallest_order, best_order)
    first = tl.load(groups_ptr + group * size + best_order // size, mask=inside, other=0)
    second = tl.load(groups_ptr + group * size + best_order % size, mask=inside, other=0)
    return tl.where(best == float("-inf"), float("nan"), best).to(dtype), first, second


@triton.jit(do_not_specialize=["n", "count", "size"])
def lookup_kernel(
    cosine_ptr,  # [L, n, n]
    groups_ptr,  # [count, size]
    similarity_ptr,  # [L, count]
    pairs_ptr,  # [L, count, 2]
    n,
    count,
    size,
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    block, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    group = block * BLOCK + tl.arange(0, BLOCK)
    inside = group < count
    similarity, first, second = group_minima(cosine_ptr + k * n * n, groups_ptr, group, inside, n, size, BLOCK_R)
    at = k * count + group
    tl.store(similarity_ptr + at, similarity, mask=inside)
    tl.store(pairs_ptr + 2 * at, first, mask=inside)
    tl.store(pairs_ptr + 2 * at + 1, second, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def scale_kernel(e_ptr, scale_ptr, rows, d, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """e [rows, d] -> 1 / max(norm, 1e-8) [rows]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    tl.store(scale_ptr + row, row_scale(e_ptr, row, inside, d, BLOCK_D), mask=inside)


@triton.jit(do_not_specialize=["n", "count", "size"])
def gather_kernel(
    e_ptr,  # [L, n, d]
    scale_ptr,  # [L, n]
    groups_ptr,  # [count, size]
    similarity_ptr,  # [L, count]
    pairs_ptr,  # [L, count, 2]
    n,
    d,
    count,
    size,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One group per program: the cosines of its rows in tiles on and above the diagonal."""
    group, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = scale_ptr.dtype.element_ty
    e_ptr, scale_ptr, groups_ptr = e_ptr + k * n * d, scale_ptr + k * n, groups_ptr + group * size
    best = tl.full((), float("inf"), dtype)
    best_order = tl.full((), ANY_PAIR, tl.int64)
    for a_start in range(0, size, BLOCK_R):
        a = (a_start + tl.arange(0, BLOCK_R)).to(tl.int64)
        first = tl.load(groups_ptr + a, mask=a < size, other=-1)
        m_first = (first >= 0) & (first < n)
        first_scale = tl.load(scale_ptr + first, mask=m_first, other=float("nan"))
        for b_start in range(a_start, size, BLOCK_R):
            b = (b_start + tl.arange(0, BLOCK_R)).to(tl.int64)
            second = tl.load(groups_ptr + b, mask=b < size, other=-1)
            m_second = (second >= 0) & (second < n)
            second_scale = tl.load(scale_ptr + second, mask=m_second, other=float("nan"))
            cosine = cosine_tile(e_ptr, first, first_scale, m_first, second, second_scale, m_second, d, BLOCK_D, PRECISION)
            pair = (a[:, None] < b[None, :]) & (b < size)[None, :]
            key = _keys(cosine, pair)
            order = a[:, None] * size + b[None, :]
            smallest = tl.min(tl.min(key, 1), 0)
            smallest_order = tl.min(tl.min(tl.where(pair & (key == smallest), order, ANY_PAIR), 1), 0)
            take = _earlier(smallest, smallest_order, best, best_order)
            best, best_order = tl.where(take, smallest, best), tl.where(take, smallest_order, best_order)
    at = k * count + group
    tl.store(similarity_ptr + at, tl.where(best == float("-inf"), float("nan"), best).to(dtype))
    tl.store(pairs_ptr + 2 * at, tl.load(groups_ptr + best_order // size))
    tl.store(pairs_ptr + 2 * at + 1, tl.load(groups_ptr + best_order % size))


@triton.jit(do_not_specialize=["n", "entries"])
def reverse_index_kernel(
    rows_ptr,  # [L, entries]
    order_ptr,  # [L, entries]
    starts_ptr,  # [L, n + 1]
    n,
    entries,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Sorts entries by their row, stably: those of row i are order[starts[i] : starts[i + 1]], ascending.

    A program owns BLOCK rows. Its first walk over all entries counts what belongs before and to its rows, the second places it.
    """
    tile, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    rows_ptr, order_ptr, starts_ptr = rows_ptr + k * entries, order_ptr + k * entries, starts_ptr + k * (n + 1)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, entries, BLOCK_E):
        entry = start + tl.arange(0, BLOCK_E)
        found = tl.load(rows_ptr + entry, mask=entry < entries, other=ANY_PAIR)
        before += tl.sum((found[None, :] < row[:, None]).to(tl.int32), 1)
    tl.store(starts_ptr + row, before, mask=row <= n)
    place = before
    for start in range(0, entries, BLOCK_E):
        entry = start + tl.arange(0, BLOCK_E)
        found = tl.load(rows_ptr + entry, mask=entry < entries, other=ANY_PAIR)
        match = ((found[None, :] == row[:, None]) & (row < n)[:, None]).to(tl.int32)  # [BLOCK, BLOCK_E]
        to = place[:, None] + tl.cumsum(match, 1) - 1
        tl.store(order_ptr + to, entry[None, :] + tl.zeros(match.shape, tl.int32), mask=match != 0)
        place += tl.sum(match, 1)


@triton.jit
def weighted_partners(e_ptr, scale_ptr, pairs_ptr, entry, inside, weight, column, n, d):
    """sum over entries [B] of weight u[partner], for columns [C]; pairs [*, 2] flattened, the partner of entry m is pairs[m ^ 1]."""
    partner = tl.load(pairs_ptr + (entry ^ 1), mask=inside, other=-1)
    inside = inside & (partner >= 0) & (partner < n)
    weight *= tl.load(scale_ptr + partner, mask=inside, other=0.0)
    unit = tl.load(e_ptr + partner[:, None] * d + column[None, :], mask=inside[:, None] & (column < d)[None, :], other=0.0)
    return tl.sum(weight[:, None] * widened(unit), 0)


@triton.jit
def store_row_gradient(e_ptr, scale_ptr, out_ptr, row, acc, own, column, d):
    """de = scale (acc - [norm > 1e-8] own u) of one row."""
    scale = tl.load(scale_ptr + row)
    unit = widened(tl.load(e_ptr + row * d + column, mask=column < d, other=0.0)) * scale
    own = tl.where(scale < 1e8, own, 0.0)  # the norm of a shorter row counts as the constant 1e-8
    tl.store(out_ptr + row * d + column, scale * (acc - own * unit), mask=column < d)


@triton.jit(do_not_specialize=["n", "count"])
def group_min_backward_kernel(
    grad_ptr,  # [L, count]
    e_ptr,  # [L, n, d]
    similarity_ptr,  # [L, count]
    pairs_ptr,  # [L, count, 2]
    scale_ptr,  # [L, n]
    order_ptr,  # [L, 2 count]
    starts_ptr,  # [L, n + 1]
    out_ptr,  # [L, n, d]
    n,
    d,
    count,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row and BLOCK_D columns per program: the entries of the row, in their order."""
    row, part, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    grad_ptr, similarity_ptr, pairs_ptr = grad_ptr + k * count, similarity_ptr + k * count, pairs_ptr + 2 * k * count
    order_ptr, starts_ptr = order_ptr + 2 * k * count, starts_ptr + k * (n + 1)
    e_ptr, out_ptr, scale_ptr = e_ptr + k * n * d, out_ptr + k * n * d, scale_ptr + k * n
    column = part * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_D,), scale_ptr.dtype.element_ty)
    own = tl.zeros((BLOCK_M,), scale_ptr.dtype.element_ty)
    end = tl.load(starts_ptr + row + 1)
    for start in range(tl.load(starts_ptr + row), end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        entry = tl.load(order_ptr + m, mask=m < end, other=0)
        weight = tl.load(grad_ptr + entry // 2, mask=m < end, other=0.0)
        own += weight * tl.load(similarity_ptr + entry // 2, mask=m < end, other=0.0)
        acc += weighted_partners(e_ptr, scale_ptr, pairs_ptr, entry, m < end, weight, column, n, d)
    store_row_gradient(e_ptr, scale_ptr, out_ptr, row, acc, tl.sum(own, 0), column, d)


def lookup_blocks(size: int) -> dict[str, int]:
    """Groups and rows of each that one program of a lookup holds: 512 pairs of a row and its partners."""
    block_r = min(64, max(2, next_power_of_2(size)))
    return {"BLOCK": 512 // block_r, "BLOCK_R": block_r}


def group_min_similarity(embeddings: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """embeddings [L, N, D], groups [G, R] -> similarity [L, G], pairs [L, G, 2], scale [L, N].

    From all cosines or from those of the groups' rows, whichever costs fewer multiply-adds.
    """
    embeddings, groups = embeddings.contiguous(), groups.contiguous()
    (sets, n, d), (count, size) = embeddings.shape, groups.shape
    dtype = computed(embeddings.dtype)
    similarity, pairs = embeddings.new_empty(sets, count, dtype=dtype), groups.new_empty(sets, count, 2)
    check_grid("group_min_similarity", count, sets=sets)
    block_r = min(32, max(16, next_power_of_2(size)))  # of a matrix product, which has at least 16 rows
    tiles = cdiv(size, block_r)
    if n * n <= count * tiles * (tiles + 1) * block_r**2:
        cosine, scale, _ = gram(embeddings)
        blocks = lookup_blocks(size)
        lookup_kernel[(cdiv(count, blocks["BLOCK"]), sets)](cosine, groups, similarity, pairs, n, count, size, **blocks, num_warps=4)
        return similarity, pairs, scale
    scale = embeddings.new_empty(sets, n, dtype=dtype)
    scale_kernel[(cdiv(sets * n, 8),)](embeddings, scale, sets * n, d, BLOCK=8, BLOCK_D=128, num_warps=4)
    gather_kernel[(count, sets)](
        embeddings, scale, groups, similarity, pairs, n, d, count, size,
        BLOCK_R=block_r, BLOCK_D=row_columns(embeddings.dtype), PRECISION=dot_precision(dtype), num_warps=block_r // 8, num_stages=2,
    )  # fmt: skip
    return similarity, pairs, scale


def reverse_index(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """rows [L, E] of 0 .. n - 1 -> order [L, E] that sorts them stably, and starts [L, n + 1] of each row in it; both int32."""
    sets, entries = rows.shape
    if entries >= 2**31:
        raise ValueError(f"group_min_similarity_backward: {entries} entries; the index holds fewer than 2^31: split the groups")
    if n > FEW_ROWS:
        ordered, order = rows.sort(dim=1, stable=True)
        bounds = torch.arange(n + 1, device=rows.device).expand(sets, -1).contiguous()
        return order.int(), torch.searchsorted(ordered, bounds, out_int32=True)
    order, starts = rows.new_empty(sets, entries, dtype=torch.int32), rows.new_empty(sets, n + 1, dtype=torch.int32)
    check_grid("group_min_similarity_backward", cdiv(n + 1, 16), sets=sets)
    reverse_index_kernel[(cdiv(n + 1, 16), sets)](rows, order, starts, n, entries, BLOCK=16, BLOCK_E=128, num_warps=4)
    return order, starts


def group_min_similarity_backward(grad: Tensor, embeddings: Tensor, similarity: Tensor, pairs: Tensor, scale: Tensor) -> Tensor:
    """grad [L, G] -> gradient of the embeddings [L, N, D]; each row sums its groups in their order."""
    embeddings = embeddings.contiguous()
    sets, n, d = embeddings.shape
    order, starts = reverse_index(pairs.view(sets, -1), n)
    out = torch.empty_like(embeddings)
    block_d = min(256, max(32, next_power_of_2(d)))
    check_grid("group_min_similarity_backward", n, columns=cdiv(d, block_d), sets=sets)
    group_min_backward_kernel[(n, cdiv(d, block_d), sets)](
        grad.contiguous(), embeddings, similarity, pairs, scale, order, starts, out, n, d, similarity.shape[1],
        BLOCK_M=8, BLOCK_D=block_d, num_warps=block_d // 64 or 1,
    )  # fmt: skip
    return out
