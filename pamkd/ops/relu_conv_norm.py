"""relu, (depthwise and) pointwise convolution and BatchNorm as one operation: the layer that DARTS cells are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pamkd.ops import relu_conv_norm_cuda
from pamkd.ops._checks import check_integers, check_numbers, check_sets, check_tensors
from pamkd.ops._library import (
    LIB,
    channels_last,
    define,
    deny_double_backward,
    has_kernel,
    implement_on_cuda,
    on_cpu,
    register,
    weight_sets,
)
from pamkd.ops.mixed_cell import KERNEL_DTYPES
from pamkd.ops.mixed_cell_cuda import accumulated
from pamkd.reference import relu_conv_norm as reference

define(
    "relu_conv_norm_forward(Tensor x, Tensor? depthwise, Tensor pointwise, Tensor? weight, Tensor? bias, int stride, int dilation, "
    "float eps) -> (Tensor, Tensor, Tensor)"
)
define(
    "relu_conv_norm_backward(Tensor grad, Tensor x, Tensor? depthwise, Tensor pointwise, Tensor? weight, Tensor z, Tensor statistics, "
    "int stride, int dilation, int[] need) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
implement_on_cuda("relu_conv_norm_forward", relu_conv_norm_cuda.forward)
implement_on_cuda("relu_conv_norm_backward", relu_conv_norm_cuda.backward)


def relu_conv_norm(
    x: Tensor,
    depthwise: Tensor | None,
    pointwise: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm(conv2d(conv2d(relu(x), depthwise, groups=c), pointwise)) on the statistics of the batch.

    Of the maps between, only the BatchNorm's input is kept for backward, on a GPU none. With a leading dimension of m weight sets on
    every tensor it computes m layers, on a GPU in the same launches; so it does within `torch.vmap`.

    Args:
        x: [n, c, h, w], any strides; channels_last is the fast format. The fused kernels take float32 and float64 on the CPU, float32,
            bfloat16 and float16 on a GPU.
        depthwise: [c, 1, k, k] with k 3 or 5, padded to keep h and w; None for none.
        pointwise: [channels, c, 1, 1].
        weight, bias: [channels] of the BatchNorm, or None for 1 and 0.
        stride, dilation: of the depthwise convolution, 1 or 2.
        eps: of the BatchNorm.

    Returns:
        y [n, channels, ceil(h / stride), ceil(w / stride)] in channels_last; mean and biased variance [channels] of the
        batch, not differentiable, for running statistics, in float32 where a GPU's kernel read bfloat16 or float16. Differentiable
        once in x and all weights.

    Raises:
        TypeError: the tensors differ in dtype or device, or are not floating-point.
        ValueError: a shape, stride, dilation or eps that is not listed above, or one value per channel.
        NotImplementedError: differentiated twice, or in forward mode.
    """
    _check(x, depthwise, pointwise, weight, bias, stride, dilation, eps)
    fused = x.dtype in KERNEL_DTYPES.get(x.device.type, (x.dtype,)) and has_kernel("relu_conv_norm", x)
    if x.dim() == 5 and (not fused or on_cpu(x)):
        each = zip(*(len(x) * [None] if t is None else t for t in (x, depthwise, pointwise, weight, bias)), strict=True)
        layers = [relu_conv_norm(*tensors, stride=stride, dilation=dilation, eps=eps) for tensors in each]
        y, mean, variance = (torch.stack(results) for results in zip(*layers, strict=True))
        return y, mean, variance
    if not fused:
        y, mean, variance = reference.relu_conv_norm(x, depthwise, pointwise, weight, bias, stride, dilation, eps)
        return channels_last(y), mean, variance
    y, _, statistics = torch.ops.pamkd.relu_conv_norm_forward(x, depthwise, pointwise, weight, bias, stride, dilation, eps)
    mean, _, variance = statistics.detach().reshape(3, *x.shape[:-4], -1)[..., : y.shape[-3]]
    return y, mean, variance


