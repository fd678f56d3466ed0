"""The mixed-op cell with noise, dropout or drop-path inside: composed of fused layers."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd.ops.relu_conv_norm import relu_conv_norm
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.mixed_cell import Disturbance, mixed_cell


def disturbed_cell(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec, disturbance: Disturbance) -> Tensor:
    """Node i = sum over its edges e of mask_e * sum_o mix[e, o] * candidate_o(state), skip connections masked, noise given.

    `pamkd.ops.mixed_cell` takes the same tensors and is faster where nothing is drawn inside the cell.

    Args:
        s0, s1, weights, mix, spec: as `pamkd.ops.mixed_cell`; candidates may include `noise`.
        disturbance: what was drawn, every tensor of the states' dtype.

    Returns:
        [n, spec.out_channels, h', w'] in channels_last.

    Source: Zela et al., Understanding and Robustifying DARTS (ICLR 2020): noise and drop-path; Chen et al., Progressive
        DARTS (ICCV 2019): dropout after skip connections.
    """
    y = mixed_cell(s0, s1, weights, mix, spec, disturbance, relu_conv_norm)
    return y.contiguous(memory_format=torch.channels_last)
