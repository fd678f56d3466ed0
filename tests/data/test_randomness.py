"""Seeds derived from names."""

from __future__ import annotations

import hashlib

import torch

from pamkd.data import derived_seed, generator


def test_derived_seeds_are_sha256():
    expected = int.from_bytes(hashlib.sha256(b'[3, "groups", 7]').digest()[:8], "big") >> 1
    assert derived_seed(3, "groups", 7) == expected
    assert len({derived_seed(seed, "a", i) for seed in range(10) for i in range(10)}) == 100
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))
