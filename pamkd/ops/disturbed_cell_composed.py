"""The disturbed cell where it has no kernel: fused cells of one node, and what is drawn between them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.ops.mixed_cell import mixed_cell
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
from pamkd.reference.mixed_cell import channel_shuffle


def composed(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec, disturbance: Disturbance) -> Tensor:
    states = [s0] if s1 is None else [s0, s1]
    parts = _parts(spec, bool(disturbance.skip_dropout), bool(disturbance.drop_path))
    of_weights = iter(weights.split([part.spec.num_weights for node in parts for part in node]))
    of_mix = iter(mix.split([len(part.edges) for node in parts for part in node]))
    for node in parts:
        terms = []
        for part in node:
            left, *others = (states[spec.source(edge)] for edge in part.edges)
            mixtures = next(of_mix)
            y = mixed_cell(left, others[0] if others else None, next(of_weights), mixtures, part.spec)
            for edge, mixture in zip(part.edges, mixtures, strict=True):
                y = _with_drawn(y, states[spec.source(edge)], edge, mixture, spec, disturbance)
            terms.append(y * disturbance.edge_mask(part.edges[0], y) if disturbance.drop_path else y)
        states.append(functools.reduce(torch.add, terms))
    y = states[-1] if spec.output == "last" else torch.cat(states[spec.inputs :], 1)
    return y.contiguous(memory_format=torch.channels_last)


class Part(NamedTuple):
    """Edges of one node that one call computes."""

    edges: tuple[int, ...]
    spec: CellSpec  # `none` in the place of what is added outside


@functools.lru_cache(maxsize=64)  # PR-DARTS chooses other operations in every step
def _parts(spec: CellSpec, dropout: bool, alone: bool) -> tuple[tuple[Part, ...], ...]:
    """For each node, its edges in pairs from states of one size, or each `alone`; `noise` and, with dropout, skips are left out."""
    columns = max(map(len, spec.candidates))

    def names(edge: int) -> tuple[str, ...]:
        inside = tuple("none" if _drawn(name, edge, spec, dropout) else name for name in spec.candidates[edge])
        return inside + ("none",) * (columns - len(inside))  # all parts have the mixture's columns

    def part(edges: tuple[int, ...]) -> Part:
        candidates = tuple(map(names, edges))
        reduction = spec.stride(edges[0]) == 2
        cell = dataclasses.replace(spec, candidates=candidates, reduction=reduction, inputs=len(edges), nodes=1, output="last")
        return Part(edges, cell)

    nodes, edge = [], 0
    for node in range(spec.nodes):
        ends = [edge, edge + spec.inputs, edge + spec.inputs + node]  # edges from the inputs, edges from nodes before
        size = 1 if alone else 2
        groups = (range(i, min(i + size, end)) for start, end in itertools.pairwise(ends) for i in range(start, end, size))
        nodes.append(tuple(part(tuple(group)) for group in groups))
        edge = ends[-1]
    return tuple(nodes)


def _drawn(name: str, edge: int, spec: CellSpec, dropout: bool) -> bool:
    return name == "noise" or (dropout and name == "skip_connect" and spec.stride(edge) == 1)


def _with_drawn(y: Tensor, state: Tensor, edge: int, mix: Tensor, spec: CellSpec, disturbance: Disturbance) -> Tensor:
    """y and the noise and masked skip connection of this edge."""
    stride = spec.stride(edge)
    head = state[:, : spec.op_channels, ::stride, ::stride]
    for column, name in enumerate(spec.candidates[edge]):
        if not _drawn(name, edge, spec, bool(disturbance.skip_dropout)):
            continue
        term = mix[column] * (disturbance.noise(edge, head) if name == "noise" else head * disturbance.skip_mask(edge, head))
        if spec.partial > 1:
            term = channel_shuffle(F.pad(term, (0, 0, 0, 0, 0, spec.channels - spec.op_channels)), spec.partial)
        y = y + term
    return y
