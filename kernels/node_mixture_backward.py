"""Gradients of `node_mixture`, from the states alone: the branches' maps are recomputed, never kept.

With the gradient g of a node, a = w / deviation, u = (z - mean) / deviation and means over all pixels:

    dw = sum g u,   dz = a (g - mean(g) - u mean(g u)),   dd = P^T dz,   dP = dz^T d,   dtaps = sum dd * samples of the state

Two launches per group of branches: the sums of g and g u, then dd, dP and dtaps in one reading of the state; sums of chunks of pixels
are added at the end of the cell, in their order. Pools and identities have no weights: what all those that leave a state send back is
one map each. The stencils' own gradient, from dd to the state, is CUDA C++ (`csrc/cuda/stencil_input.cuh`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import REGISTERS, cdiv, dot_precision, next_power_of_2
from pamkd.kernels.branches import (
    COLUMNS,
    END_ROW,
    FIRST_ROW,
    MAP,
    POINTWISE,
    RELU,
    SIZE,
    TAPS,
    block_of,
    check_sizes,
    chunking,
    corner,
    place_of,
    pointwise_map,
    pointwise_of,
    samples,
    state_of,
    stencil,
    tile_of,
    vector_of,
    warps_of,
    whole,
)
from pamkd.kernels.draws import Draws, edge_factors, with_drawn
from pamkd.kernels.node_mixture import Maps
from pamkd.kernels.shared_branches import GEOMETRY, backward_terms, gradient_of, normalisation, shared_kernel


@triton.jit(do_not_specialize=[*GEOMETRY, "chunk_pixels", "first", "each", "branches", *Draws._fields])
def sums_kernel(
    table_ptr,  # [branches, COLUMNS]
    s0_ptr, s1_ptr, nodes_ptr, halves_ptr,
    weights_ptr,  # [L, P]
    kept_ptr,  # [2, L, branches, k]
    grad_ptr,  # [groups, L, n, h', w'] of rows of grad_pitch
    sums_ptr,  # [2, L, branches, chunks, k]
    images, height, width, to_height, to_width, pitch, nodes_pitch, c, k, parameters, grad_pitch,
    chunk_pixels, first, each, branches,
    seed: tl.int64, first_image, skip_dropped: tl.int64, path_dropped: tl.int64, entries,
    BLOCK: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """Sums of g and g u over one chunk of pixels and TILE channels of a branch."""
    chunk, part, set = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c = whole(c, VECTOR)
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    tiles, sets = tl.cdiv(k, TILE), tl.num_programs(2)
    branch, first_row = first + part // tiles, (part % tiles * TILE).to(tl.int32)
    branch_ptr, at, all_branches = table_ptr + branch * COLUMNS, set * branches + branch, sets.to(tl.int64) * branches
    x_ptr, x_pitch, h, w = state_of(
        branch_ptr, s0_ptr, s1_ptr, nodes_ptr, halves_ptr, set, sets,
        images, height, width, to_height, to_width, pitch, nodes_pitch, c, VECTOR,
    )  # fmt: skip
    out = first_row + tl.arange(0, TILE)
    mean, inv_std = normalisation(branch_ptr, kept_ptr, at, all_branches, out, k)
    pixels = images * to_height * to_width
    end, map = tl.minimum((chunk + 1) * chunk_pixels, pixels), (part // tiles // each * sets + set) * pixels
    of_g, of_gu = tl.zeros((TILE,), dtype), tl.zeros((TILE,), dtype)
    for start in range(0, chunk_pixels, BLOCK):
        pixel = chunk * chunk_pixels + start + tl.arange(0, BLOCK)
        inside = pixel < end
        row, column, image = place_of(pixel, to_height, to_width)
        z = pointwise_map(
            branch_ptr, x_ptr, x_pitch, h, w, weights_ptr + set * parameters, row, column, image, inside, first_row, k, c,
            dtype, BLOCK, TILE, TILE, PRECISION,
        )  # fmt: skip
        if DRAWN:
            draws = (seed, first_image, skip_dropped, path_dropped, entries)
            z = with_drawn(branch_ptr, z, row, column, to_width, image, out, draws)
        g = gradient_of(grad_ptr, map, pixel, grad_pitch, inside, out, k, dtype)
        if DRAWN:
            g *= edge_factors(branch_ptr, image, draws, dtype)
        of_g += tl.sum(g, 0)
        of_gu += tl.sum(g * (z - mean[None, :]), 0)
    place = (at * tl.num_programs(0) + chunk) * k + out
    tl.store(sums_ptr + place, of_g, mask=out < k)
    tl.store(sums_ptr + all_branches * tl.num_programs(0) * k + place, of_gu * inv_std, mask=out < k)


@triton.jit(do_not_specialize=[*GEOMETRY, "chunk_pixels", "first", "each", "convolutions", "branches", "columns", "piece", *Draws._fields])
def maps_kernel(
    table_ptr,  # [branches, COLUMNS]
    s0_ptr, s1_ptr, nodes_ptr, halves_ptr,
    weights_ptr,  # [L, P]
    mix_ptr,  # [L, columns]
    kept_ptr,  # [2, L, branches, k]
    grad_ptr,  # [groups, L, n, h', w'] of rows of grad_pitch
    sums_ptr,  # [2, L, branches, chunks, k]
    pieces_ptr,  # [L, branches, chunks, piece]: dP [k, c], then dtaps [c, size, size]
    out_ptr,  # [maps, L, n, h', w', c], dd
    images, height, width, to_height, to_width, pitch, nodes_pitch, c, k, parameters, grad_pitch,
    chunk_pixels, first, each, convolutions, branches, columns, piece,
    seed: tl.int64, first_image, skip_dropped: tl.int64, path_dropped: tl.int64, entries,
    BLOCK: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr,  # of P at a time: the operands of three products, in float32 of three passes each, take all registers otherwise
    SINGLE: tl.constexpr,  # one tile has all channels
    DRAWN: tl.constexpr,
):  # fmt: skip
    """dd of one chunk of pixels and TILE channels of a convolution, and what the chunk gives to its weights' gradients."""
    chunk, part, set = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c = whole(c, VECTOR)
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    storage: tl.constexpr = s0_ptr.dtype.element_ty
    tiles, sets, chunks = tl.cdiv(c, TILE), tl.num_programs(2), tl.num_programs(0)
    group, channel = part // tiles // convolutions, (part % tiles * TILE).to(tl.int32) + tl.arange(0, TILE)
    m_channel = channel < c
    branch = first + group * each + part // tiles % convolutions
    branch_ptr, at, all_branches = table_ptr + branch * COLUMNS, set * branches + branch, sets.to(tl.int64) * branches
    weights_ptr += set * parameters
    x_ptr, x_pitch, h, w = state_of(
        branch_ptr, s0_ptr, s1_ptr, nodes_ptr, halves_ptr, set, sets,
        images, height, width, to_height, to_width, pitch, nodes_pitch, c, VECTOR,
    )  # fmt: skip
    pixels = images * to_height * to_width
    end, map = tl.minimum((chunk + 1) * chunk_pixels, pixels), (group * sets + set) * pixels
    relu, taps = tl.load(branch_ptr + RELU) != 0, tl.load(branch_ptr + TAPS)
    pieces_ptr += (at * chunks + chunk) * piece
    out_ptr += (tl.load(branch_ptr + MAP).to(tl.int64) * sets + set) * pixels * c
    for start in range(0, chunk_pixels, BLOCK):
        pixel = chunk * chunk_pixels + start + tl.arange(0, BLOCK)
        inside = pixel < end
        row, column, image = place_of(pixel, to_height, to_width)
        d = stencil(branch_ptr, x_ptr, x_pitch, h, w, weights_ptr, row, column, image, inside, channel, c, dtype, BLOCK)
        grad_d = tl.zeros((BLOCK, TILE), dtype)
        if DRAWN:
            of_edge = edge_factors(branch_ptr, image, (seed, first_image, skip_dropped, path_dropped, entries), dtype)
        for first_row in range(0, k, ROWS):
            out = first_row + tl.arange(0, ROWS)
            pointwise = pointwise_of(branch_ptr, weights_ptr, out, k, channel, c).to(storage)
            if SINGLE:
                z = tl.dot(d.to(storage), tl.trans(pointwise), input_precision=PRECISION, out_dtype=dtype)  # [BLOCK, C] @ [C, K]
            else:
                z = pointwise_map(
                    branch_ptr, x_ptr, x_pitch, h, w, weights_ptr, row, column, image, inside, first_row, k, c,
                    dtype, BLOCK, TILE, ROWS, PRECISION,
                )  # fmt: skip
            scale, mean, inv_std, of_g, of_gu = backward_terms(
                branch_ptr, mix_ptr + set * columns, kept_ptr, sums_ptr, at, all_branches, chunks, pixels, out, k, dtype, CHUNKS
            )
            g = gradient_of(grad_ptr, map, pixel, grad_pitch, inside, out, k, dtype)
            if DRAWN:
                g *= of_edge
            grad_z = scale[None, :] * (g - of_g[None, :] - (z - mean[None, :]) * (inv_std * of_gu)[None, :])
            grad_z = tl.where(inside[:, None], grad_z, 0.0).to(storage)
            grad_d = tl.dot(grad_z, pointwise, grad_d, input_precision=PRECISION, out_dtype=dtype)  # [BLOCK, K] @ [K, C]
            grad_pointwise = tl.dot(tl.trans(grad_z), d.to(storage), input_precision=PRECISION, out_dtype=dtype)
            place = pieces_ptr + out[:, None] * c + channel[None, :]
            m_place = (out < k)[:, None] & m_channel[None, :]
            before = tl.load(place, mask=m_place & (start > 0), other=0.0)
            tl.store(place, before + grad_pointwise, mask=m_place)
        size, dilation, y, x = corner(branch_ptr, row, column)
        grad_d = tl.where(relu & (size == 1) & (d <= 0), 0.0, grad_d)  # the pixel itself: through relu already
        tl.store(out_ptr + pixel[:, None] * c + channel[None, :], grad_d.to(storage), mask=inside[:, None] & m_channel[None, :])
        if taps >= 0:
            for ky in range(0, size):
                for kx in range(0, size):
                    sample, _ = samples(
                        x_ptr, x_pitch, h, w, y + ky * dilation, x + kx * dilation, image, inside, channel, m_channel, relu, dtype
                    )
                    place = pieces_ptr + k * c + (channel * size + ky) * size + kx
                    before = tl.load(place, mask=m_channel & (start > 0), other=0.0)
                    tl.store(place, before + tl.sum(grad_d * sample, 0), mask=m_channel)
        tl.debug_barrier()  # the next block's threads may read sums that others wrote


