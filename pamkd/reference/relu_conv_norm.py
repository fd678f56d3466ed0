"""relu, depthwise convolution, pointwise convolution and BatchNorm composed of plain PyTorch calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """BatchNorm on batch statistics, without running ones that a pass could disturb."""
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def relu_conv_norm(
    x: Tensor,
    depthwise: Tensor | None,
    pointwise: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
    eps: float = 1e-5,
    norm: Callable[..., Tensor] = batch_norm,
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm(conv1x1(depthwise(relu(x)))) by `norm`, and the mean and biased variance of the batch."""
    x = F.relu(x)
    if depthwise is not None:
        padding = dilation * (depthwise.shape[-1] // 2)
        x = F.conv2d(x, depthwise, None, stride, padding, dilation, groups=x.shape[1])
    z = F.conv2d(x, pointwise)
    variance, mean = torch.var_mean(z.detach(), (0, 2, 3), correction=0)
    return norm(z, weight, bias, eps), mean, variance
