"""Discrete paths through a supernet of DARTS cells, as architecture parameters whose mixtures are one-hot."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from pamkd.spaces.supernet import Candidates, Supernet

CHOSEN = 1e4  # softmax of CHOSEN against -CHOSEN is exactly 1 and 0
INPUTS, KEPT = 2, 2  # states that enter a cell; edges that a path keeps for each node


def require_paths(network: Supernet, alphas: Tensor) -> None:
    """Raises ValueError unless the space's mixtures of a path are one-hot and edges can be switched off."""
    good = alphas.dim() == 3 and len(alphas) == 2 and all("none" in edge for cell in _names(network) for edge in cell)
    if good:
        path = draw_path(network, alphas.detach(), torch.Generator().manual_seed(0))
        good = all(bool(((mix == 0) | (mix == 1)).all()) for mix in network.mixtures(path))
    if not good:
        raise ValueError(
            "method cream draws single paths and needs a space of softmax mixtures with the operation none on every edge: take darts"
        )


def draw_path(network: Supernet, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """Two input edges for each node, evenly; an operation other than none on each by softmax(alphas [2, edges, operations])."""
    path = torch.full_like(alphas, -CHOSEN)
    for cell, names in enumerate(_names(network)):
        for edges in _nodes(len(names)):
            kept = {edges[i] for i in torch.randperm(len(edges), generator=generator)[:KEPT].tolist()}
            for edge in edges:
                none = names[edge].index("none")
                shares = alphas[cell, edge].softmax(0).cpu()
                shares[none] = 0.0
                operation = int(torch.multinomial(shares, 1, generator=generator)) if edge in kept else none
                path[cell, edge, operation] = CHOSEN
    return path


def path_cost(network: Supernet, path: Tensor) -> int:
    """Weights of the convolutions that a path keeps, in all cells."""
    names, chosen = _names(network), path.argmax(2).tolist()
    return sum(
        _cost(names[cell.spec.reduction][edge][operation], cell.spec.channels, cell.spec.reduction)
        for cell in network.cells
        for edge, operation in enumerate(chosen[cell.spec.reduction])
    )


def _cost(name: str, c: int, reduction: bool) -> int:
    match = re.fullmatch(r"(sep|dil)_conv_(\d)x\d", name)
    if match:
        return (2 if match[1] == "sep" else 1) * (int(match[2]) ** 2 * c + c * c)
    return c * c if name == "skip_connect" and reduction else 0


def _names(network: Supernet) -> list[Candidates]:
    return [network.candidates(reduction) for reduction in (False, True)]


def _nodes(edges: int) -> Iterator[list[int]]:
    """The edges that enter each node: 2, 3, 4, ..."""
    start, width = 0, INPUTS
    while start < edges:
        yield list(range(start, start + width))
        start, width = start + width, width + 1
