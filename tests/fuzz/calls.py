"""Small correct calls of every operation, drawn from a seed; tests/fuzz/changes.py spoils them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pamkd import ops, reference
from pamkd.ops.stencils import stencils as stencils
from pamkd.reference import flat_update, mixed_cell, relu_conv_norm
from pamkd.reference import stencils as reference_stencils
from pamkd.reference.cell_spec import OPERATIONS as CANDIDATES
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance


class Operation(NamedTuple):
    function: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: Callable[[random.Random], list]


def draw(name: str, seed: int) -> list:
    """The arguments of a correct call."""
    torch.manual_seed(seed)
    return OPERATIONS[name].arguments(random.Random(seed))


def _dtype(r: random.Random) -> torch.dtype:
    return r.choice([torch.float32, torch.float32, torch.float64])


def _groups(r: random.Random, n: int, count: int, size: int) -> Tensor:
    return torch.tensor([r.sample(range(n), size) for _ in range(count)])


def _embeddings(r: random.Random) -> Tensor:
    return torch.randn(r.randint(1, 3), r.choice([4, 5, 9, 17]), r.choice([1, 2, 7, 16, 33]), dtype=_dtype(r))


def _grouped(r: random.Random) -> list:
    e = _embeddings(r)
    return [e, _groups(r, e.shape[1], r.choice([1, 3, 40]), r.randint(2, 4))]


def _hinge(r: random.Random) -> list:
    pairs, dtype = r.choice([1, 5, 70]), _dtype(r)
    return [torch.randn(r.randint(1, 3), pairs, 2, dtype=dtype), torch.randn(r.randint(1, 3), pairs, 2, dtype=dtype), r.choice([0.01, 0.5])]


def _loss(r: random.Random) -> list:
    n, dtype = r.choice([4, 6, 17]), _dtype(r)
    teacher, student = (torch.randn(*r.choice([(), (1,), (3,)]), n, r.choice([1, 5, 16]), dtype=dtype) for _ in "ts")
    count, size = r.choice([1, 3, 30]), r.randint(2, 4)
    return [teacher, student, _groups(r, n, count, size), _groups(r, n, count, size), 0.01, r.choice(["sum", "mean"])]


def _vectors(r: random.Random, count: int) -> list:
    shape, dtype = r.choice([(1,), (37,), (2, 8), (3, 1)]), _dtype(r)
    return [torch.randn(shape, dtype=dtype) for _ in range(count)]


def _stencils(r: random.Random) -> list:
    models, dtype, branches = r.choice([(), (2,)]), _dtype(r), r.randint(0, 3)
    c, x = r.choice([1, 3, 8]), (r.randint(1, 2), r.randint(1, 6), r.randint(1, 6))
    depthwise = [torch.randn(*models, c, 1, k, k, dtype=dtype) for k in r.choices([3, 5], k=branches)]
    images = torch.randn(*models, x[0], c, *x[1:], dtype=dtype)
    return [images, depthwise, r.choices([1, 2], k=branches), r.choice([1, 2]), branches == 0 or r.random() < 0.5]


def _layer(r: random.Random) -> list:
    dtype, c, out, k = _dtype(r), r.choice([1, 3, 8, 9]), r.choice([1, 4, 11]), r.choice([0, 3, 5])
    x = torch.randn(r.randint(1, 3), c, r.randint(3, 6), r.randint(3, 6), dtype=dtype)
    depthwise, pointwise = torch.randn(c, 1, k, k, dtype=dtype) if k else None, torch.randn(out, c, 1, 1, dtype=dtype)
    weight, bias = (torch.randn(out, dtype=dtype) if r.random() < 0.5 else None for _ in "wb")
    return [x, depthwise, pointwise, weight, bias, r.choice([1, 2]) if k else 1, r.choice([1, 2]) if k else 1, 1e-5]


def _cell(r: random.Random, noise: bool = False) -> list:
    inputs, nodes, partial, dtype = r.choice([1, 2]), r.choice([1, 1, 2]), r.choice([1, 1, 2]), _dtype(r)
    known = CANDIDATES if noise else CANDIDATES[:-1]
    edges = sum(inputs + node for node in range(nodes))
    candidates = tuple(tuple(r.sample(known, r.randint(0, 3))) for _ in range(edges))
    reduction = r.random() < 0.4
    spec = CellSpec(
        r.choice([4, 6] if reduction else [2, 4, 6]),
        candidates,
        reduction,
        inputs,
        nodes,
        partial,
        r.choice(["concat", "last"]),
        r.random() < 0.8,
    )
    shape = (r.randint(1, 3), spec.channels, 2 * r.randint(2, 3), 2 * r.randint(2, 3))
    s0, s1 = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype) if inputs == 2 else None
    return [s0, s1, torch.randn(spec.num_weights, dtype=dtype) * 0.3, torch.rand(edges, spec.columns, dtype=dtype), spec]


def _cells(r: random.Random) -> list:
    """Now and then of two weight sets."""
    *tensors, spec = _cell(r)
    if r.random() < 0.7:
        return [*tensors, spec]
    return [*(None if x is None else torch.stack([x, 0.5 * x.flip(0)]) for x in tensors), spec]


def _composed(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec) -> Tensor:
    """The reference for each weight set."""
    if s0.dim() == 4:
        return mixed_cell.mixed_cell(s0, s1, weights, mix, spec)
    sets = range(len(s0))
    return torch.stack([mixed_cell.mixed_cell(s0[m], None if s1 is None else s1[m], weights[m], mix[m], spec) for m in sets])


def _disturbed(r: random.Random) -> list:
    *tensors, spec = _cell(r, noise=True)
    probabilities = [r.choice([0.0, 0.3, 0.9]) for _ in range(2)]
    return [*tensors, spec, Disturbance(r.getrandbits(64), *probabilities, r.choice([0, 5]))]


def _of_keywords(function: Callable, *names: str) -> Callable:
    """The last arguments of the function by name."""

    def call(*arguments):
        first = len(arguments) - len(names)
        return function(*arguments[:first], **dict(zip(names, arguments[first:], strict=True)))

    return call


OPERATIONS = {
    "pairwise_cosine": Operation(ops.pairwise_cosine, reference.pairwise_cosine, lambda r: [_embeddings(r)]),
    "group_min_similarity": Operation(ops.group_min_similarity, reference.group_min_similarity, _grouped),
    "grs_hinge": Operation(ops.grs_hinge, reference.grs_hinge, _hinge),
    "grs_loss": Operation(ops.grs_loss, reference.grs_loss, _loss),
    "sgd_update": Operation(ops.sgd_update, flat_update.sgd_update, lambda r: [*_vectors(r, 3), 0.1, 0.9, 3e-4, r.choice([0.0, 1.0])]),
    "perturb": Operation(ops.perturb, flat_update.perturb, lambda r: [*_vectors(r, 2), 0.01]),
    "stencils": Operation(_of_keywords(stencils, "stride", "pools"), reference_stencils.stencils, _stencils),
    "relu_conv_norm": Operation(_of_keywords(ops.relu_conv_norm, "stride", "dilation", "eps"), relu_conv_norm.relu_conv_norm, _layer),
    "mixed_cell": Operation(ops.mixed_cell, _composed, _cells),
    "disturbed_cell": Operation(ops.disturbed_cell, mixed_cell.mixed_cell, _disturbed),
}
