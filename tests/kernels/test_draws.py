"""What the Triton kernels draw, number by number: the words of the reference exactly, what is made of them to rounding."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from pamkd.kernels.draws import Draws, factors, normal, pair_of
from pamkd.reference.disturbance import SKIP, Disturbance
from tests.kernels.device import DEVICE

EDGE = 5
ALL = Disturbance(2**64 - 3, skip_dropout=0.3, first=2**31 - 8)


@triton.jit(do_not_specialize=[*Draws._fields, "use", "c", "pixels", "count"])
def numbers_kernel(
    words_ptr, noise_ptr, mask_ptr,  # [n, c, pixels]
    use, c, pixels, count, seed: tl.int64, first_image, skip_dropped: tl.int64, path_dropped: tl.int64, entries,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Word, normal number and dropout's factor for each value of a map."""
    draws = (seed, first_image, skip_dropped, path_dropped, entries)
    dtype: tl.constexpr = noise_ptr.dtype.element_ty
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place, channel, image = at % pixels, at // pixels % c, at // pixels // c
    first, second = pair_of(place, channel, image, use, draws)
    word, noise = tl.where(place % 2 != 0, second, first), normal(first, second, place % 2 != 0, dtype)
    tl.store(words_ptr + at, word.to(tl.int64), mask=at < count)
    tl.store(noise_ptr + at, noise, mask=at < count)
    tl.store(mask_ptr + at, factors(word, skip_dropped, dtype), mask=at < count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 7), (3, 5, 5, 5), (2, 9, 4, 8)], ids=str)
def test_numbers(shape, dtype):
    like = torch.empty(shape, dtype=torch.float64)
    n, c, h, w = shape
    words = torch.empty(n, c, h * w, dtype=torch.int64, device=DEVICE)
    noise, mask = (torch.empty(n, c, h * w, dtype=dtype, device=DEVICE) for _ in range(2))
    for use in (3 * EDGE, 3 * EDGE + SKIP):
        arguments = (words, noise, mask, use, c, h * w, words.numel(), *Draws(*ALL.encode()))
        numbers_kernel[(triton.cdiv(words.numel(), 128),)](*arguments, BLOCK=128)
        assert torch.equal(words.cpu(), ALL._words(EDGE, use % 3, like).flatten(2)[..., : h * w])
        if use % 3 == SKIP:
            torch.testing.assert_close(mask.double().cpu().view(shape), ALL.skip_mask(EDGE, like), rtol=1e-7, atol=0)
        else:
            tolerance = 1e-14 if dtype == torch.float64 else 1e-6
            torch.testing.assert_close(noise.double().cpu().view(shape), ALL.noise(EDGE, like), rtol=0, atol=tolerance)
