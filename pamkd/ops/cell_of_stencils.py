"""The mixed-op cell as stencils and matrix products: how `mixed_cell` runs on a GPU.

States are visited in order. One call of `stencils` reads a state for all edges that leave it, a second one (its models are
the branches) continues the separable convolutions, and `pointwise_norm` follows each. The mixture weight of a convolution is
the weight of its BatchNorm; what has no weights of its own, pools and identity, is shared by the edges of a state.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.ops.stencils import stencils
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.mixed_cell import BN_EPS, channel_shuffle, operation

# Branches in this order: those of one kind are neighbours in the result of `stencils`.
CONVOLUTIONS = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
SHARED = ("max_pool_3x3", "avg_pool_3x3", "skip_connect")


def mixed_cell(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec) -> Tensor:
    """`pamkd.ops.mixed_cell`, whose checks the arguments have passed."""
    of = {}
    for piece, values in zip(spec.weights, weights.split([piece.size for piece in spec.weights]), strict=True):
        of[piece.edge, piece.op, piece.part] = values.view(piece.shape)
    # Unbound, they get one gradient together: indexing would send back a table for every entry.
    shares = mix.reshape(-1).unbind()
    states = [s0] if s1 is None else [s0, s1]
    nodes: list[Tensor | None] = [None] * spec.nodes
    bypass: list[Tensor | None] = [None] * spec.nodes
    for source in range(spec.inputs + spec.nodes - 1):
        edges = [edge for edge in range(spec.edges) if spec.source(edge) == source]
        x, rest = states[source].split([spec.op_channels, spec.channels - spec.op_channels], 1)
        stride = spec.stride(edges[0])
        for edge, terms in zip(edges, _leaving(x, edges, stride, of, shares, spec), strict=True):
            for y in terms:
                nodes[spec.node(edge)] = _plus(nodes[spec.node(edge)], y)
            if spec.partial > 1:
                past = shares[(edge + 1) * spec.columns - 1] * (rest if stride == 1 else F.max_pool2d(rest, 2, 2))
                bypass[spec.node(edge)] = _plus(bypass[spec.node(edge)], past)
        node = source + 1 - spec.inputs
        if node >= 0:  # all of its edges are in
            state = nodes[node].movedim(-1, 1)
            states.append(state if spec.partial == 1 else channel_shuffle(torch.cat([state, bypass[node]], 1), spec.partial))
    return states[-1] if spec.output == "last" else torch.cat(states[spec.inputs :], 1)


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


def _leaving(x: Tensor, edges: list[int], stride: int, of: dict, shares: tuple[Tensor, ...], spec: CellSpec) -> list[list[Tensor]]:
    """What a state x [n, c, h, w] sends along each edge: for each, at least one term [n, h', w', c]. shares: the mixture's entries."""
    places = {name: [] for name in (*CONVOLUTIONS, *SHARED, "others")}  # kind -> (row of `edges`, column of the mixture)
    for row, edge in enumerate(edges):
        for column, name in enumerate(spec.candidates[edge]):
            own_weights = name not in places or (name == "skip_connect" and stride == 2)
            if name != "none":
                places["others" if own_weights else name].append((row, column))
    terms: list[list[Tensor]] = [[] for _ in edges]
    shared = {name: None for name in SHARED if places[name]}

    def entry(row: int, column: int) -> int:
        return edges[row] * spec.columns + column

    def stacked(name: str, part: str) -> Tensor:
        return torch.stack([of[edges[row], column, part] for row, column in places[name]])

    first = [(name, of[edges[row], column, "dw1"]) for name in CONVOLUTIONS for row, column in places[name]]
    pools = any("pool" in name for name in shared)
    if first or pools:
        dilations = [1 + name.startswith("dil") for name, _ in first]
        maps = stencils(x, [weight for _, weight in first], dilations, stride=stride, pools=pools).movedim(-3, -1)
        *depthwise, pooled = maps.split([*(len(places[name]) for name in CONVOLUTIONS), 2 * pools])
        for name, d in zip(CONVOLUTIONS, depthwise, strict=True):
            if not places[name]:
                continue
            pointwise = stacked(name, "pw1")
            if name.startswith("sep"):
                q = torch.stack(pointwise_norm(d, pointwise, [None] * len(d)))
                d = stencils(q.movedim(-1, -3), [stacked(name, "dw2")], [1], pools=False).squeeze(0).movedim(-3, -1)
                pointwise = stacked(name, "pw2")
            weights = [shares[entry(*place)].repeat(spec.op_channels) for place in places[name]]
            for (row, _), y in zip(places[name], pointwise_norm(d, pointwise, weights), strict=True):
                terms[row].append(y)
        for name, y in zip(SHARED, pooled.unbind(), strict=False):
            if name in shared:
                shared[name] = _norm(y, None) if spec.pool_norm else y
    if "skip_connect" in shared:
        shared["skip_connect"] = x.movedim(1, -1)
    if shared:
        entries: dict[tuple[int, str], Tensor] = {}
        for name in shared:
            for row, column in places[name]:
                entries[row, name] = _plus(entries.get((row, name)), shares[entry(row, column)])
        cells = [entries[place] if place in entries else x.new_zeros(()) for place in itertools.product(range(len(edges)), shared)]
        table = torch.stack(cells).view(len(edges), -1)
        values = torch.stack(list(shared.values()))
        for row, y in enumerate((table @ values.flatten(1)).view(len(edges), *values.shape[1:]).unbind()):
            terms[row].append(y)
    for row, column in places["others"]:
        layers = [values for (edge, i, _), values in of.items() if (edge, i) == (edges[row], column)]
        terms[row].append(shares[entry(row, column)] * operation(spec.candidates[edges[row]][column], x, stride, layers).movedim(1, -1))
    return [of_edge or [operation("none", x, stride, []).movedim(1, -1)] for of_edge in terms]


def pointwise_norm(d: Tensor, pointwise: Tensor, weights: list[Tensor | None]) -> list[Tensor]:
    """weight * BatchNorm(pointwise convolution) of every branch: [b, n, h, w, c], [b, c, c, 1, 1] -> b maps [n, h, w, c]."""
    z = torch.bmm(d.flatten(1, 3), pointwise.flatten(2).mT).view(d.shape)
    return [_norm(rows, weight) for rows, weight in zip(z.unbind(), weights, strict=True)]


def _norm(z: Tensor, weight: Tensor | None) -> Tensor:
    """BatchNorm of z [n, h, w, c] with a weight [c] (dense: PyTorch reads it as such) or none; statistics in float32 at least."""
    return F.batch_norm(z.flatten(0, 2), None, None, weight, training=True, eps=BN_EPS).view(z.shape)