@triton.jit(do_not_specialize=["chunks", "piece"])
def weights_kernel(
    table_ptr,  # [branches, COLUMNS]
    pieces_ptr,  # [L, branches, chunks, piece]
    out_ptr,  # [L, P]
    c, k, parameters, chunks, piece,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a branch's weights: the sum over the chunks, in their order."""
    branch, part, set = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    branch_ptr = table_ptr + branch * COLUMNS
    pointwise, taps = tl.load(branch_ptr + POINTWISE), tl.load(branch_ptr + TAPS)
    first, size = tl.load(branch_ptr + FIRST_ROW) * c, tl.load(branch_ptr + SIZE)
    end = tl.load(branch_ptr + END_ROW) * c
    element = part * BLOCK + tl.arange(0, BLOCK)
    is_tap = element >= k * c
    wanted = tl.where(is_tap, (taps >= 0) & (element < k * c + c * size * size), (pointwise >= 0) & (element >= first) & (element < end))
    total = tl.zeros((BLOCK,), pieces_ptr.dtype.element_ty)
    for chunk in range(0, chunks):
        at = ((set * tl.num_programs(0) + branch) * chunks + chunk) * piece
        total += tl.load(pieces_ptr + at + element, mask=wanted, other=0.0)
    to = tl.where(is_tap, taps + element - k * c, pointwise + element - first)
    tl.store(out_ptr + set * parameters + to, total.to(out_ptr.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["chunks", "branches"])
def mix_kernel(
    owners_ptr,  # [columns, 2], the branches that an entry weighs, -1 for none
    sums_ptr,  # [2, L, branches, chunks, k]
    out_ptr,  # [L, columns]
    k, chunks, branches,
    TILE: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Gradient of an entry of the mixture: the sum of g u over all pixels and channels of its branches."""
    entry, set = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    total = tl.zeros((CHUNKS, TILE), sums_ptr.dtype.element_ty)
    chunk = tl.arange(0, CHUNKS)
    for i in range(0, 2):
        branch = tl.load(owners_ptr + entry * 2 + i)
        at = (tl.num_programs(1) + set) * branches + branch
        for start in range(0, k, TILE):
            out = start + tl.arange(0, TILE)
            inside = (chunk < chunks)[:, None] & (out < k)[None, :] & (branch >= 0)
            total += tl.load(sums_ptr + (at * chunks + chunk)[:, None] * k + out[None, :], mask=inside, other=0.0)
    tl.store(out_ptr + set * tl.num_programs(0) + entry, tl.sum(tl.sum(total, 1), 0).to(out_ptr.dtype.element_ty))


class Backward:
    """The backward pass of a cell over `node_mixture`: what its launches share, and the sums that they leave for the last ones.

    table, maps, c, k, weights, mix and kept are those of the forward pass; `maps_out` [maps, L, n, h', w', c] takes the gradients of the
    branches' d, in the table's places.
    """

    def __init__(
        self, table: Tensor, maps: Maps, c: int, k: int, weights: Tensor, mix: Tensor, kept: Tensor, maps_out: Tensor, largest: int,
        draws: Draws | None = None,
    ) -> None:  # fmt: skip
        """`largest` is the number of taps of the largest window; `draws` that of the forward pass."""
        self.table, self.maps, self.c, self.k, self.weights, self.mix, self.kept, self.maps_out = (
            table, maps, c, k, weights, mix, kept, maps_out,
        )  # fmt: skip
        self.sets, self.branches, self.pixels = weights.shape[0], table.shape[0], maps.nodes.shape[1:4].numel()
        self.tile, self.vector = tile_of(k), vector_of(maps, c)
        self.block, self.warps, self.precision = block_of(self.tile, self.vector), warps_of(self.tile), dot_precision(maps.s0.dtype)
        self.chunk_pixels, self.chunks = chunking(self.pixels, k, self.block)
        self.piece = (k + largest) * c
        self.sums = kept.new_empty(2, self.sets, self.branches, self.chunks, k)
        self.pieces = kept.new_empty(self.sets, self.branches, self.chunks, self.piece)
        self.chunk_block = next_power_of_2(self.chunks)
        self.drawn, self.draws = draws is not None, draws or Draws()

    def node_mixture(self, first: int, each: int, groups: int, convolutions: int, grad: Tensor, grad_pitch: int) -> None:
        """Of `groups` sums of `each` branches, the first `convolutions` of each with weights: sums, gradients of d, pieces of dP and dtaps.

        grad: [groups, L, n, h', w'] of rows of grad_pitch numbers.
        """
        self.add_up(first, each, groups, grad, grad_pitch)
        self.write_maps(first, each, groups, convolutions, grad, grad_pitch)

    def add_up(self, first: int, each: int, groups: int, grad: Tensor, grad_pitch: int) -> None:
        """The sums of g and g u alone."""
        programs = each * groups * cdiv(self.k, self.tile)
        check_sizes("node_mixture_backward", self.pixels, self.block, programs, self.sets)
        if programs:
            sums_kernel[(self.chunks, programs, self.sets)](
                self.table, *self.maps, self.weights, self.kept, grad, self.sums, *self._shape(grad_pitch), self.chunk_pixels,
                first, each, self.branches, *self.draws,
                BLOCK=self.block, TILE=self.tile, VECTOR=self.vector, PRECISION=self.precision, DRAWN=self.drawn,
                num_warps=self.warps, num_stages=1, maxnreg=REGISTERS,
            )  # fmt: skip

    def write_maps(self, first: int, each: int, groups: int, convolutions: int, grad: Tensor, grad_pitch: int) -> None:
        """The gradients of d, and pieces of dP and dtaps, from the sums."""
        programs = convolutions * groups * cdiv(self.c, self.tile)
        check_sizes("node_mixture_backward", self.pixels, self.block, programs, self.sets)
        if programs:
            maps_kernel[(self.chunks, programs, self.sets)](
                self.table, *self.maps, self.weights, self.mix, self.kept, grad, self.sums, self.pieces, self.maps_out,
                *self._shape(grad_pitch), self.chunk_pixels, first, each, convolutions, self.branches, self.mix.shape[1], self.piece,
                *self.draws,
                BLOCK=16 if self.tile > 16 else 64 if self.vector > 1 else 32, TILE=self.tile, VECTOR=self.vector, CHUNKS=self.chunk_block,
                PRECISION=self.precision, ROWS=16, SINGLE=self.c <= self.tile, DRAWN=self.drawn,
                num_warps=self.warps, num_stages=1, maxnreg=REGISTERS,
            )  # fmt: skip

    def _shape(self, grad_pitch: int) -> tuple[int, ...]:
        return (*self.maps.geometry(), self.c, self.k, self.weights.shape[1], grad_pitch)

    def shared(self, numbers: Tensor, bounds: tuple[int, int, int, int], map: int, grad: Tensor, state: Tensor, *, add: bool) -> None:
        """Of the max pools, average pools and identities of one state, `numbers[bounds[0] : bounds[3]]`: maps `map` and `map + 1`
        of the pools if there are any, and with `add` onto what `state` holds, the identities' gradient of the state.

        grad: [L, n, h', w', pitch], the gradients of all nodes; state: [L, n, h', w', channels], a view with any pitch.
        """
        begin, _, identities, end = bounds
        if begin == end:
            return
        sets = self.sets
        shape = (*self.maps.geometry(), self.c, grad.shape[-1], state.stride(-2))
        shared_kernel[(cdiv(self.pixels, self.block), cdiv(self.c, self.tile), sets)](
            self.table, numbers, *self.maps, self.mix, self.kept, grad, self.sums, self.maps_out, state, *shape,
            self.chunks, self.branches, self.mix.shape[1], *bounds, map, int(add),
            *self.draws,
            POOLS=begin < identities, DRAWN=self.drawn, BLOCK=self.block, TILE=self.tile, VECTOR=self.vector, CHUNKS=self.chunk_block,
            num_warps=self.warps, num_stages=1, maxnreg=REGISTERS,
        )  # fmt: skip

    def weights_gradient(self) -> Tensor:
        """[L, P]; every weight must belong to a branch."""
        out = torch.empty_like(self.weights)
        if out.numel() == 0:
            return out
        weights_kernel[(self.branches, cdiv(self.piece, 1024), self.sets)](
            self.table, self.pieces, out, self.c, self.k, self.weights.shape[1], self.chunks, self.piece, BLOCK=1024, num_warps=4
        )
        return out

    def mix_gradient(self, owners: Tensor) -> Tensor:
        """[L, columns]; owners [columns, 2] names the branches that each entry weighs."""
        out = torch.empty_like(self.mix)
        mix_kernel[(self.mix.shape[1], self.sets)](
            owners, self.sums, out, self.k, self.chunks, self.branches, TILE=self.tile, CHUNKS=self.chunk_block, num_warps=4
        )
        return out
