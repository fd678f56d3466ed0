"""The mixed-op cell of differentiable architecture search as one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd.reference import mixed_cell as reference
from pamkd.reference.cell_spec import CellSpec


def mixed_cell(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec) -> Tensor:
    """Node i = sum over its edges e of sum_o mix[e, o] * candidate_o(state); returns the nodes along the channels.

    Equivalent to `pamkd.reference.mixed_cell.mixed_cell`, the same cell composed of plain PyTorch calls.

    Args:
        s0: [n, spec.channels, h, w], the first (preprocessed) input state, any strides; channels_last is the fast format.
        s1: like s0; None where `spec.inputs` is 1.
        weights: [spec.num_weights], the cell's slice of the flat weight buffer, in the order of `spec.weights`.
        mix: [spec.edges, spec.columns], the weight of every candidate (softmax, gates, samples: made by the caller).
            Columns beyond an edge's candidate list are not read.
        spec: the cell.

    Returns:
        [n, spec.out_channels, h', w'] in channels_last; h' = ceil(h / 2) in a reduction cell, else h.

    Raises:
        TypeError: the tensors are not of one floating-point dtype, or on several devices.
        ValueError: a shape does not fit `spec`.

    Source: Liu et al., DARTS: Differentiable Architecture Search (ICLR 2019), equation 2 and the published cell.
    """
    _check(s0, s1, weights, mix, spec)
    return reference.mixed_cell(s0, s1, weights, mix, spec).contiguous(memory_format=torch.channels_last)


def _check(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec) -> None:
    if (s1 is None) != (spec.inputs == 1):
        raise ValueError(f"mixed_cell: s1 is {'None' if s1 is None else 'given'}, but spec.inputs is {spec.inputs}")
    for name, tensor in (("s1", s1), ("weights", weights), ("mix", mix)):
        if tensor is not None and (tensor.dtype != s0.dtype or tensor.device != s0.device):
            found = f"{name} is {tensor.dtype} on {tensor.device} and s0 is {s0.dtype} on {s0.device}"
            raise TypeError(f"mixed_cell: {found}; convert them to one dtype and device")
    if not s0.is_floating_point():
        raise TypeError(f"mixed_cell: s0 is {s0.dtype}; floating-point states are needed")
    for name, tensor in (("s0", s0), ("s1", s1)):
        if tensor is not None and (tensor.dim() != 4 or tensor.shape[1] != spec.channels or tensor.shape != s0.shape):
            raise ValueError(
                f"mixed_cell: {name} has shape {tuple(tensor.shape)}; every input state is [n, {spec.channels}, h, w] of one size"
            )
    if weights.dim() != 1 or weights.shape[0] != spec.num_weights:
        raise ValueError(f"mixed_cell: weights has shape {tuple(weights.shape)}; the spec's flat slice is [{spec.num_weights}]")
    if tuple(mix.shape) != (spec.edges, spec.columns):
        raise ValueError(f"mixed_cell: mix has shape {tuple(mix.shape)}; the spec needs [{spec.edges}, {spec.columns}]")
