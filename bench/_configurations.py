"""Calls of the Triton launchers that reach every configuration that they choose, with tensors that have no memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pamkd.reference.disturbance import Disturbance
from pamkd.runs.search import build_supernet
from pamkd.runs.search_presets import PRESETS
from pamkd.spaces.supernet import Cell, Supernet

SIZES = {"cifar10": 32, "cifar100": 32, "imagenet": 224, "folder": 16, "imagenet16-120": 16, "digits": 8}  # of a dataset's images


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


FULL = (torch.float32, torch.float64)
EVERY = (*FULL, torch.bfloat16, torch.float16)


def grs_launches() -> Iterator[None]:
    """Small and large batches, narrow and wide embeddings, groups of a few and of many rows."""
    from pamkd.kernels import group_min_similarity, grs_hinge, grs_loss, pairwise_cosine

    for dtype in EVERY:
        for n, d in ((64, 256), (1024, 512), (64, 20)):
            e = meta(2, n, d, dtype=dtype)
            cosine, scale = pairwise_cosine.pairwise_cosine(e)
            pairwise_cosine.pairwise_cosine_backward(cosine, e, cosine, scale)
        for n, d, count, size in ((64, 256, 64, 5), (4096, 2048, 4096, 8), (4096, 40, 3, 40), (64, 20, 64, 40), (4096, 16, 10**6, 2)):
            e, groups = meta(2, n, d, dtype=dtype), meta(count, size, dtype=torch.int64)
            found = group_min_similarity.group_min_similarity(e, groups)
            group_min_similarity.group_min_similarity_backward(found[0], e, *found)
        teacher, student = meta(2, 100, 2, dtype=dtype), meta(3, 100, 2, dtype=dtype)
        grs_hinge.grs_hinge_backward(grs_hinge.grs_hinge(teacher, student, 0.01), teacher, student, 0.01)
        for n, d, count, size in ((64, 256, 64, 5), (1024, 512, 65536, 5), (64, 20, 64, 40), (64, 20, 64, 2)):
            e, groups = meta(n, d, dtype=dtype), meta(count, size, dtype=torch.int64)
            loss, *kept = grs_loss.grs_loss(e, e, groups, groups, 0.01, True)
            grs_loss.grs_loss_backward(loss, e, e, *kept, 0.01, True, True, True)
        yield


def update_launches() -> Iterator[None]:
    """Weight sets whose length is and is not a multiple of 16, with and without clipping."""
    from pamkd.kernels import flat_update

    for dtype in FULL:
        for size in (1930624, 1930618):
            weights = meta(2, size, dtype=dtype)
            for clip in (0.0, 5.0):
                flat_update.sgd_update(weights, weights, weights, 0.025, 0.9, 3e-4, clip)
            flat_update.perturb(weights, weights, 0.01)
        yield


def supernets() -> Iterator[tuple[Supernet, int, int]]:
    """Of every preset, in each width of its partial channels, with the sizes of a batch and of an image; and one that no tile divides."""
    found = {}
    for config in [*PRESETS.values(), replace(PRESETS["darts-cifar10"], channels=20)]:
        given = " ".join(option for option in config.space_options if option.startswith("partials"))
        others = tuple(option for option in config.space_options if not option.startswith(("partials", "dropout")))
        for partial in re.findall(r"\d+", given) or [None]:
            options = others if partial is None else (*others, f"partials=[{partial},{partial}]")
            changed, size = replace(config, space_options=options), SIZES[config.dataset]
            found[config.space, config.channels, config.cells, config.batch_size, options, size] = changed, size
    for config, size in found.values():
        yield build_supernet(config, 10, 3), config.batch_size, size


def cell_launches(disturbance: Disturbance | None = None) -> Iterator[None]:
    """Every cell of the supernets, as it is or disturbed."""
    from pamkd.ops import mixed_cell_cuda

    for dtype, images, cell, size in cells():
        spec = cell.spec
        s0, weights, mix = (
            meta(*shape, dtype=dtype) for shape in ((images, spec.channels, size, size), (spec.num_weights,), (spec.edges, spec.columns))
        )
        s1 = s0 if spec.inputs == 2 else None
        nodes, *kept = mixed_cell_cuda.forward(s0, s1, weights, mix, spec.encode(), True, disturbance)
        needs = True, s1 is not None, True, True
        mixed_cell_cuda.backward(nodes, s0, s1, weights, mix, nodes, *kept, spec.encode(), *needs, disturbance)
        yield


def layer_launches() -> Iterator[None]:
    """What precedes the cells of the supernets, and as in networks with these cells' widths the layers of separable convolutions."""
    from pamkd.ops import relu_conv_norm_cuda

    for dtype, images, cell, size in cells():
        channels = cell.spec.channels
        gain = meta(channels, dtype=dtype)
        for c in {channels, *cell.in_channels}:
            depthwise = meta(c, 1, 3, 3, dtype=dtype) if c == channels else None
            x, pointwise = meta(images, c, size, size, dtype=dtype), meta(channels, c, 1, 1, dtype=dtype)
            y, *kept = relu_conv_norm_cuda.forward(x, depthwise, pointwise, gain, gain, 1, 1, 1e-5)
            relu_conv_norm_cuda.backward(y, x, depthwise, pointwise, gain, *kept, 1, 1, [1] * 5)
        yield


def cells() -> Iterator[tuple[torch.dtype, int, Cell, int]]:
    """Of the supernets that have GPU kernels: with dtypes, images of a batch and the size of the maps. TF32 changes float32 alone."""
    for dtype in (torch.float32,) if torch.backends.cuda.matmul.allow_tf32 else (torch.float32, torch.bfloat16, torch.float16):
        for supernet, images, size in supernets():
            size = size // 8 if supernet.stem == "imagenet" else size
            for cell in supernet.cells:
                if not any("nor_conv_3x3" in names for names in cell.spec.candidates):
                    yield dtype, images, cell, size
                size = size // 2 if cell.spec.reduction else size


def disturbed_launches() -> Iterator[None]:
    return cell_launches(Disturbance(1, skip_dropout=0.3, drop_path=0.2))


# Operations -> calls of their launchers that reach every configuration, in parts of which the first one has every kernel. (One
# configuration of each is the first one: that of kernels which draw is more of a test.)
LAUNCHES: dict[str, Callable[[], Iterator[None]]] = {
    "grs": grs_launches,
    "flat_update": update_launches,
    "disturbed_cell": disturbed_launches,
    "mixed_cell": cell_launches,
    "relu_conv_norm": layer_launches,
}
