"""The stencils that leave one state of a cell, for all of its edges and several models at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pamkd.ops._checks import check_integers, check_tensors
from pamkd.ops._library import LIB, define, deny_double_backward, has_kernel, register
from pamkd.reference import stencils as reference

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_BRANCHES = 32  # kMaxBranches of csrc/cuda/stencil.cuh
MAX_IMAGES = 65535  # of all models, in the third dimension of a CUDA grid; with `paired` of all convolutions too

# x [models, images, h, w, c], weights [models, sum of c k k], both dense.
define("stencils_forward(Tensor x, Tensor weights, int[] kernels, int[] dilations, int stride, bool pools) -> Tensor", compiled=("CUDA",))
define(
    "stencils_backward(Tensor grad, Tensor x, Tensor weights, int[] kernels, int[] dilations, int stride, bool pools, bool need_x, "
    "bool need_weights) -> (Tensor, Tensor)",
    compiled=("CUDA",),
)
# The gradient of x alone, onto dx with `add`: x and dx [models, images, h, w, c] may be channels of wider rows, and weights
# [models, parameters] hold the convolutions' at `offsets`. With `paired` every convolution has an x of its own, [branches, models, ...].
define(
    "stencils_input(Tensor grad, Tensor x, Tensor weights, int[] kernels, int[] dilations, int[] offsets, int stride, bool pools, "
    "bool paired, bool add, Tensor(a!) dx) -> ()",
    compiled=("CUDA",),
)


def stencils(x: Tensor, depthwise: Sequence[Tensor], dilations: Sequence[int], *, stride: int = 1, pools: bool = True) -> Tensor:
    """conv2d(relu(x), w, groups=c) for every weight w, then max_pool2d(x, 3) and avg_pool2d(x, 3, count_include_pad=False).

    Equivalent to `pamkd.reference.stencils.stencils`. The CUDA kernel reads x once for all of them, and backward writes the
    gradient of x once; weight gradients are the same in every run.

    Args:
        x: [n, c, h, w], or [m, n, c, h, w] for m models (learners, perturbed copies, edges) with weights of their own; any
            strides, channels_last is the fast format. The CUDA kernel takes float32, bfloat16 and float16 and adds in float32.
        depthwise: one tensor [c, 1, k, k], or [m, c, 1, k, k], per convolution; k is 3 or 5, padded to keep h and w.
        dilations: 1 or 2 per convolution.
        stride: of all convolutions and pools, 1 or 2.
        pools: whether the two pools follow the convolutions.

    Returns:
        [maps, n, c, h', w'] or [maps, m, n, c, h', w'] in channels_last, h' = ceil(h / stride). Differentiable once in x and
        the weights; twice through the reference.

    Raises:
        TypeError: the tensors differ in dtype or device, or are not floating-point.
        ValueError: a shape, dilation or stride that is not listed above, or nothing to compute.
        NotImplementedError: differentiated twice, or in forward mode.
    """
    _check(x, depthwise, dilations, stride, pools)
    if x.dtype not in KERNEL_DTYPES or not has_kernel("stencils", x):
        return reference.stencils(x, depthwise, dilations, stride, pools).movedim(-3, -1).contiguous().movedim(-1, -3)
    rows = x.movedim(-3, -1).contiguous()
    models = rows if x.dim() == 5 else rows[None]
    weights = torch.cat([w.reshape(len(models), -1) for w in depthwise], 1) if depthwise else models.new_empty(len(models), 0)
    y = torch.ops.pamkd.stencils_forward(models, weights, [w.shape[-1] for w in depthwise], list(dilations), stride, pools)
    return (y if x.dim() == 5 else y.squeeze(1)).movedim(-1, -3)


def _check(x: Tensor, depthwise: Sequence[Tensor], dilations: Sequence[int], stride: int, pools: bool) -> None:
    for name, sequence in (("depthwise", depthwise), ("dilations", dilations)):
        if not isinstance(sequence, (list, tuple)):
            raise TypeError(f"stencils: {name} is a {type(sequence).__name__}; needed is a list")
    check_integers("stencils", stride=stride, **{f"dilation {i}": dilation for i, dilation in enumerate(dilations)})
    check_tensors("stencils", x=x, **{f"weight {i}": w for i, w in enumerate(depthwise)})
    if x.dim() not in (4, 5) or 0 in x.shape:
        needed = "[n, c, h, w] or [m, n, c, h, w] without an empty dimension"
        raise ValueError(f"stencils: x has shape {tuple(x.shape)}; needed is {needed}")
    if len(depthwise) != len(dilations) or len(depthwise) > MAX_BRANCHES or not (depthwise or pools):
        found = f"{len(depthwise)} weights and {len(dilations)} dilations"
        raise ValueError(f"stencils: {found}; needed is one dilation for each of at most {MAX_BRANCHES} weights, and a weight or the pools")
    models = x.shape[:-4]
    for i, (w, dilation) in enumerate(zip(depthwise, dilations, strict=True)):
        if not any(tuple(w.shape) == (*models, x.shape[-3], 1, k, k) for k in (3, 5)):
            needed = ", ".join(map(str, (*models, x.shape[-3], 1, "k", "k")))
            raise ValueError(f"stencils: weight {i} has shape {tuple(w.shape)}; needed is [{needed}] with k 3 or 5")
        if dilation not in (1, 2):
            raise ValueError(f"stencils: dilation {i} is {dilation}; needed is 1 or 2")
    if stride not in (1, 2):
        raise ValueError(f"stencils: stride is {stride}; needed is 1 or 2")


@torch.library.register_fake("pamkd::stencils_forward", lib=LIB)
def _(x, weights, kernels, dilations, stride, pools):
    models, images, h, w, c = x.shape
    return x.new_empty(len(kernels) + 2 * pools, models, images, (h + stride - 1) // stride, (w + stride - 1) // stride, c)


@torch.library.register_fake("pamkd::stencils_backward", lib=LIB)
def _(grad, x, weights, kernels, dilations, stride, pools, need_x, need_weights):
    return x.new_empty(x.shape if need_x else 0), weights.new_empty(weights.shape if need_weights else 0)


@torch.library.register_fake("pamkd::stencils_input", lib=LIB)
def _(grad, x, weights, kernels, dilations, offsets, stride, pools, paired, add, dx):
    return None


def _setup(ctx, inputs, output):
    x, weights, *ctx.shape = inputs
    ctx.save_for_backward(x, weights)


def _backward(ctx, grad):
    need = ctx.needs_input_grad[:2]
    grads = torch.ops.pamkd.stencils_backward(grad, *ctx.saved_tensors, *ctx.shape, *need)
    return *(g if needed else None for g, needed in zip(grads, need, strict=True)), None, None, None, None


torch.library.register_autograd("pamkd::stencils_forward", _backward, setup_context=_setup, lib=LIB)
deny_double_backward("pamkd::stencils_backward", "use pamkd.reference.stencils.stencils")


def _example() -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(0)
    dilations, sizes = zip(*itertools.product((1, 2), (3, 5)), strict=True)
    x, *depthwise = (
        torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2, 11, 9, 8), *((3, 11, 1, k, k) for k in sizes))
    )
    return x, *depthwise, dilations


def _of_lists(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, *rest: Any, **options: Any) -> Any:
        *depthwise, dilations = rest
        return function(x, depthwise, dilations, **options)

    run.__name__ = "stencils"
    return run


register(
    _of_lists(stencils),
    _of_lists(lambda x, depthwise, dilations: reference.stencils(x, depthwise, dilations, stride=1, pools=True)),
    _example,
    cuda="CUDA C++",
)
