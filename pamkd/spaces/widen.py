"""Widening the operations of a supernet: which old weight every new one copies (DrNAS, after Net2Net)."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd.reference.cell_spec import WeightSlice
from pamkd.spaces.supernet import Supernet

Pieces = dict[tuple[int, str], list[WeightSlice]]  # of a cell: edge and operation


def widening(old: Supernet, new: Supernet, random: torch.Generator) -> Tensor:
    """[new.num_weights] index into old's flat weights, -1 in gaps.

    Operations that `new` still has keep their weights; channels beyond the old ones are copies of random old channels,
    unscaled. What reads a channel copies the same one: a pointwise convolution follows the depthwise one before it, and
    the second depthwise convolution the first pointwise one. The rest of the network is the same in both.
    """
    source = torch.full((new.num_weights,), -1)
    offsets = {entry.name: entry.offset for entry in old.layout.entries}
    for entry in new.layout.entries:
        begin, size = offsets[entry.name], entry.size
        if not entry.name.endswith("._ops"):
            source[entry.offset : entry.offset + size] = torch.arange(begin, begin + size)
            continue
        i = int(entry.name.split(".")[1])
        before = _by_operation(old, i)
        for operation, pieces in _by_operation(new, i).items():
            for piece, index in zip(pieces, _operation(before[operation], pieces, random), strict=True):
                at = entry.offset + piece.offset
                source[at : at + piece.size] = begin + index
    return source


def _by_operation(supernet: Supernet, cell: int) -> Pieces:
    spec = supernet.cells[cell].spec
    found: Pieces = {}
    for piece in spec.weights:
        found.setdefault((piece.edge, spec.candidates[piece.edge][piece.op]), []).append(piece)
    return found


def _operation(old: list[WeightSlice], new: list[WeightSlice], random: torch.Generator) -> list[Tensor]:
    """For every weight tensor of an operation in order, the old index within the cell's slice of each of its elements."""
    reads = _channels(old[0].shape[0 if old[0].part == "dw1" else 1], new[0].shape[0 if new[0].part == "dw1" else 1], random)
    indices = []
    for before, after in zip(old, new, strict=True):
        elements = before.offset + torch.arange(before.size).view(before.shape)
        if before.part.startswith("dw"):
            indices.append(elements[reads].flatten())
            continue
        writes = _channels(before.shape[0], after.shape[0], random)
        indices.append(elements[writes][:, reads].flatten())
        if not before.part.startswith("conv_"):  # both halves of a FactorizedReduce read the same channels
            reads = writes
    return indices


def _channels(old: int, new: int, random: torch.Generator) -> Tensor:
    """The old channel that each new one copies: itself, beyond them a random one."""
    return torch.cat([torch.arange(old), torch.randint(old, (new - old,), generator=random)])
