"""Updates of flat weight sets: SGD with momentum, weight decay and clipping, and two points on either side along a direction.

Two launches each: sums of squares of pieces, then the update, each of whose programs adds these sums in the same order.
float32 and float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pamkd.kernels._shared import cdiv, check_grid, number

PIECES = 256  # of a vector at most; one program sums the squares of each


@triton.jit(do_not_specialize=["blocks"])
def squares_kernel(x_ptr, partial_ptr, size, blocks, BLOCK: tl.constexpr):
    """x [M, size] -> partial [M, pieces]: a piece is `blocks` blocks of BLOCK."""
    piece, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    total = tl.zeros((BLOCK,), x_ptr.dtype.element_ty)
    for block in range(0, blocks):
        at = (piece * blocks + block) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + k * size + at, mask=at < size, other=0.0)
        total += x * x
    tl.store(partial_ptr + k * tl.num_programs(0) + piece, tl.sum(total, 0))


@triton.jit
def _norm(partial_ptr, k, pieces, PIECES: tl.constexpr):
    piece = tl.arange(0, PIECES)
    return tl.sqrt(tl.sum(tl.load(partial_ptr + k * pieces + piece, mask=piece < pieces, other=0.0), 0))


@triton.jit(do_not_specialize=["pieces"])
def sgd_kernel(
    weights_ptr,  # [M, size]
    buffer_ptr,
    gradient_ptr,
    partial_ptr,  # [M, pieces], sums of squares of the gradient, or None: no clipping
    new_weights_ptr,
    new_buffer_ptr,
    coefficient_ptr,  # [M]
    lr: tl.float64,
    momentum: tl.float64,
    weight_decay: tl.float64,
    clip: tl.float64,
    size,
    pieces,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
):
    block, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = weights_ptr.dtype.element_ty
    coefficient = number(1.0, dtype)
    if partial_ptr is not None:
        coefficient = tl.minimum(number(clip, dtype) / (_norm(partial_ptr, k, pieces, PIECES) + number(1e-6, dtype)), coefficient)
    if block == 0:
        tl.store(coefficient_ptr + k + tl.arange(0, 1), coefficient)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    at += k * size
    weights = tl.load(weights_ptr + at, mask=inside, other=0.0)
    buffer = tl.load(buffer_ptr + at, mask=inside, other=0.0)
    gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0)
    buffer = number(momentum, dtype) * buffer + (coefficient * gradient + number(weight_decay, dtype) * weights)
    tl.store(new_buffer_ptr + at, buffer, mask=inside)
    tl.store(new_weights_ptr + at, weights - number(lr, dtype) * buffer, mask=inside)


@triton.jit(do_not_specialize=["pieces"])
def perturb_kernel(
    point_ptr,  # [M, size]
    direction_ptr,  # [M, size]
    partial_ptr,  # [M, pieces], sums of squares of the direction
    points_ptr,  # [2, M, size]
    eps_ptr,  # [M]
    step: tl.float64,
    size,
    pieces,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
):
    block, k, sets = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    dtype: tl.constexpr = point_ptr.dtype.element_ty
    norm = _norm(partial_ptr, k, pieces, PIECES)
    eps = tl.where(norm > 0, number(step, dtype) / tl.where(norm > 0, norm, 1.0), 0.0)
    if block == 0:
        tl.store(eps_ptr + k + tl.arange(0, 1), eps)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    point = tl.load(point_ptr + k * size + at, mask=inside, other=0.0)
    shift = eps * tl.load(direction_ptr + k * size + at, mask=inside, other=0.0)
    tl.store(points_ptr + k * size + at, point + shift, mask=inside)
    tl.store(points_ptr + (sets + k) * size + at, point - shift, mask=inside)


def _squares(x: Tensor) -> Tensor:
    """x [M, size] -> sums of squares of at most 256 pieces [M, pieces]."""
    sets, size = x.shape
    blocks = max(1, cdiv(size, 1024 * PIECES))
    pieces = max(1, cdiv(size, 1024 * blocks))
    partial = x.new_empty(sets, pieces)
    squares_kernel[(pieces, sets)](x, partial, size, blocks, BLOCK=1024, num_warps=8)
    return partial


def sgd_update(
    weights: Tensor, buffer: Tensor, gradient: Tensor, lr: float, momentum: float, weight_decay: float, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """[P] or [M, P] each -> new weights and momentum buffers, clipping coefficients [] or [M]."""
    shape, size, sets = weights.shape, weights.shape[-1], weights.shape[:-1].numel()
    weights, buffer, gradient = (t.contiguous().view(sets, size) for t in (weights, buffer, gradient))
    new_weights, new_buffer, coefficient = torch.empty_like(weights), torch.empty_like(weights), weights.new_empty(sets)
    check_grid("sgd_update", cdiv(size, 1024), sets=sets)
    partial = _squares(gradient) if clip else None
    sgd_kernel[(max(1, cdiv(size, 1024)), sets)](
        weights, buffer, gradient, partial, new_weights, new_buffer, coefficient, lr, momentum, weight_decay, clip,
        size, partial.shape[1] if clip else 0, BLOCK=1024, PIECES=PIECES, num_warps=4,
    )  # fmt: skip
    return new_weights.view(shape), new_buffer.view(shape), coefficient.view(shape[:-1])


def perturb(point: Tensor, direction: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """[P] or [M, P] each -> points [2, P] or [2, M, P], eps [] or [M]."""
    shape, size, sets = point.shape, point.shape[-1], point.shape[:-1].numel()
    point, direction = (t.contiguous().view(sets, size) for t in (point, direction))
    points, eps = point.new_empty(2, *point.shape), point.new_empty(sets)
    check_grid("perturb", cdiv(size, 1024), sets=sets)
    partial = _squares(direction)
    perturb_kernel[(max(1, cdiv(size, 1024)), sets)](
        point, direction, partial, points, eps, step, size, partial.shape[1], BLOCK=1024, PIECES=PIECES, num_warps=4
    )
    return points.view(2, *shape), eps.view(shape[:-1])
