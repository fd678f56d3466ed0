"""Single paths through a supernet: one operation on each edge that is kept, as mixtures of zeros and ones."""

from __future__ import annotations

import torch
from torch import Tensor

from pamkd.spaces.supernet import Cell, Supernet

KEPT = 2  # edges that enter each node of a cell with two inputs


def draw_path(network: Supernet, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """[types of cell, edges, operations] of 0 and 1; each operation is drawn by the architecture's own mixtures.

    Two edges are kept for each node, evenly drawn, with an operation other than none; cells with one input (NAS-Bench-201) keep all
    edges, `none` among the operations, as their genotypes do.
    """
    mixtures = network.mixtures(alphas)
    path = torch.stack([torch.zeros_like(mix) for mix in mixtures])
    for kind, mix in enumerate(mixtures):
        spec, names = _cell_of(network, kind).spec, network.candidates(bool(kind))
        for node in range(spec.nodes):
            edges = [edge for edge in range(spec.edges) if spec.node(edge) == node]
            if spec.inputs == 2:
                kept = {edges[i] for i in torch.randperm(len(edges), generator=generator)[:KEPT].tolist()}
                edges = [edge for edge in edges if edge in kept]
            for edge in edges:
                shares = mix[edge].double().cpu()
                if spec.inputs == 2 and "none" in names[edge]:
                    shares[names[edge].index("none")] = 0.0
                path[kind, edge, int(torch.multinomial(shares, 1, generator=generator))] = 1.0
    return path


def along(network: Supernet, path: Tensor) -> Supernet:
    """The network of this path alone. What bypasses the operations of a kept edge (partial channels) has the weight 1."""
    tables = []
    for kind, mix in enumerate(path):
        spec = _cell_of(network, kind).spec
        rest = mix.new_zeros(len(mix), spec.columns - mix.shape[1])
        if spec.partial > 1:
            rest[:, -1] = mix.sum(1)
        tables.append(torch.cat([mix, rest], 1))
    return network.with_mixtures(tuple(tables))


def path_cost(network: Supernet, path: Tensor) -> int:
    """Weights of the convolutions that a path keeps, in all cells."""
    kept, cost = path.tolist(), 0
    for cell in network.cells:
        names, chosen = network.candidates(cell.spec.reduction), kept[cell.spec.reduction]
        own = (piece for piece in cell.spec.weights if piece.op < len(names[piece.edge]))  # not those of operations that help beside them
        cost += sum(piece.size for piece in own if chosen[piece.edge][piece.op])
    return cost


def _cell_of(network: Supernet, kind: int) -> Cell:
    return next(cell for cell in network.cells if cell.spec.reduction == bool(kind))
