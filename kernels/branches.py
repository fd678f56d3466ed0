"""The branches of a mixed-op cell: how a kernel reads what one of them makes of its state, before and after the pointwise convolution.

A branch is a row of integers in a table: a state, a stencil on it (depthwise convolution of relu(x), pool, or the pixel itself), a
pointwise convolution P, BatchNorm or none, and the number of its weight in the mixture; or noise. Kernels recompute the stencil's map d and
z = P d for the pixels of a block each time that they need them: nine to twenty-five samples that lie in the cache are cheaper than
a map that goes to memory and back.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import cdiv, check_grid, next_power_of_2

# Columns of the table. `STATE`: 0 and 1 are the cell's inputs, 2 its nodes, 3 the maps of the first halves of separable convolutions.
STATE = tl.constexpr(0)
INDEX = tl.constexpr(1)  # first channel of a node among the nodes' channels; number of a first half
KIND = tl.constexpr(2)  # 0 weighted sum, 1 max pool, 2 average pool
SIZE = tl.constexpr(3)  # of the window; 0 of noise, which reads nothing (`draws.py`)
DILATION = tl.constexpr(4)
SHIFT = tl.constexpr(5)  # of the window's middle, down and right
RELU = tl.constexpr(6)
STRIDE = tl.constexpr(7)
NORM = tl.constexpr(8)  # BatchNorm follows
TAPS = tl.constexpr(9)  # place of the depthwise weights [c, size, size] in the flat weights, -1: all 1
POINTWISE = tl.constexpr(10)  # place of P in the flat weights, -1: the identity
FIRST_ROW = tl.constexpr(11)  # rows of P that are there; others are 0
END_ROW = tl.constexpr(12)
MIX = tl.constexpr(13)  # number of the mixture's entry, -1: 1
MAP = tl.constexpr(14)  # number of the map that backward writes the gradient of d to
TARGET = tl.constexpr(15)  # first channel of the node among the gradients of the nodes
COLUMNS = tl.constexpr(16)

NODES, HALVES = tl.constexpr(2), tl.constexpr(3)  # of STATE
WEIGHTED, MAXIMUM = tl.constexpr(0), tl.constexpr(1)  # of KIND

MAX_TILE = 64  # channels
MAX_CHUNKS = 32


@triton.jit
def whole(channels, VECTOR: tl.constexpr):
    """A multiple of VECTOR in a form that shows it to the compiler, which takes no hint on what is chosen by a condition."""
    return channels // VECTOR * VECTOR


@triton.jit
def state_of(
    branch_ptr, s0_ptr, s1_ptr, nodes_ptr, halves_ptr, set, sets, images, height, width, to_height, to_width, pitch, nodes_pitch, c,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """The branch's state for one set of weights: where its map begins, numbers per pixel, height and width.

    VECTOR channels are 16 bytes, or one channel where some rows do not begin at a multiple of 16 bytes (`vector_of`).
    """
    state, index = tl.load(branch_ptr + STATE), tl.load(branch_ptr + INDEX).to(tl.int64)
    is_input = state < NODES
    h, w = tl.where(is_input, height, to_height), tl.where(is_input, width, to_width)
    pixels = images.to(tl.int64) * h * w
    pitch, nodes_pitch = whole(pitch, VECTOR), whole(nodes_pitch, VECTOR)
    x_ptr = s0_ptr
    if state == HALVES:
        x_ptr = halves_ptr + (index * sets + set) * pixels * c
    elif state == NODES:
        x_ptr = nodes_ptr + set * pixels * nodes_pitch + whole(index, VECTOR)
    elif state == 1:
        x_ptr = s1_ptr + set * pixels * pitch
    else:
        x_ptr = s0_ptr + set * pixels * pitch
    return x_ptr, tl.where(is_input, pitch, tl.where(state == NODES, nodes_pitch, c)), h, w


@triton.jit
def place_of(pixel, to_height, to_width):
    """Row, column and image of pixels."""
    pixel = pixel.to(tl.int32)
    return pixel // to_width % to_height, pixel % to_width, pixel // to_width // to_height


@triton.jit
def corner(branch_ptr, row, column):
    """Size and dilation of the window, and the pixel of the state under its first tap, for output pixels."""
    size, dilation = tl.load(branch_ptr + SIZE), tl.load(branch_ptr + DILATION)
    stride, back = tl.load(branch_ptr + STRIDE), tl.load(branch_ptr + SHIFT) - size // 2 * dilation
    return size, dilation, row * stride + back, column * stride + back


@triton.jit
def samples(x_ptr, pitch, h, w, y, x, image, inside, channel, m_channel, relu, dtype: tl.constexpr):
    """The pixels (y, x) of a map [images, h, w] with `pitch` numbers per pixel, 0 outside; and which of them are there."""
    there = inside & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    at = ((image * h + y) * w + x).to(tl.int64) * pitch
    sample = tl.load(x_ptr + at[:, None] + channel[None, :], mask=there[:, None] & m_channel[None, :], other=0.0).to(dtype)
    return tl.where(relu & (sample < 0), 0.0, sample), there


@triton.jit
def stencil(
    branch_ptr, x_ptr, pitch, h, w, weights_ptr, row, column, image, inside, channel, c, dtype: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """d [BLOCK, channels], 0 outside; `channel` are the numbers of the channels."""
    m_channel = channel < c
    kind, taps, relu = tl.load(branch_ptr + KIND), tl.load(branch_ptr + TAPS), tl.load(branch_ptr + RELU) != 0
    size, dilation, y, x = corner(branch_ptr, row, column)
    d = tl.zeros((BLOCK, channel.shape[0]), dtype)
    if kind == WEIGHTED:
        for ky in range(0, size):
            for kx in range(0, size):
                sample, _ = samples(
                    x_ptr, pitch, h, w, y + ky * dilation, x + kx * dilation, image, inside, channel, m_channel, relu, dtype
                )
                tap = weights_ptr + taps + (channel * size + ky) * size + kx
                d += sample * tl.load(tap, mask=m_channel & (taps >= 0), other=1.0).to(dtype)[None, :]
    else:
        most, seen = tl.full((BLOCK, channel.shape[0]), float("-inf"), dtype), tl.zeros((BLOCK,), dtype)
        for ky in range(0, 3):
            for kx in range(0, 3):
                sample, there = samples(x_ptr, pitch, h, w, y + ky, x + kx, image, inside, channel, m_channel, False, dtype)
                most = tl.maximum(most, tl.where(there[:, None], sample, float("-inf")), propagate_nan=tl.PropagateNan.ALL)
                d += sample
                seen += there.to(dtype)
        d = tl.where(kind == MAXIMUM, tl.where(inside[:, None], most, 0.0), d / tl.maximum(seen, 1.0)[:, None])
    return d


@triton.jit
def pointwise_of(branch_ptr, weights_ptr, row, k, channel, c):
    """Rows and columns of P [k, c], 0 where it has none."""
    first, end = tl.load(branch_ptr + FIRST_ROW), tl.load(branch_ptr + END_ROW)
    at = tl.load(branch_ptr + POINTWISE) + (row - first)[:, None] * c + channel[None, :]
    return tl.load(weights_ptr + at, mask=((row >= first) & (row < end))[:, None] & (channel < c)[None, :], other=0.0)


@triton.jit
def pointwise_map(
    branch_ptr, x_ptr, pitch, h, w, weights_ptr, row, column, image, inside, first_row, k, c,
    dtype: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z = P d [BLOCK, ROWS] for ROWS rows of P from first_row on, 0 outside; TILE channels of d at a time."""
    out = first_row + tl.arange(0, ROWS)
    z = tl.zeros((BLOCK, ROWS), dtype)
    if tl.load(branch_ptr + POINTWISE) < 0:
        z = stencil(branch_ptr, x_ptr, pitch, h, w, weights_ptr, row, column, image, inside, out, c, dtype, BLOCK)
    else:
        for start in range(0, c, TILE):
            channel = start + tl.arange(0, TILE)
            d = stencil(branch_ptr, x_ptr, pitch, h, w, weights_ptr, row, column, image, inside, channel, c, dtype, BLOCK)
            pointwise = pointwise_of(branch_ptr, weights_ptr, out, k, channel, c)
            storage: tl.constexpr = x_ptr.dtype.element_ty
            # [BLOCK, C] @ [C, K]
            z = tl.dot(d.to(storage), tl.trans(pointwise.to(storage)), z, input_precision=PRECISION, out_dtype=dtype)
    return z


