"""Checks and example inputs that the operations on embeddings share."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd.ops._checks import check_dense, check_tensors
from pamkd.ops._library import implementation


def check_embeddings(op: str, name: str, embeddings: Tensor, dims: tuple[int, ...] = (3,)) -> None:
    """Floating-point embeddings [L, N, D] (or [N, D], where `dims` allows 2) that are not empty."""
    check_tensors(op, **{name: embeddings})
    if embeddings.dim() not in dims or 0 in embeddings.shape:
        shapes = " or ".join({2: "[N, D]", 3: "[L, N, D]"}[d] for d in dims)
        raise ValueError(f"{op}: {name} has shape {tuple(embeddings.shape)}; needed is {shapes} without an empty dimension")


def check_groups(op: str, name: str, groups: Tensor, embeddings: Tensor) -> None:
    """Row indices [G, R] on the embeddings' device, 2 <= R <= N. Their range is checked by the kernel, which reads them."""
    check_dense(op, name, groups)
    if groups.dtype != torch.int64:
        raise TypeError(f"{op}: {name} is {groups.dtype}; needed are int64 row indices")
    if groups.device != embeddings.device:
        raise ValueError(f"{op}: {name} is on {groups.device} and the embeddings on {embeddings.device}; move it there")
    if groups.dim() != 2 or groups.shape[0] < 1 or groups.shape[1] < 2:
        raise ValueError(f"{op}: {name} has shape {tuple(groups.shape)}; needed is [G, R] with at least one group of R >= 2 rows")
    if groups.shape[1] > embeddings.shape[-2]:
        raise ValueError(f"{op}: groups of R = {groups.shape[1]} rows are larger than the batch of {embeddings.shape[-2]}")


def computed(dtype: torch.dtype) -> torch.dtype:
    """What embeddings of a dtype are computed in, and the dtype of what is made of them: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def readable(op: str, embeddings: Tensor) -> Tensor:
    """Embeddings in a dtype that the operation reads: Triton kernels widen bfloat16 and float16 as they read, others want float32."""
    return embeddings if implementation(op, embeddings.device.type) == "Triton" else embeddings.to(computed(embeddings.dtype))


def example_embeddings(sets: int, seed: int) -> Tensor:
    return torch.randn(sets, 40, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def example_groups(pairs: int, size: int) -> Tensor:
    """[pairs, size] rows of 40, distinct within a group."""
    return (torch.arange(pairs)[:, None] * 7 + torch.arange(size) * 3) % 40
