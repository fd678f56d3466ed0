"""Updates of flat weight sets: SGD with momentum, weight decay and clipping, and perturbations along a direction."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd.ops._checks import check_dense, check_numbers
from pamkd.ops._library import LIB, define, has_kernel, register, triton_kernels
from pamkd.reference import flat_update as reference

define(
    "sgd_update(Tensor weights, Tensor buffer, Tensor gradient, float lr, float momentum, float weight_decay, float clip)"
    " -> (Tensor, Tensor, Tensor)",
    compiled=(),
)
define("perturb(Tensor point, Tensor direction, float step) -> (Tensor, Tensor)", compiled=())


def sgd_update(
    weights: Tensor, buffer: Tensor, gradient: Tensor, lr: float, momentum: float, weight_decay: float, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """m' = momentum m + c g + weight_decay w, w' = w - lr m', c = min(1, clip / (||g|| + 1e-6)).

    Args:
        weights, buffer, gradient: [P], or [M, P] of M weight sets; float32 or float64, of one dtype and device.
        lr, momentum, weight_decay: of all sets.
        clip: largest norm of a set's gradient; 0 for no clipping.

    Returns:
        w' and m', and c [] or [M]. Differentiable any number of times in all three, with c as a constant.

    Raises:
        TypeError: no dense tensors, or no numbers.
        ValueError: shapes, dtypes or devices that differ, or not [P] or [M, P].
        NotImplementedError: differentiated in forward mode.
    """
    _check("sgd_update", weights=weights, buffer=buffer, gradient=gradient)
    check_numbers("sgd_update", lr=lr, momentum=momentum, weight_decay=weight_decay, clip=clip)
    if not has_kernel("sgd_update", weights):
        return reference.sgd_update(weights, buffer, gradient, lr, momentum, weight_decay, clip)
    return torch.ops.pamkd.sgd_update(weights, buffer, gradient, lr, momentum, weight_decay, clip)


def perturb(point: Tensor, direction: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """(point + eps direction, point - eps direction) with eps = step / ||direction||, the two ends of a central difference.

    Args:
        point, direction: [P], or [M, P] of M weight sets; float32 or float64, of one dtype and device.
        step: the norm of each perturbation.

    Returns:
        points [2, P] or [2, M, P], and eps [] or [M], which is 0 where the direction is. Differentiable any number of times, with
        eps as a constant.

    Raises:
        TypeError: no dense tensors, or no numbers.
        ValueError: shapes, dtypes or devices that differ, or not [P] or [M, P].
        NotImplementedError: differentiated in forward mode.
    """
    _check("perturb", point=point, direction=direction)
    check_numbers("perturb", step=step)
    if not has_kernel("perturb", point):
        return reference.perturb(point, direction, step)
    return torch.ops.pamkd.perturb(point, direction, step)


def _check(op: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        check_dense(op, name, tensor)
    (name, like), *others = tensors.items()
    if like.dim() not in (1, 2) or like.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: {name} is {tuple(like.shape)} of {like.dtype}; needed is [P] or [M, P] of float32 or float64")
    for other, tensor in others:
        if (tensor.shape, tensor.dtype, tensor.device) != (like.shape, like.dtype, like.device):
            found = f"{other} is {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            raise ValueError(f"{op}: {found} and {name} {tuple(like.shape)} of {like.dtype} on {like.device}; needed is one shape")


@torch.library.register_fake("pamkd::sgd_update", lib=LIB)
def _(weights, buffer, gradient, lr, momentum, weight_decay, clip):
    return torch.empty_like(weights), torch.empty_like(weights), weights.new_empty(weights.shape[:-1])


@torch.library.register_fake("pamkd::perturb", lib=LIB)
def _(point, direction, step):
    return point.new_empty(2, *point.shape), point.new_empty(point.shape[:-1])


def _setup_sgd(ctx, inputs, output):
    _, _, _, ctx.lr, ctx.momentum, ctx.weight_decay, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2])


def _backward_sgd(ctx, d_weights, d_buffer, _):
    (coefficient,) = ctx.saved_tensors
    d_buffer = d_buffer - ctx.lr * d_weights
    d_gradient = coefficient[..., None] * d_buffer
    return d_weights + ctx.weight_decay * d_buffer, ctx.momentum * d_buffer, d_gradient, None, None, None, None


def _setup_perturb(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward_perturb(ctx, grad, _):
    (eps,) = ctx.saved_tensors
    return grad[0] + grad[1], eps[..., None] * (grad[0] - grad[1]), None


def _vectors(count: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, 1500, generator=random, dtype=torch.float64).requires_grad_() for _ in range(count)]


torch.library.register_autograd("pamkd::sgd_update", _backward_sgd, setup_context=_setup_sgd, lib=LIB)
torch.library.register_autograd("pamkd::perturb", _backward_perturb, setup_context=_setup_perturb, lib=LIB)
LIB.impl("sgd_update", reference.sgd_update, "CPU")
LIB.impl("perturb", reference.perturb, "CPU")
triton_kernels("flat_update", "sgd_update", "perturb")
register(sgd_update, reference.sgd_update, lambda: (*_vectors(3), 0.1, 0.9, 3e-4, 5.0), cpu="PyTorch calls", cuda="Triton")
register(perturb, reference.perturb, lambda: (*_vectors(2), 0.01), cpu="PyTorch calls", cuda="Triton")
