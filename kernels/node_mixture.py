"""Nodes of a mixed-op cell: stencils, pointwise convolutions, BatchNorm and mixture of all branches that enter them, forward.

    y = sum_b w_b BatchNorm(P_b d_b),   d_b the stencil of branch b on its state

in two launches: mean and deviation of z_b = P_b d_b, then the sum. Neither d_b nor z_b is ever written. With one branch per node and
w = 1 this is also the first half of a separable convolution, and `relu_conv_norm`. Where something is drawn (`draws.py`), noise takes the
place of a z_b, and w_b is a number for each image or pixel.

float32, float64; bfloat16 and float16 maps with statistics and sums in float32. Any number of channels.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import REGISTERS, cdiv, dot_precision, next_power_of_2, number
from pamkd.kernels.branches import (
    COLUMNS,
    MIX,
    NORM,
    block_of,
    check_sizes,
    chunking,
    place_of,
    pointwise_map,
    state_of,
    tile_of,
    vector_of,
    warps_of,
    whole,
)
from pamkd.kernels.draws import Draws, edge_factors, with_drawn


class Maps(NamedTuple):
    """The states of a cell for L sets of weights, channels last and dense."""

    s0: Tensor  # [L, n, h, w, pitch]: branches see the first c channels of `pitch`
    s1: Tensor  # like s0
    nodes: Tensor  # [L, n, h', w', nodes_pitch]
    halves: Tensor  # [separable convolutions, L, n, h', w', c], what their first halves give

    def geometry(self) -> tuple[int, ...]:
        """What the kernels take of the shapes."""
        _, images, height, width, pitch = self.s0.shape
        return images, height, width, *self.nodes.shape[2:4], pitch, self.nodes.shape[4]


@triton.jit(do_not_specialize=["images", "height", "width", "to_height", "to_width", "chunk_pixels", "first"])
def statistics_kernel(
    table_ptr,  # [branches, COLUMNS]
    s0_ptr, s1_ptr, nodes_ptr, halves_ptr,
    weights_ptr,  # [L, P]
    mean_ptr,  # [L, branches of this launch, chunks, k]
    squares_ptr,  # like mean, sums of squared deviations
    images, height, width, to_height, to_width, pitch, nodes_pitch, c, k, parameters,
    chunk_pixels,
    first,  # of the branches of this launch
    BLOCK: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of pixels and TILE channels of a branch's z per program; merged by the rule of Chan, Golub and LeVeque (1983)."""
    chunk, part, set = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c = whole(c, VECTOR)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    tiles = tl.cdiv(k, TILE)
    branch, first_row = first + part // tiles, (part % tiles * TILE).to(tl.int32)
    branch_ptr = table_ptr + branch * COLUMNS
    if tl.load(branch_ptr + NORM) != 0:
        x_ptr, x_pitch, h, w = state_of(
            branch_ptr, s0_ptr, s1_ptr, nodes_ptr, halves_ptr, set, tl.num_programs(2),
            images, height, width, to_height, to_width, pitch, nodes_pitch, c, VECTOR,
        )  # fmt: skip
        end = tl.minimum((chunk + 1) * chunk_pixels, images * to_height * to_width)
        mean, squares, seen = tl.zeros((TILE,), dtype), tl.zeros((TILE,), dtype), tl.zeros((1,), dtype)
        for start in range(0, chunk_pixels, BLOCK):
            pixel = chunk * chunk_pixels + start + tl.arange(0, BLOCK)
            inside = pixel < end
            row, column, image = place_of(pixel, to_height, to_width)
            z = pointwise_map(
                branch_ptr, x_ptr, x_pitch, h, w, weights_ptr + set * parameters, row, column, image, inside, first_row, k, c,
                dtype, BLOCK, TILE, TILE, PRECISION,
            )  # fmt: skip
            count = tl.sum(inside.to(dtype), 0)
            delta = tl.sum(z, 0) / tl.maximum(count, 1.0)
            away = tl.where(inside[:, None], z - delta[None, :], 0.0)
            delta -= mean
            mean += delta * (count / tl.maximum(seen + count, 1.0))
            squares += tl.sum(away * away, 0) + delta * delta * (seen * count / tl.maximum(seen + count, 1.0))
            seen += count
        out = first_row + tl.arange(0, TILE)
        at = ((set * (tl.num_programs(1) // tiles) + part // tiles) * tl.num_programs(0) + chunk) * k + out
        tl.store(mean_ptr + at, mean, mask=out < k)
        tl.store(squares_ptr + at, squares, mask=out < k)


@triton.jit
def merged(mean_ptr, squares_ptr, at, chunks, chunk_pixels, pixels, out, k, eps, dtype: tl.constexpr, CHUNKS: tl.constexpr):
    """Mean, 1 / deviation and variance of a branch's z from its chunks."""
    chunk = tl.arange(0, CHUNKS)
    inside = (chunk < chunks)[:, None] & (out < k)[None, :]
    count = tl.maximum(tl.minimum(pixels - chunk * chunk_pixels, chunk_pixels), 0).to(dtype)[:, None]
    place = (at * chunks + chunk)[:, None] * k + out[None, :]
    means = tl.load(mean_ptr + place, mask=inside, other=0.0)
    mean = tl.sum(means * count, 0) / pixels
    away = tl.where(inside, means - mean[None, :], 0.0)
    squares = tl.load(squares_ptr + place, mask=inside, other=0.0) + away * away * count
    variance = tl.sum(squares, 0) / pixels
    return mean, 1.0 / tl.sqrt(variance + number(eps, dtype)), variance


@triton.jit(
    do_not_specialize=[
        "images",
        "height",
        "width",
        "to_height",
        "to_width",
        "chunk_pixels",
        "chunks",
        "first",
        "each",
        "branches",
        "columns",
        *Draws._fields,
    ]
)
def mixture_kernel(
    table_ptr,  # [branches, COLUMNS]
    s0_ptr, s1_ptr, nodes_ptr, halves_ptr,
    weights_ptr,  # [L, P]
    mix_ptr,  # [L, columns]
    mean_ptr, squares_ptr,  # [L, branches of this launch, chunks, k]
    kept_ptr,  # [2 or 3, L, branches, k]: mean, 1 / deviation, variance
    y_ptr,  # [groups, L, n, h', w'] of rows of y_pitch
    images, height, width, to_height, to_width, pitch, nodes_pitch, c, k, parameters, y_pitch,
    chunk_pixels, chunks,
    first,  # of the branches of this launch
    each,  # branches of a group
    branches, columns,
    seed: tl.int64, first_image, skip_dropped: tl.int64, path_dropped: tl.int64, entries,
    eps: tl.float64,
    BLOCK: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
    VARIANCE: tl.constexpr,  # kept has room for it
    DRAWN: tl.constexpr,  # something is drawn
):  # fmt: skip
    """BLOCK pixels and TILE channels of a group's sum per program."""
    block, part, set = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c = whole(c, VECTOR)
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    tiles, sets = tl.cdiv(k, TILE), tl.num_programs(2)
    group, first_row = part // tiles, (part % tiles * TILE).to(tl.int32)
    launched = tl.num_programs(1) // tiles * each
    out = first_row + tl.arange(0, TILE)
    pixels = images * to_height * to_width
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    row, column, image = place_of(pixel, to_height, to_width)
    acc = tl.zeros((BLOCK, TILE), dtype)
    for branch in range(first + group * each, first + group * each + each):
        branch_ptr = table_ptr + branch * COLUMNS
        x_ptr, x_pitch, h, w = state_of(
            branch_ptr, s0_ptr, s1_ptr, nodes_ptr, halves_ptr, set, sets,
            images, height, width, to_height, to_width, pitch, nodes_pitch, c, VECTOR,
        )  # fmt: skip
        z = pointwise_map(
            branch_ptr, x_ptr, x_pitch, h, w, weights_ptr + set * parameters, row, column, image, inside, first_row, k, c,
            dtype, BLOCK, TILE, TILE, PRECISION,
        )  # fmt: skip
        mix = tl.load(branch_ptr + MIX)
        share = tl.load(mix_ptr + set * columns + mix, mask=mix >= 0, other=1.0).to(dtype)
        if DRAWN:
            draws = (seed, first_image, skip_dropped, path_dropped, entries)
            z = with_drawn(branch_ptr, z, row, column, to_width, image, out, draws)
            share *= edge_factors(branch_ptr, image, draws, dtype)
        if tl.load(branch_ptr + NORM) != 0:
            mean, inv_std, variance = merged(
                mean_ptr, squares_ptr, set * launched + branch - first, chunks, chunk_pixels, pixels, out, k, eps, dtype, CHUNKS
            )
            if block == 0:
                at, plane = (set * branches + branch) * k + out, sets.to(tl.int64) * branches * k
                tl.store(kept_ptr + at, mean, mask=out < k)
                tl.store(kept_ptr + plane + at, inv_std, mask=out < k)
                if VARIANCE:
                    tl.store(kept_ptr + 2 * plane + at, variance, mask=out < k)
            acc += (z - mean[None, :]) * (inv_std[None, :] * share)
        else:
            acc += z * share
    at = ((group * sets + set) * pixels + pixel) * y_pitch
    tl.store(y_ptr + at[:, None] + out[None, :], acc.to(y_ptr.dtype.element_ty), mask=inside[:, None] & (out < k)[None, :])


def node_mixture(
    table: Tensor, first: int, each: int, groups: int, maps: Maps, c: int, k: int, weights: Tensor, mix: Tensor, eps: float,
    kept: Tensor, y: Tensor, y_pitch: int, draws: Draws | None = None,
) -> None:  # fmt: skip
    """Write `groups` sums of `each` branches, from number `first` of the table on, to y, and their statistics to `kept`.

    table [branches, COLUMNS] of int32; weights [L, P], whose rows the table's places count in; mix [L, columns]; kept
    [2 or 3, L, branches, k], float64 for float64 and else float32; y [groups, L, n, h', w'] of rows of y_pitch numbers. c channels in, k
    out. `draws` is what is drawn, for all sets of weights the same.
    """
    sets, branches, columns = weights.shape[0], table.shape[0], mix.shape[1]
    shape, tile = (*maps.geometry(), c, k, weights.shape[1]), tile_of(k)
    tiles, vector = cdiv(k, tile), vector_of(maps, c)
    pixels, block, warps = maps.nodes.shape[1:4].numel(), block_of(tile, vector), warps_of(tile)
    chunk_pixels, chunks = chunking(pixels, k, block)
    check_sizes("node_mixture", max(pixels, maps.s0.shape[1:4].numel()), block, max(each, 1) * groups * tiles, sets)
    mean, squares = (kept.new_empty(sets, each * groups, chunks, k) for _ in range(2))
    precision = dot_precision(maps.s0.dtype)
    if each:
        statistics_kernel[(chunks, each * groups * tiles, sets)](
            table, *maps, weights, mean, squares, *shape, chunk_pixels, first,
            BLOCK=block, TILE=tile, VECTOR=vector, PRECISION=precision, num_warps=warps, num_stages=1, maxnreg=REGISTERS,
        )  # fmt: skip
    if draws is not None and vector < 8:  # draws take registers: 16 bytes of a map per thread
        block = max(16, block // 2)
    mixture_kernel[(cdiv(pixels, block), groups * tiles, sets)](
        table, *maps, weights, mix, mean, squares, kept, y, *shape, y_pitch, chunk_pixels, chunks, first, each, branches, columns,
        *(draws or Draws()), eps,
        BLOCK=block, TILE=tile, VECTOR=vector, CHUNKS=next_power_of_2(chunks), PRECISION=precision,
        VARIANCE=len(kept) == 3, DRAWN=draws is not None, num_warps=warps, num_stages=1, maxnreg=REGISTERS,
    )  # fmt: skip
