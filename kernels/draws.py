"""What is drawn inside a mixed-op cell: noise, dropout after skip connections, drop-path (`pamkd/reference/disturbance.py` defines them).

Numbers are drawn in registers where they are used, forward and again backward; none is kept. Each takes the ten rounds of its counter:
the four pixels that share a counter lie in several threads, and between those the words would go through shared memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

from pamkd.kernels.branches import MIX, POINTWISE, SIZE

NOISE, SKIP, PATH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # what a number is used for
SEED, FIRST_IMAGE, SKIP_DROPPED, PATH_DROPPED, ENTRIES = (tl.constexpr(i) for i in range(5))  # of the tuple `draws`
ANGLE = tl.constexpr(math.pi / 2**25)
HALF = tl.constexpr(math.sqrt(0.5))


class Draws(NamedTuple):
    """What a kernel takes of a disturbance; the defaults stand where nothing is drawn."""

    seed: int = 0  # 64 bits, signed
    first_image: int = 0  # the place in the batch of the states' first image
    skip_dropped: int = 0  # probabilities, in parts of 2^32
    path_dropped: int = 0
    entries: int = 1  # of the mixture for each edge


@triton.jit
def words_of(place, channel, image, use, draws):
    """Four words of random bits for pixels `place` = y * width + x, the same for the four pixels of place // 4.

    The rounds are a loop: unrolled, what they need of key and counter would be computed before the loop over branches, and would
    take thirty registers throughout.
    """
    image, zero = (image + draws[FIRST_IMAGE]).to(tl.uint32), (place + channel) * 0
    a, b, c, d = (zero + place // 4).to(tl.uint32), (zero + channel).to(tl.uint32), zero.to(tl.uint32) + image, (zero + use).to(tl.uint32)
    low, high = draws[SEED].to(tl.uint32), (draws[SEED].to(tl.int64) >> 32).to(tl.uint32)
    for _ in range(10):
        a, b, c, d = tl.philox_impl(a, b, c, d, low, high, 1)
        low, high = low + 0x9E3779B9, high + 0xBB67AE85
    return a, b, c, d


@triton.jit
def pair_of(place, channel, image, use, draws):
    """Of the words those of an even pixel and of the odd one behind it."""
    a, b, c, d = words_of(place, channel, image, use, draws)
    return tl.where(place % 4 < 2, a, c), tl.where(place % 4 < 2, b, d)


@triton.jit
def normal(radius, angle, odd, dtype: tl.constexpr):
    """A number of the pair that Box and Muller's transform makes of two words: r cos(phi), of odd pixels r sin(phi), with their signs.

    With y = phi - pi / 4, or its negative, both are r cos(pi / 4 + y), by Taylor's series. CUDA's own cosine keeps registers in memory
    for large angles.
    """
    u = ((radius >> 9) * 2 + 1).to(dtype) * (1.0 / 2**24)
    y = (((angle >> 7) & 0x7FFFFF) * 2 + 1).to(tl.int32) - 2**23
    y = tl.where(odd, -y, y).to(dtype) * ANGLE
    degree: tl.constexpr = 16 if dtype == tl.float64 else 10
    value = tl.full(y.shape, 0.0, dtype)
    for power in tl.static_range(degree, -1, -1):
        value = value * y * (1.0 / (power + 1)) + (1.0 if power % 4 == 0 or power % 4 == 3 else -1.0)
    value *= HALF * tl.sqrt(-2.0 * tl.log(u))
    return tl.where((tl.where(odd, angle << 1, angle) >> 31) != 0, -value, value)


@triton.jit
def factors(words, dropped, dtype: tl.constexpr):
    """0 with the probability dropped / 2^32, else 1 / (1 - it)."""
    return tl.where(words >= dropped.to(tl.uint32), 4294967296.0 / (4294967296 - dropped.to(tl.int64)).to(dtype), 0.0)


@triton.jit
def with_drawn(branch_ptr, z, row, column, to_width, image, channel, draws):
    """z [BLOCK, channels] of a branch: in its place noise where no pixel is read, with dropout where it is the pixel itself."""
    dtype: tl.constexpr = z.dtype
    size, edge = tl.load(branch_ptr + SIZE), tl.load(branch_ptr + MIX) // draws[ENTRIES]
    is_noise, is_itself = size == 0, (size == 1) & (tl.load(branch_ptr + POINTWISE) < 0)
    if is_noise | (is_itself & (draws[SKIP_DROPPED] != 0)):
        place = (row * to_width + column)[:, None]
        first, second = pair_of(place, channel[None, :], image[:, None], 3 * edge + tl.where(is_noise, NOISE, SKIP), draws)
        odd = place % 2 != 0
        if is_noise:
            z = normal(first, second, odd, dtype)
        else:
            z *= factors(tl.where(odd, second, first), draws[SKIP_DROPPED], dtype)
    return z


@triton.jit
def edge_factors(branch_ptr, image, draws, dtype: tl.constexpr):
    """[BLOCK, 1], drop-path's factors of the branch's edge; of a first half, which enters no node, 1."""
    mix = tl.load(branch_ptr + MIX)
    found = tl.full(image.shape, 1.0, dtype)
    if (mix >= 0) & (draws[PATH_DROPPED] != 0):
        word, _, _, _ = words_of(image * 0, 0, image, 3 * (mix // draws[ENTRIES]) + PATH, draws)
        found = factors(word, draws[PATH_DROPPED], dtype)
    return found[:, None]
