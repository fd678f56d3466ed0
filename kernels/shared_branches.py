"""What the branches without weights of a mixed-op cell, pools and identities, send back to the state that they leave; and the terms that
the gradients of all branches are made of.

With the gradient g of a node, a = w / deviation, u = (z - mean) / deviation: dz = a (g - mean(g) - u mean(g u)). All max pools that leave
a state have one z, so what they send back is one map, and so have the average pools and the identities.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pamkd.kernels.branches import COLUMNS, MIX, NORM, TARGET, place_of, state_of, stencil, whole
from pamkd.kernels.draws import Draws, edge_factors, with_drawn

GEOMETRY = ["images", "height", "width", "to_height", "to_width"]


@triton.jit
def gradient_of(grad_ptr, map, pixel, grad_pitch, inside, out, k, dtype: tl.constexpr):
    """Rows of g [BLOCK, TILE], 0 outside; `map` is the first pixel of the map."""
    at = (map + pixel) * grad_pitch
    return tl.load(grad_ptr + at[:, None] + out[None, :], mask=inside[:, None] & (out < k)[None, :], other=0.0).to(dtype)


@triton.jit
def normalisation(branch_ptr, kept_ptr, at, all_branches, out, k):
    """Mean and 1 / deviation of a branch's z, 0 and 1 without BatchNorm."""
    inside = (tl.load(branch_ptr + NORM) != 0) & (out < k)
    mean = tl.load(kept_ptr + at * k + out, mask=inside, other=0.0)
    return mean, tl.load(kept_ptr + (all_branches + at) * k + out, mask=inside, other=1.0)