def tile_of(channels: int) -> int:
    """Channels of a tile: a power of two that matrix instructions take."""
    return min(MAX_TILE, max(16, next_power_of_2(channels)))


def block_of(tile: int, vector: int) -> int:
    """Pixels of a block: eight numbers of each map per thread, more spill registers; half of that where channels are read one by one."""
    if tile == 16:
        return 64
    return 16 if vector == 1 else 32


def warps_of(tile: int) -> int:
    """Of a program: eight where a thread of four would not have registers enough for a tile."""
    return 8 if tile > 32 else 4


def vector_of(maps: Sequence[Tensor], c: int) -> int:
    """Channels in 16 bytes, where all rows that branches read begin at a multiple of 16 bytes, else 1."""
    vector, pitch = 16 // maps[0].element_size(), maps[0].shape[-1]
    return 1 if c % vector or pitch % vector or any(x.data_ptr() % 16 for x in maps) else vector


def chunking(pixels: int, channels: int, block: int) -> tuple[int, int]:
    """Pixels of a chunk and how many chunks there are: at most 32, each long enough that its sums are small beside its maps."""
    blocks = max(cdiv(pixels, block * MAX_CHUNKS), cdiv(4 * channels, block))
    return blocks * block, cdiv(pixels, blocks * block)


def check_sizes(operation: str, pixels: int, block: int, tiles: int, sets: int) -> None:
    """Raise where pixels of a set pass 32 bits or the grid of blocks of pixels, tiles of all branches and sets is too large."""
    if pixels >= 2**31:
        raise ValueError(f"{operation}: {pixels} pixels; a set of maps may have 2^31 - 1: use smaller batches")
    check_grid(operation, cdiv(pixels, block), tiles=tiles, sets=sets)
