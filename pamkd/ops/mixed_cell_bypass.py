"""Partial channels: what bypasses the operations of an edge, and the shuffle that mixes it with what they give. Channels last."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance

POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)  # of the bypass where the stride is 2


def shuffled(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2)


def unshuffled(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(-1, (-1, groups)).transpose(-1, -2).flatten(-2)


class Bypass:
    """sum over the edges e that enter a node of mask_e * mix[e, last] * rest_e, rest_e the other channels of the edge's state."""

    def __init__(self, states: list[Tensor], mix: Tensor, spec: CellSpec, disturbance: Disturbance | None) -> None:
        """states: [L, n, h, w, c] each; mix: [L, edges * columns]."""
        self.states, self.spec, self.disturbance = states, spec, disturbance
        self.shares = mix.view(len(mix), spec.edges, spec.columns)[..., -1]
        self.of_mix = torch.empty_like(self.shares)

    def forward(self, node: int) -> Tensor:
        return functools.reduce(torch.add, [self._masked(self._share(edge) * self._rest(edge), edge) for edge in self._entering(node)])

    def backward(self, node: int, grad: Tensor, of_states: list[Tensor]) -> None:
        """Adds to the states' gradients and writes the edges' column of `of_mix`."""
        c = self.spec.op_channels
        for edge in self._entering(node):
            source, of_edge = self.spec.source(edge), self._masked(grad, edge)
            self.of_mix[:, edge] = (of_edge * self._rest(edge)).flatten(1).sum(1)
            of_rest = self._share(edge) * of_edge
            if self.spec.stride(edge) == 2:
                rest = channels_first(self.states[source][..., c:])
                _, places = F.max_pool2d(rest, *POOL[:4], ceil_mode=False, return_indices=True)
                found = torch.ops.aten.max_pool2d_with_indices_backward(channels_first(of_rest), rest, *POOL, places)
                of_rest = found.movedim(1, -1).unflatten(0, grad.shape[:2])
            of_states[source][..., c:] += of_rest

    def _entering(self, node: int) -> list[int]:
        return [edge for edge in range(self.spec.edges) if self.spec.node(edge) == node]

    def _masked(self, maps: Tensor, edge: int) -> Tensor:
        """With drop-path: maps [L, n, ...] times the factors of the edge for the images."""
        if self.disturbance is None or not self.disturbance.drop_path:
            return maps
        return maps * self.disturbance.edge_mask(edge, maps[0])

    def _share(self, edge: int) -> Tensor:
        return self.shares[:, edge, None, None, None, None]

    def _rest(self, edge: int) -> Tensor:
        rest = self.states[self.spec.source(edge)][..., self.spec.op_channels :]
        if self.spec.stride(edge) == 1:
            return rest
        return F.max_pool2d(channels_first(rest), 2, 2).movedim(1, -1).unflatten(0, rest.shape[:2])


def channels_first(x: Tensor) -> Tensor:
    """[L, n, h, w, c] -> [L * n, c, h, w]."""
    return x.flatten(0, 1).movedim(-1, 1)