@triton.jit
def backward_terms(
    branch_ptr, mix_ptr, kept_ptr, sums_ptr, at, all_branches, chunks, pixels, out, k, dtype: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """a, mean, 1 / deviation, mean(g) and mean(g u) of a branch: dz = a (g - mean(g) - u mean(g u))."""
    mix = tl.load(branch_ptr + MIX)
    share = tl.load(mix_ptr + mix, mask=mix >= 0, other=1.0).to(dtype)
    mean, inv_std = normalisation(branch_ptr, kept_ptr, at, all_branches, out, k)
    chunk = tl.arange(0, CHUNKS)
    inside = (chunk < chunks)[:, None] & (out < k)[None, :] & (tl.load(branch_ptr + NORM) != 0)
    place = (at * chunks + chunk)[:, None] * k + out[None, :]
    of_g = tl.sum(tl.load(sums_ptr + place, mask=inside, other=0.0), 0) / pixels
    of_gu = tl.sum(tl.load(sums_ptr + all_branches * chunks * k + place, mask=inside, other=0.0), 0) / pixels
    return share * inv_std, mean, inv_std, of_g, of_gu


@triton.jit
def _of_kind(
    list_ptr, begin, end, table_ptr, mix_ptr, kept_ptr, grad_ptr, sums_ptr, set, branches, all_branches, chunks, map, pixel, pixels,
    grad_pitch, inside, out, k, row, column, to_width, image, draws,
    dtype: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNKS: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """The sum over branches of a (g - mean(g) + u's mean mean(g u)), and of the coefficient of their common z in dz."""
    acc, of_z = tl.zeros((BLOCK, TILE), dtype), tl.zeros((TILE,), dtype)
    for i in range(begin, end):
        branch = tl.load(list_ptr + i)
        branch_ptr = table_ptr + branch * COLUMNS
        scale, mean, inv_std, of_g, of_gu = backward_terms(
            branch_ptr, mix_ptr, kept_ptr, sums_ptr, set * branches + branch, all_branches, chunks, pixels, out, k, dtype, CHUNKS
        )
        g = gradient_of(grad_ptr + tl.load(branch_ptr + TARGET), map, pixel, grad_pitch, inside, out, k, dtype)
        if DRAWN:
            g = with_drawn(branch_ptr, g, row, column, to_width, image, out, draws) * edge_factors(branch_ptr, image, draws, dtype)
        acc += scale[None, :] * (g - of_g[None, :] + (mean * inv_std * of_gu)[None, :])
        of_z += scale * inv_std * of_gu
    return acc, of_z


@triton.jit(
    do_not_specialize=[
        *GEOMETRY, "chunks", "branches", "columns", "begin", "means", "identities", "end", "map", "add", *Draws._fields,
    ]
)  # fmt: skip
def shared_kernel(
    table_ptr,  # [branches, COLUMNS]
    list_ptr,  # numbers of branches
    s0_ptr, s1_ptr, nodes_ptr, halves_ptr,
    mix_ptr,  # [L, columns]
    kept_ptr,  # [2, L, branches, k]
    grad_ptr,  # [L, n, h', w'] of rows of grad_pitch: the gradients of all nodes
    sums_ptr,  # [2, L, branches, chunks, k]
    out_ptr,  # [maps, L, n, h', w', c]
    state_ptr,  # [L, n, h', w'] of rows of state_pitch: the gradient of the state
    images, height, width, to_height, to_width, pitch, nodes_pitch, c, grad_pitch, state_pitch,
    chunks, branches, columns,
    begin, means, identities, end,  # of the list: max pools, average pools, identities
    map,  # of the max pools; that of the average pools follows
    add,  # to what the gradient of the state is already
    seed: tl.int64, first_image, skip_dropped: tl.int64, path_dropped: tl.int64, entries,
    POOLS: tl.constexpr, DRAWN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """What the branches without weights send back to a state: gradients of both pools, and of the state itself."""
    block, part, set = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c = whole(c, VECTOR)
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    sets = tl.num_programs(2)
    all_branches = sets.to(tl.int64) * branches
    out = (part * TILE).to(tl.int32) + tl.arange(0, TILE)
    pixels = images * to_height * to_width
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    m_out = inside[:, None] & (out < c)[None, :]
    row, column, image = place_of(pixel, to_height, to_width)
    draws = (seed, first_image, skip_dropped, path_dropped, entries)
    if POOLS:
        for average in range(0, 2):
            low, high = tl.where(average == 0, begin, means), tl.where(average == 0, means, identities)
            acc, of_z = _of_kind(
                list_ptr, low, high, table_ptr, mix_ptr + set * columns, kept_ptr, grad_ptr, sums_ptr, set, branches, all_branches, chunks,
                set * pixels, pixel, pixels, grad_pitch, inside, out, c, row, column, to_width, image, draws,
                dtype, BLOCK, TILE, CHUNKS, DRAWN,
            )  # fmt: skip
            if low < high:
                branch_ptr = table_ptr + tl.load(list_ptr + low) * COLUMNS
                x_ptr, x_pitch, h, w = state_of(
                    branch_ptr, s0_ptr, s1_ptr, nodes_ptr, halves_ptr, set, sets,
                    images, height, width, to_height, to_width, pitch, nodes_pitch, c, VECTOR,
                )  # fmt: skip
                z = stencil(branch_ptr, x_ptr, x_pitch, h, w, x_ptr, row, column, image, inside, out, c, dtype, BLOCK)
                acc -= z * of_z[None, :]
            at = (((map + average) * sets + set) * pixels + pixel) * c
            tl.store(out_ptr + at[:, None] + out[None, :], acc.to(out_ptr.dtype.element_ty), mask=m_out)
    if identities < end:
        acc, _ = _of_kind(
            list_ptr, identities, end, table_ptr, mix_ptr + set * columns, kept_ptr, grad_ptr, sums_ptr, set, branches, all_branches,
            chunks, set * pixels, pixel, pixels, grad_pitch, inside, out, c, row, column, to_width, image, draws,
            dtype, BLOCK, TILE, CHUNKS, DRAWN,
        )  # fmt: skip
        place = state_ptr + ((set * pixels + pixel) * state_pitch)[:, None] + out[None, :]
        acc += tl.load(place, mask=m_out & (add != 0), other=0.0).to(dtype)
        tl.store(place, acc.to(state_ptr.dtype.element_ty), mask=m_out)