def _check(
    x: Tensor,
    depthwise: Tensor | None,
    pointwise: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: int,
    dilation: int,
    eps: float,
) -> None:
    given = {"depthwise": depthwise, "weight": weight, "bias": bias}
    check_tensors("relu_conv_norm", x=x, pointwise=pointwise, **{name: tensor for name, tensor in given.items() if tensor is not None})
    check_integers("relu_conv_norm", stride=stride, dilation=dilation)
    check_numbers("relu_conv_norm", eps=eps)
    if eps <= 0:
        raise ValueError(f"relu_conv_norm: eps is {eps}; needed is a positive number")
    if x.dim() == 5:
        check_sets("relu_conv_norm", [x, pointwise, *(tensor for tensor in given.values() if tensor is not None)])
        x, pointwise = x[0], pointwise[0]
        depthwise, weight, bias = (t if t is None else t[0] for t in (depthwise, weight, bias))
    if x.dim() != 4:
        raise ValueError(f"relu_conv_norm: x has shape {tuple(x.shape)}; needed is [n, c, h, w] or [m, n, c, h, w]")
    c = x.shape[1]
    if depthwise is None and (stride, dilation) != (1, 1):
        raise ValueError(f"relu_conv_norm: stride {stride} and dilation {dilation} without a depthwise convolution; needed is 1 and 1")
    if stride not in (1, 2) or dilation not in (1, 2):
        raise ValueError(f"relu_conv_norm: stride is {stride} and dilation {dilation}; each is 1 or 2")
    if depthwise is not None and tuple(depthwise.shape) not in ((c, 1, 3, 3), (c, 1, 5, 5)):
        raise ValueError(f"relu_conv_norm: depthwise has shape {tuple(depthwise.shape)}; needed is [{c}, 1, k, k] with k 3 or 5")
    if pointwise.dim() != 4 or tuple(pointwise.shape[1:]) != (c, 1, 1):
        raise ValueError(f"relu_conv_norm: pointwise has shape {tuple(pointwise.shape)}; needed is [channels, {c}, 1, 1]")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tuple(tensor.shape) != (pointwise.shape[0],):
            raise ValueError(f"relu_conv_norm: {name} has shape {tuple(tensor.shape)}; needed is [{pointwise.shape[0]}]")
    if x.shape[0] * (-(-x.shape[2] // stride)) * (-(-x.shape[3] // stride)) < 2:
        needed = "BatchNorm needs more than one value per channel: enlarge the batch or the images"
        raise ValueError(f"relu_conv_norm: x has shape {tuple(x.shape)}; {needed}")


def _lanes(pointwise: Tensor) -> int:
    return (pointwise.shape[0] + 7) // 8 * 8


@torch.library.register_fake("pamkd::relu_conv_norm_forward", lib=LIB)
def _(x, depthwise, pointwise, weight, bias, stride, dilation, eps):
    if not on_cpu(x):
        shape, statistics = relu_conv_norm_cuda.sizes(x, pointwise, stride)
        rows = relu_conv_norm_cuda.maps_of(x.new_empty(shape), x)
        return rows, x.new_empty(0), x.new_empty(statistics, dtype=accumulated(x.dtype))
    n, _, h, w = x.shape
    h, w = (h + stride - 1) // stride, (w + stride - 1) // stride
    y = x.new_empty(n, h, w, pointwise.shape[0]).permute(0, 3, 1, 2)
    return y, x.new_empty(n * h * w * _lanes(pointwise)), x.new_empty(3, _lanes(pointwise))


@torch.library.register_fake("pamkd::relu_conv_norm_backward", lib=LIB)
def _(grad, x, depthwise, pointwise, weight, z, statistics, stride, dilation, need):
    dx = x.new_empty(x.movedim(-3, -1).shape).movedim(-1, -3) if need[0] else x.new_empty(0)
    ddepthwise = x.new_empty(depthwise.shape) if need[1] else x.new_empty(0)
    dpointwise = x.new_empty(pointwise.shape) if need[2] else x.new_empty(0)
    dweight, dbias = (x.new_empty((*x.shape[:-4], pointwise.shape[-4]) if needed else 0) for needed in need[3:])
    return dx, ddepthwise, dpointwise, dweight, dbias


def _setup(ctx, inputs, output):
    x, depthwise, pointwise, weight, _, ctx.stride, ctx.dilation, _ = inputs
    ctx.set_materialize_grads(False)  # else autograd fills a zero gradient for z
    ctx.save_for_backward(x, depthwise, pointwise, weight, *output[1:])


def _backward(ctx, grad, _z, _statistics):
    if grad is None:
        return (None,) * 8
    need = ctx.needs_input_grad[:5]
    grads = torch.ops.pamkd.relu_conv_norm_backward(grad, *ctx.saved_tensors, ctx.stride, ctx.dilation, [int(n) for n in need])
    return *(g if needed else None for g, needed in zip(grads, need, strict=True)), None, None, None


torch.library.register_autograd("pamkd::relu_conv_norm_forward", _backward, setup_context=_setup, lib=LIB)


@torch.library.register_vmap("pamkd::relu_conv_norm_forward", lib=LIB)
def _(info, dims, x, depthwise, pointwise, weight, bias, *options):
    sets = weight_sets(info.batch_size, dims, x, depthwise, pointwise, weight, bias)
    if not on_cpu(x):
        return torch.ops.pamkd.relu_conv_norm_forward(*sets, *options), (0, None, 1)
    each = ([None if t is None else t[m] for t in sets] for m in range(info.batch_size))
    layers = [torch.ops.pamkd.relu_conv_norm_forward(*tensors, *options) for tensors in each]
    return tuple(torch.stack(results) for results in zip(*layers, strict=True)), (0, 0, 0)


deny_double_backward("pamkd::relu_conv_norm_backward", "use pamkd.reference.relu_conv_norm.relu_conv_norm")


def _example() -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(0)
    x, depthwise, pointwise = (
        torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()
        for shape in ((3, 11, 9, 8), (11, 1, 5, 5), (13, 11, 1, 1))
    )
    weight, bias = (torch.randn(13, generator=random, dtype=torch.float64).requires_grad_() for _ in range(2))
    return x, depthwise, pointwise, weight, bias


def _cropped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        return function(*arguments)[0][..., 1:]  # the sum of squares of a whole normalised map would be a constant

    return run


register(_cropped(relu_conv_norm), _cropped(reference.relu_conv_norm), _example, cpu="C++", cuda="CUDA C++ and Triton")
