"""The stencils that leave one state of a cell, composed of plain PyTorch calls: the oracle of the CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def stencils(x: Tensor, depthwise: Sequence[Tensor], dilations: Sequence[int], stride: int, pools: bool) -> Tensor:
    """[*, n, c, h, w], weights [*, c, 1, k, k] -> [maps, *, n, c, h', w']: convolutions of relu(x), then max and average pool."""
    if x.dim() == 5:  # models are channels: every stencil treats a channel by itself
        models, _, c, _, _ = x.shape
        together = stencils(x.transpose(0, 1).flatten(1, 2), [w.flatten(0, 1) for w in depthwise], dilations, stride, pools)
        return together.unflatten(2, (models, c)).transpose(1, 2)
    positive = F.relu(x)
    maps = [
        F.conv2d(positive, w, None, stride, dilation * (w.shape[-1] // 2), dilation, groups=x.shape[1])
        for w, dilation in zip(depthwise, dilations, strict=True)
    ]
    if pools:
        maps += [F.max_pool2d(x, 3, stride, 1), F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)]
    return torch.stack(maps)
