"""One flat, aligned buffer for all tensors of a weight set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

ALIGNMENT = 16  # elements: 64 bytes of float32, a cache line and an AVX-512 register


class Entry(NamedTuple):
    """A tensor's place in the buffer."""

    name: str
    shape: tuple[int, ...]
    offset: int  # in elements

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Layout:
    """Names, shapes and offsets of tensors in a flat buffer; each begins on a multiple of `ALIGNMENT` elements."""

    def __init__(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        self.entries: list[Entry] = []
        self._sizes: list[int] = []  # entry, gap, entry, gap, ...
        self.size = 0
        for name, shape in shapes:
            entry = Entry(name, shape, self.size)
            gap = -entry.size % ALIGNMENT
            self.entries.append(entry)
            self._sizes += [entry.size, gap]
            self.size += entry.size + gap

    @property
    def count(self) -> int:
        """Weights without the gaps between them."""
        return sum(entry.size for entry in self.entries)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat [size]` by name. Differentiable: one split, whose backward pass is one concatenation.

        Raises ValueError for a buffer of another shape.
        """
        if flat.shape != (self.size,):
            raise ValueError(f"weights have shape {tuple(flat.shape)}; this supernet's flat buffer has shape ({self.size},)")
        return {entry.name: piece.view(entry.shape) for entry, piece in zip(self.entries, flat.split(self._sizes)[::2], strict=True)}
