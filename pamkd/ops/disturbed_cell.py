"""The mixed-op cell with noise, dropout or drop-path inside: composed of fused cells of one node."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.ops._checks import check_cell, check_tensors
from pamkd.ops.mixed_cell import mixed_cell
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.mixed_cell import Disturbance, channel_shuffle


def disturbed_cell(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec, disturbance: Disturbance) -> Tensor:
    """Node i = sum over its edges e of mask_e * sum_o mix[e, o] * candidate_o(state), skip connections masked, noise given.

    `pamkd.ops.mixed_cell` takes the same tensors and is faster where nothing is drawn inside the cell.

    Args:
        s0, s1, weights, mix, spec: as `pamkd.ops.mixed_cell`; candidates may include `noise`.
        disturbance: what was drawn, every tensor of the states' dtype; channels_last is the fast format.

    Returns:
        [n, spec.out_channels, h', w'] in channels_last.

    Raises:
        TypeError: the tensors are not dense ones of one floating-point dtype on one device, or no cell or disturbance is given.
        ValueError: a shape does not fit `spec`, noise is missing for an edge that takes it, or one value per channel.

    Source: Zela et al., Understanding and Robustifying DARTS (ICLR 2020): noise and drop-path; Chen et al., Progressive
        DARTS (ICCV 2019): dropout after skip connections.
    """
    check_cell("disturbed_cell", s0, s1, weights, mix, spec)
    _check(disturbance, s0, spec)
    states = [s0] if s1 is None else [s0, s1]
    drawn = frozenset(disturbance.skip_masks)
    parts = _parts(spec, drawn, disturbance.edge_masks is not None)
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
            terms.append(y if disturbance.edge_masks is None else y * disturbance.edge_masks[part.edges[0]])
        states.append(functools.reduce(torch.add, terms))
    y = states[-1] if spec.output == "last" else torch.cat(states[spec.inputs :], 1)
    return y.contiguous(memory_format=torch.channels_last)


class Part(NamedTuple):
    """Edges of one node that one call computes."""

    edges: tuple[int, ...]
    spec: CellSpec  # `none` in the place of what is added outside


@functools.lru_cache(maxsize=64)  # PR-DARTS chooses other operations in every step
def _parts(spec: CellSpec, skips: frozenset[int], alone: bool) -> tuple[tuple[Part, ...], ...]:
    """For each node, its edges in pairs from states of one size, or each `alone`; `noise` and the skips of these edges are left out."""
    columns = max(map(len, spec.candidates))

    def names(edge: int) -> tuple[str, ...]:
        drawn = ("noise", "skip_connect") if edge in skips else ("noise",)
        inside = tuple("none" if name in drawn else name for name in spec.candidates[edge])
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


def _with_drawn(y: Tensor, state: Tensor, edge: int, mix: Tensor, spec: CellSpec, disturbance: Disturbance) -> Tensor:
    """y and the noise and masked skip connection of this edge."""
    for column, name in enumerate(spec.candidates[edge]):
        if name == "noise":
            term = mix[column] * disturbance.noise[edge]
        elif name == "skip_connect" and edge in disturbance.skip_masks:
            term = mix[column] * (state[:, : spec.op_channels] * disturbance.skip_masks[edge])
        else:
            continue
        if spec.partial > 1:
            term = channel_shuffle(F.pad(term, (0, 0, 0, 0, 0, spec.channels - spec.op_channels)), spec.partial)
        y = y + term
    return y


def _check(disturbance: Disturbance, s0: Tensor, spec: CellSpec) -> None:
    op = "disturbed_cell"
    if not isinstance(disturbance, Disturbance):
        raise TypeError(f"{op}: disturbance is a {type(disturbance).__name__}; needed is a Disturbance")
    drawn = {"noise": disturbance.noise, "skip mask": disturbance.skip_masks}
    for name, of in drawn.items():
        if not isinstance(of, Mapping):
            raise TypeError(f"{op}: {name} is a {type(of).__name__}; needed is a mapping from edges to tensors")
    n, _, h, w = s0.shape
    stride = 2 if spec.reduction else 1  # of every edge that has one, and behind the others their states are as small
    value = n, spec.op_channels, -(-h // stride), -(-w // stride)
    expected: list[tuple[str, Tensor, tuple[int, ...]]]
    expected = [(f"{kind} of edge {edge}", values, value) for kind, of in drawn.items() for edge, values in of.items()]
    if disturbance.edge_masks is not None:
        expected.append(("edge_masks", disturbance.edge_masks, (spec.edges, n, 1, 1, 1)))
    for name, values, shape in expected:
        check_tensors(op, s0=s0, **{name: values})
        if tuple(values.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(values.shape)}; needed is {list(shape)}")
    if unknown := {*disturbance.noise, *disturbance.skip_masks} - set(range(spec.edges)):
        raise ValueError(f"{op}: values are given for edge {unknown.pop()!r}; the cell has edges 0 to {spec.edges - 1}")
    for edge, names in enumerate(spec.candidates):
        if "noise" in names and edge not in disturbance.noise:
            raise ValueError(f"{op}: edge {edge} has the candidate `noise`, but disturbance.noise has no values for it")
