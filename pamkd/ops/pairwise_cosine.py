"""Cosine similarity of all pairs of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd import reference
from pamkd.ops._embeddings import check_embeddings, computed, example_embeddings, readable
from pamkd.ops._library import LIB, define, deny_double_backward, has_kernel, register, triton_kernels

# `scale` [L, N] is 1 / max(norm, 1e-8) of each row, kept for the backward pass.
define("pairwise_cosine(Tensor embeddings) -> (Tensor cosine, Tensor scale)")
define("pairwise_cosine_backward(Tensor grad, Tensor embeddings, Tensor cosine, Tensor scale) -> Tensor")


def pairwise_cosine(embeddings: Tensor) -> Tensor:
    """`u @ u.mT` with `u = e / e.norm(dim=-1, keepdim=True).clamp_min(1e-8)`: s(x, x') of the paper's Eq. (2) before the minimum.

    Args:
        embeddings: [L, N, D], L sets of N rows; float32 or float64, or bfloat16 or float16 computed in float32; any strides.

    Returns:
        [L, N, N], exactly symmetric. A zero row has cosine 0 with everything. Differentiable once; twice through
        `pamkd.reference.pairwise_cosine`.

    Raises:
        TypeError: not floating point.
        ValueError: not [L, N, D], or empty; NaN or infinity in a row (on the CPU; on CUDA its cosines are NaN).
        NotImplementedError: differentiated twice, or in forward mode.
    """
    check_embeddings("pairwise_cosine", "embeddings", embeddings)
    embeddings = readable("pairwise_cosine", embeddings)
    if not has_kernel("pairwise_cosine", embeddings):
        return reference.pairwise_cosine(embeddings)
    return torch.ops.pamkd.pairwise_cosine(embeddings)[0]


@torch.library.register_fake("pamkd::pairwise_cosine", lib=LIB)
def _(embeddings):
    sets, rows, _ = embeddings.shape
    dtype = computed(embeddings.dtype)
    return embeddings.new_empty(sets, rows, rows, dtype=dtype), embeddings.new_empty(sets, rows, dtype=dtype)


@torch.library.register_fake("pamkd::pairwise_cosine_backward", lib=LIB)
def _(grad, embeddings, cosine, scale):
    return embeddings.new_empty(embeddings.shape)


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx, grad, _):
    return None if grad is None else torch.ops.pamkd.pairwise_cosine_backward(grad, *ctx.saved_tensors)


torch.library.register_autograd("pamkd::pairwise_cosine", _backward, setup_context=_setup, lib=LIB)
triton_kernels("pairwise_cosine", "pairwise_cosine", "pairwise_cosine_backward")
deny_double_backward("pamkd::pairwise_cosine_backward", "use pamkd.reference.pairwise_cosine")
register(pairwise_cosine, reference.pairwise_cosine, lambda: (example_embeddings(2, 0),), cpu="C++", cuda="Triton")
