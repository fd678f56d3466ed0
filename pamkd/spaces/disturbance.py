"""What is drawn at random inside a cell for one step of a search: noise, dropout after skip connections, drop-path."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd.distributed import WHOLE, Columns
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.mixed_cell import Disturbance


def draw_disturbance(
    spec: CellSpec, state: Tensor, random: torch.Generator, skip_dropout: float, drop_path: float, columns: Columns = WHOLE
) -> Disturbance | None:
    """Draws for a cell whose input states look like `state` [n, channels, h, w]; None where nothing is to be drawn.

    The n images are a part of a batch that is split among `columns`: draws are for the batch, of which the part is taken.

    Standard normal `noise`; masks that are 0 with probability `skip_dropout` (each value of a stride-1 skip connection) or
    `drop_path` (each edge and image), else 1 / (1 - probability).
    """
    noisy = [edge for edge in range(spec.edges) if "noise" in spec.candidates[edge]]
    skips = [edge for edge in range(spec.edges) if skip_dropout and "skip_connect" in spec.candidates[edge] and spec.stride(edge) == 1]
    if not (noisy or skips or drop_path):
        return None
    n, _, h, w = columns.whole(len(state)), *state.shape[1:]
    if spec.reduction:
        h, w = (h + 1) // 2, (w + 1) // 2
    size = (n, h, w, spec.op_channels)

    def mask(shape: tuple[int, ...], probability: float, dim: int = 0) -> Tensor:  # five times as fast as `bernoulli_`
        return columns.part(torch.rand(shape, generator=random) >= probability, dim).to(state).div_(1 - probability)

    def pixels(values: Tensor) -> Tensor:
        return values.permute(0, 3, 1, 2)  # channels_last, as the cells compute

    noise = {edge: pixels(columns.part(torch.randn(size, generator=random)).to(state)) for edge in noisy}
    skip_masks = {edge: pixels(mask(size, skip_dropout)) for edge in skips}
    edge_masks = mask((spec.edges, n, 1, 1, 1), drop_path, 1) if drop_path else None
    return Disturbance(noise, skip_masks, edge_masks)
