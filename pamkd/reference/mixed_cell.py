"""The mixed-op cell composed of plain PyTorch calls: the oracle of the fused kernels, twice differentiable."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
from pamkd.reference.relu_conv_norm import batch_norm, relu_conv_norm

BN_EPS = 1e-5


def factorized_reduce(x: Tensor, conv_1: Tensor, conv_2: Tensor, norm: Callable[..., Tensor] = batch_norm) -> Tensor:
    """relu, then two stride-2 pointwise convolutions, the second one pixel lower right, concatenated, BatchNorm.

    For odd sizes the shifted half reads one row and column of zeros beyond the edge, so that both halves agree in size.
    The pixels are taken out before the convolution: oneDNN's weight gradient of a strided pointwise convolution writes out
    of bounds for fewer than 16 channels in channels-last order (oneDNN issue 6035).
    """
    x = F.relu(x)
    shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1::2, 1::2]
    return norm(torch.cat([F.conv2d(x[:, :, ::2, ::2], conv_1), F.conv2d(shifted, conv_2)], 1))


def operation(
    name: str,
    x: Tensor,
    stride: int,
    weights: list[Tensor],
    pool_norm: bool = True,
    layer: Callable[..., Any] = relu_conv_norm,
    norm: Callable[..., Any] = batch_norm,
) -> Tensor:
    """One candidate operation (DARTS `operations.py`, affine-free BatchNorm). x: [n, c, h, w]; `pool_norm`: BatchNorm after pools."""
    if name == "none":
        return x[:, :, ::stride, ::stride] * 0
    if name.endswith("pool_3x3"):
        maximum = name.startswith("max")
        y = F.max_pool2d(x, 3, stride, 1) if maximum else F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        return norm(y) if pool_norm else y
    if name == "skip_connect":
        return x if stride == 1 else factorized_reduce(x, weights[0], weights[1], norm)
    if name.startswith("nor_conv"):
        return norm(F.conv2d(F.relu(x), weights[0], stride=stride, padding=weights[0].shape[-1] // 2))
    dilation = 2 if name.startswith("dil_conv") else 1
    for depthwise, pointwise in zip(weights[::2], weights[1::2], strict=True):
        x, _, _ = layer(x, depthwise, pointwise, stride=stride, dilation=dilation)
        stride = 1
    return x


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def mixed_cell(
    s0: Tensor,
    s1: Tensor | None,
    weights: Tensor,
    mix: Tensor,
    spec: CellSpec,
    disturbance: Disturbance | None = None,
    layer: Callable[..., Any] = relu_conv_norm,
    norm: Callable[..., Any] = batch_norm,
) -> Tensor:
    """Node i = sum over its edges e of sum_o mix[e, o] * candidate_o(state); returns the nodes along the channels.

    `layer` computes the layers of separable and dilated convolutions, `norm` every other BatchNorm.
    """
    states = [s0] if s1 is None else [s0, s1]
    of: dict[tuple[int, int], list[Tensor]] = {}
    for piece, values in zip(spec.weights, weights.split([piece.size for piece in spec.weights]), strict=True):
        of.setdefault((piece.edge, piece.op), []).append(values.view(piece.shape))
    disturbance = disturbance or Disturbance(0)
    edge = 0
    for node in range(spec.nodes):
        terms = []
        for source in range(spec.inputs + node):
            y = _edge(states[source], edge, of, mix[edge], spec, disturbance, layer, norm)
            if disturbance.drop_path:
                y = y * disturbance.edge_mask(edge, y)
            terms.append(y)
            edge += 1
        states.append(functools.reduce(torch.add, terms))
    return states[-1] if spec.output == "last" else torch.cat(states[spec.inputs :], 1)


def _edge(
    x: Tensor,
    edge: int,
    of: dict[tuple[int, int], list[Tensor]],
    mix: Tensor,
    spec: CellSpec,
    disturbance: Disturbance,
    layer: Callable[..., Any],
    norm: Callable[..., Any],
) -> Tensor:
    stride = spec.stride(edge)
    head = x[:, : spec.op_channels]
    terms = []
    for i, name in enumerate(spec.candidates[edge]):
        own = of.get((edge, i), [])
        if name == "noise":
            y = disturbance.noise(edge, head[:, :, ::stride, ::stride])
        else:
            y = operation(name, head, stride, own, spec.pool_norm, layer, norm)
        if name == "skip_connect" and stride == 1 and disturbance.skip_dropout:
            y = y * disturbance.skip_mask(edge, y)
        terms.append(mix[i] * y)
    y = functools.reduce(torch.add, terms) if terms else operation("none", head, stride, [])
    if spec.partial == 1:
        return y
    rest = x[:, spec.op_channels :]
    rest = mix[-1] * (rest if stride == 1 else F.max_pool2d(rest, 2, 2))
    return channel_shuffle(torch.cat([y, rest], 1), spec.partial)
