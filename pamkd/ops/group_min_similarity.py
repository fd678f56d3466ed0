"""Similarity within groups of rows: the smallest cosine of any two of a group."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd import reference
from pamkd.ops._embeddings import check_embeddings, check_groups, computed, example_embeddings, example_groups, readable
from pamkd.ops._library import LIB, define, deny_double_backward, has_kernel, register, triton_kernels

# `scale` [L, N] is 1 / max(norm, 1e-8) of each row, kept for the backward pass.
define("group_min_similarity(Tensor embeddings, Tensor groups) -> (Tensor similarity, Tensor pairs, Tensor scale)")
define("group_min_similarity_backward(Tensor grad, Tensor embeddings, Tensor similarity, Tensor pairs, Tensor scale) -> Tensor")


def group_min_similarity(embeddings: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """s(X) = min over x != x' in X of cos(e_x, e_x'), Eq. (2) of the paper.

    The pairs' cosines come from the Gram matrix of all rows or from the gathered rows, whichever costs less; neither leaves the
    operation. The gradient of a group goes to its one minimising pair: de_i = g (u_j - cos u_i) / |e_i|.

    Args:
        embeddings: [L, N, D], L sets of N rows; float32 or float64, or bfloat16 or float16 computed in float32; any strides.
        groups: int64 [G, R], R >= 2 rows of each group, the same for all sets.

    Returns:
        similarity [L, G] and pairs int64 [L, G, 2], the rows of the minimising pair; of equal ones the first in row-major
        order. Differentiable once; twice through `pamkd.reference.group_min_similarity`.

    Raises:
        TypeError: embeddings not floating point, or groups not int64.
        ValueError: a wrong shape, R < 2, groups larger than the batch, an empty batch, tensors on different devices; a group
            index out of range, NaN or infinity in a row (on the CPU; on CUDA, where nothing waits for the
            device, the similarity of such a group is NaN).
        NotImplementedError: differentiated twice, or in forward mode.
    """
    check_embeddings("group_min_similarity", "embeddings", embeddings)
    check_groups("group_min_similarity", "groups", groups, embeddings)
    embeddings = readable("group_min_similarity", embeddings)
    if not has_kernel("group_min_similarity", embeddings):
        return reference.group_min_similarity(embeddings, groups)
    similarity, pairs, _ = torch.ops.pamkd.group_min_similarity(embeddings, groups)
    return similarity, pairs


@torch.library.register_fake("pamkd::group_min_similarity", lib=LIB)
def _(embeddings, groups):
    (sets, rows, _), count, dtype = embeddings.shape, groups.shape[0], computed(embeddings.dtype)
    similarity, scale = embeddings.new_empty(sets, count, dtype=dtype), embeddings.new_empty(sets, rows, dtype=dtype)
    return similarity, groups.new_empty(sets, count, 2), scale


@torch.library.register_fake("pamkd::group_min_similarity_backward", lib=LIB)
def _(grad, embeddings, similarity, pairs, scale):
    return embeddings.new_empty(embeddings.shape)


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs[0], *output)


def _backward(ctx, grad, *_):
    if grad is None:
        return None, None
    return torch.ops.pamkd.group_min_similarity_backward(grad, *ctx.saved_tensors), None


torch.library.register_autograd("pamkd::group_min_similarity", _backward, setup_context=_setup, lib=LIB)
triton_kernels("group_min_similarity", "group_min_similarity", "group_min_similarity_backward")
deny_double_backward("pamkd::group_min_similarity_backward", "use pamkd.reference.group_min_similarity")
register(
    group_min_similarity,
    reference.group_min_similarity,
    lambda: (example_embeddings(2, 0), example_groups(24, 5)),
    cpu="C++",
    cuda="Triton",
)
