"""What is drawn at random inside a cell: numbers that are functions of a seed and of where they are used, so that none is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 2**32 - 1
NOISE, SKIP, PATH = range(3)  # what a number is used for


@dataclass(frozen=True)
class Disturbance:
    """Noise, dropout after skip connections and drop-path of one cell in one step.

    The number for image i of the batch, channel c and pixel p = y * width + x of edge e is made of word p % 4 of
    `philox((p // 4, c, i, 3 * e + use), seed)`: the same on every device, in every dtype (to rounding), however a batch is split.
    """

    seed: int  # 0 or more, below 2^64
    skip_dropout: float = 0.0  # probability that a value of a stride-1 skip connection is dropped; others are divided by 1 - it
    drop_path: float = 0.0  # probability that an edge is dropped for an image; likewise
    first: int = 0  # the place in the batch of the states' first image

    def __post_init__(self) -> None:
        for name, limit in (("seed", 2**64), ("first", 2**31)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Disturbance: {name} is {value!r}; needed is an integer")
            if not 0 <= value < limit:
                raise ValueError(f"Disturbance: {name} is {value}; needed is 0 or more and less than {limit}")
        for name in ("skip_dropout", "drop_path"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"Disturbance: {name} is {value!r}; needed is a number")
            if not 0 <= value < 1:
                raise ValueError(f"Disturbance: {name} is {value}; needed is 0 or more and below 1")

    def encode(self) -> list[int]:
        """For the operation's schema (`csrc/cpu/cell_draws.h` decodes it too): the seed in 64 bits, probabilities in parts of 2^32."""
        seed = self.seed - 2**64 if self.seed >= 2**63 else self.seed
        return [seed, self.first, *(math.floor(p * 2**32) for p in (self.skip_dropout, self.drop_path))]

    @classmethod
    def decode(cls, draws: Sequence[int]) -> Disturbance:
        seed, first, skip_dropout, drop_path = draws
        return cls(seed % 2**64, skip_dropout / 2**32, drop_path / 2**32, first)

    def noise(self, edge: int, like: Tensor) -> Tensor:
        """Standard normal numbers for the edge, like a tensor [n, c, h, w], by Box and Muller's transform of pairs of pixels.

        Of a pair's words a and b: radius sqrt(-2 ln u), u = (2 (a >> 9) + 1) / 2^24; angle (2 (b >> 7 & 2^23 - 1) + 1) / 2^25 pi
        in the first quadrant; the two highest bits of b are the signs of its cosine and sine.
        """
        words = self._words(edge, NOISE, like)
        a, b = words[..., 0::2], words[..., 1::2]
        radius = (((a >> 9) * 2 + 1).double() / 2**24).log().mul(-2).sqrt()
        angle = ((b >> 7 & 2**23 - 1) * 2 + 1).double() * (math.pi / 2**25)
        signs = (1 - 2 * (b >> 31), 1 - 2 * (b >> 30 & 1))
        return _map(torch.stack((radius * angle.cos() * signs[0], radius * angle.sin() * signs[1]), -1).flatten(-2), like)

    def skip_mask(self, edge: int, like: Tensor) -> Tensor:
        """Factors of a skip connection's values, like a tensor [n, c, h, w]: 0, or 1 / (1 - skip_dropout)."""
        return _map(_factors(self._words(edge, SKIP, like), self.skip_dropout), like)

    def edge_mask(self, edge: int, like: Tensor) -> Tensor:
        """Factors [n, 1, 1, 1] of the edge for the images of a tensor [n, ...]: 0, or 1 / (1 - drop_path)."""
        counter: list[Tensor | int] = [0, 0, self._images(like), 3 * edge + PATH]
        return _factors(philox(counter, self.seed)[0], self.drop_path).to(like.dtype)[:, None, None, None]

    def _images(self, like: Tensor) -> Tensor:
        return torch.arange(self.first, self.first + len(like), device=like.device)

    def _words(self, edge: int, use: int, like: Tensor) -> Tensor:
        """[n, c, pixels / 4, 4], of as many whole fours of pixels as there are pixels."""
        _, c, h, w = like.shape
        fours, channels = (torch.arange(count, device=like.device) for count in (-(-h * w // 4), c))
        counter: list[Tensor | int] = [fours, channels[:, None], self._images(like)[:, None, None], 3 * edge + use]
        return torch.stack(torch.broadcast_tensors(*philox(counter, self.seed)), -1)


def philox(counter: Sequence[Tensor | int], key: int) -> list[Tensor]:
    """Philox4x32-10: four words of random bits as a function of a counter of four words and a key of 64 bits.

    Words are int64 tensors from 0 to 2^32 - 1, of shapes that broadcast. Source: Salmon et al., Parallel Random Numbers: As Easy as
    1, 2, 3 (SC 2011), section 3.3.
    """
    low, high = key & WORD, key >> 32
    a, b, c, d = (torch.as_tensor(word, dtype=torch.int64) for word in counter)
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57  # modulo 2^64: the sign bit is one of theirs
        a, b, c, d = (second >> 32 & WORD) ^ b ^ low, second & WORD, (first >> 32 & WORD) ^ d ^ high, first & WORD
        low, high = low + 0x9E3779B9 & WORD, high + 0xBB67AE85 & WORD
    return [a, b, c, d]


def _factors(words: Tensor, probability: float) -> Tensor:
    """0 with this probability, taken in parts of 2^32, else 1 / (1 - probability)."""
    dropped = math.floor(probability * 2**32)
    return (words >= dropped).double() / (1 - dropped / 2**32)


def _map(values: Tensor, like: Tensor) -> Tensor:
    """values [n, c, pixels / 4, 4] like a tensor [n, c, h, w], in channels_last."""
    h, w = like.shape[2:]
    pixels = values.flatten(2)[..., : h * w].to(like.dtype)
    return pixels.unflatten(2, (h, w)).contiguous(memory_format=torch.channels_last)
