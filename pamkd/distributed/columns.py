"""Batches split along columns of the mesh: a network sees its part, everything behind its outputs the whole batch.

The whole computation is sum_c f(part c) made of replicated numbers on both sides: weights enter (identity; their gradients
are summed over the columns), outputs are gathered (each column takes its rows of their gradient). So losses, groups and
similarities are computed alike in every column, and each weight update is the one of the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pamkd.distributed.group import Group


class Columns:
    """The processes that share a learner's batches, each an equal part; by default this one, with whole batches.

    `synchronised`: BatchNorm takes its statistics from the whole batch, else from each part.
    """

    def __init__(self, group: Group | None = None, *, synchronised: bool = False) -> None:
        self.group = group or Group()
        self.synchronised = synchronised and self.group.size > 1

    def __deepcopy__(self, memo: dict[int, Any]) -> Columns:
        return self  # of networks that are copied: the processes are the same

    def whole(self, rows: int) -> int:
        """Rows of the batch of which this column has so many."""
        return rows * self.group.size

    def first(self, rows: int) -> int:
        """The place in the batch of the first of this column's rows."""
        return rows * self.group.rank

    def part(self, x: Tensor, dim: int = 0) -> Tensor:
        """This column's part of a tensor whose dimension `dim` is the rows of a batch. Raises ValueError when it cannot be split."""
        count = x.shape[dim]
        if count % self.group.size:
            raise ValueError(f"a batch of {count} images cannot be split into {self.group.size} equal parts: take a multiple of them")
        size = count // self.group.size
        return x.narrow(dim, self.group.rank * size, size)

    def enter(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What all columns have alike, for use on a part of the batch. Backward sums their gradients: one collective for all."""
        there = [tensor for tensor in tensors if tensor.requires_grad]
        if self.group.size == 1 or not there:
            return tensors
        # The others stay outside: an autograd function would have them require gradients too.
        entered = iter(_Enter.apply(self.group, *there))
        return tuple(next(entered) if tensor.requires_grad else tensor for tensor in tensors)

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors [rows, ...] of the parts -> of the whole batch: one collective for all. Backward takes this column's rows."""
        if self.group.size == 1:
            return tensors
        flat = _Gather.apply(self.group, torch.cat([tensor.flatten(1) for tensor in tensors], 1))
        pieces = flat.split([tensor[0].numel() for tensor in tensors], 1)
        return tuple(piece.reshape(len(piece), *tensor.shape[1:]) for piece, tensor in zip(pieces, tensors, strict=True))

    def batch_norm(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
        """BatchNorm on batch statistics. x [n, c, ...]."""
        if not self.synchronised:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
        mean, variance = self.statistics(x)
        return normalised(x, mean, variance, weight, bias, eps)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance [c] of the whole batch; x [n, c, ...]. One collective forward and one backward: means and
        variances of the parts are gathered together and merged (Chan et al. 1979, for parts of one size)."""
        variance, mean = torch.var_mean(x, [dim for dim in range(x.dim()) if dim != 1], correction=0)
        variances, means = self.gather(variance[None], mean[None])
        mean = means.mean(0)
        mean, variance = self.enter(mean, variances.mean(0) + (means - mean).square().mean(0))
        return mean, variance


def normalised(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """weight (x - mean) / sqrt(variance + eps) + bias along the channels of x [n, c, ...]; statistics and weights [c]."""
    scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
    shape = [1, -1] + [1] * (x.dim() - 2)
    y = (x - mean.view(shape)) * scale.view(shape)
    return y if bias is None else y + bias.view(shape)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [grad for grad in grads if grad is not None]
        if not there:
            return None, *grads
        summed = iter(ctx.group.all_reduce(torch.cat([grad.reshape(-1) for grad in there])).split([grad.numel() for grad in there]))
        return None, *(None if grad is None else next(summed).view(grad.shape) for grad in grads)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, x: Tensor) -> Tensor:
        ctx.place = (group.rank * len(x), len(x))
        return group.all_gather(x).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.narrow(0, *ctx.place)


WHOLE = Columns()
