"""The mixed-op cell with noise, dropout or drop-path inside: composed of fused layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pamkd.ops._checks import check_cell, check_tensors
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

    Raises:
        TypeError: the tensors are not dense ones of one floating-point dtype on one device, or no cell or disturbance is given.
        ValueError: a shape does not fit `spec`, noise is missing for an edge that takes it, or one value per channel.

    Source: Zela et al., Understanding and Robustifying DARTS (ICLR 2020): noise and drop-path; Chen et al., Progressive
        DARTS (ICCV 2019): dropout after skip connections.
    """
    check_cell("disturbed_cell", s0, s1, weights, mix, spec)
    _check(disturbance, s0, spec)
    y = mixed_cell(s0, s1, weights, mix, spec, disturbance, relu_conv_norm)
    return y.contiguous(memory_format=torch.channels_last)


def _check(disturbance: Disturbance, s0: Tensor, spec: CellSpec) -> None:
    op = "disturbed_cell"
    if not isinstance(disturbance, Disturbance):
        raise TypeError(f"{op}: disturbance is a {type(disturbance).__name__}; needed is a Disturbance")
    drawn = {"noise": disturbance.noise, "skip mask": disturbance.skip_masks}
    for name, of in drawn.items():
        if not isinstance(of, Mapping):
            raise TypeError(f"{op}: {name} is a {type(of).__name__}; needed is a mapping from edges to tensors")
    n, _, h, w = s0.shape
    stride = 2 if spec.reduction else 1  # of every edge that has one, and behind the others their states are as small
    value = n, spec.op_channels, -(-h // stride), -(-w // stride)
    expected = [(f"{kind} of edge {edge}", values, value) for kind, of in drawn.items() for edge, values in of.items()]
    if disturbance.edge_masks is not None:
        expected.append(("edge_masks", disturbance.edge_masks, (spec.edges, n, 1, 1, 1)))
    for name, values, shape in expected:
        check_tensors(op, s0=s0, **{name: values})
        if tuple(values.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(values.shape)}; needed is {list(shape)}")
    if unknown := {*disturbance.noise, *disturbance.skip_masks} - set(range(spec.edges)):
        raise ValueError(f"{op}: values are given for edge {unknown.pop()!r}; the cell has edges 0 to {spec.edges - 1}")
    for edge, names in enumerate(spec.candidates):
        if "noise" in names and edge not in disturbance.noise:
            raise ValueError(f"{op}: edge {edge} has the candidate `noise`, but disturbance.noise has no values for it")
