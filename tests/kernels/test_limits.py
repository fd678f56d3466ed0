"""Launches that CUDA, or an index of 32 bits, could not hold are refused in a sentence before anything is launched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pamkd.kernels import flat_update, group_min_similarity, grs_hinge, grs_loss, pairwise_cosine
from pamkd.ops import mixed_cell_cuda, relu_conv_norm_cuda
from pamkd.reference.cell_spec import CellSpec

MANY = 1 << 16  # one more than the second and third dimension of a grid


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layer(*shape: int) -> None:
    relu_conv_norm_cuda.forward(meta(*shape), None, meta(*shape[:-4], 1, shape[-3], 1, 1), None, None, 1, 1, 1e-5)


def cell(*shape: int) -> None:
    spec = CellSpec(shape[-3], (("skip_connect",),), inputs=1, nodes=1)
    mixed_cell_cuda.forward(meta(*shape), None, meta(*shape[:-4], 0), meta(*shape[:-4], 1, 1), spec.encode(), True)


def minima(sets: int, n: int, count: int) -> tuple[Tensor, ...]:
    """Similarity, pairs and scale of groups."""
    return meta(sets, count), meta(sets, count, 2, dtype=torch.int64), meta(sets, n)


REFUSED = {
    "layer: pixels": (lambda: layer(2048, 1, 1024, 1024), "2147483648 pixels"),
    "layer: sets": (lambda: layer(MANY, 1, 1, 2, 2), "sets takes 65536"),
    "layer: programs": (lambda: layer(2048, 64, 1, 1024, 1024), "programs; a launch"),
    "cell: pixels": (lambda: cell(2048, 2, 1024, 1024), "2147483648 pixels"),
    "cell: sets": (lambda: cell(MANY, 1, 2, 2, 2), "sets takes 65536"),
    "cosines: sets": (lambda: pairwise_cosine.pairwise_cosine(meta(MANY, 4, 3)), "sets takes 65536"),
    "cosines: programs": (lambda: pairwise_cosine.pairwise_cosine(meta(512, 1 << 17, 3)), "2147483648 programs"),
    "minima: sets": (
        lambda: group_min_similarity.group_min_similarity(meta(MANY, 4, 3), meta(2, 2, dtype=torch.int64)),
        "sets takes 65536",
    ),
    "minima: entries": (
        lambda: group_min_similarity.group_min_similarity_backward(meta(1, 1 << 30), meta(1, 5, 3), *minima(1, 5, 1 << 30)),
        "2147483648 entries",
    ),
    "hinges: sets": (lambda: grs_hinge.grs_hinge_backward(meta(1, MANY), meta(MANY, 2, 2), meta(1, 2, 2), 0.1), "sets takes 65537"),
    "loss: sets": (
        lambda: grs_loss.grs_loss(meta(MANY, 4, 3), meta(4, 3), *[meta(2, 2, dtype=torch.int64)] * 2, 0.1, True),
        "sets takes 65537",
    ),
    "update: sets": (lambda: flat_update.sgd_update(*[meta(MANY, 3)] * 3, 0.1, 0.9, 0.0, 0.0), "sets takes 65536"),
    "points: sets": (lambda: flat_update.perturb(meta(MANY, 3), meta(MANY, 3), 0.1), "sets takes 65536"),
}


@pytest.mark.parametrize(("call", "said"), REFUSED.values(), ids=REFUSED)
def test_too_large_a_launch_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
