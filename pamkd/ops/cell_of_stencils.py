"""The mixed-op cell as stencils and matrix products: how `mixed_cell` runs on a GPU.

States are visited in order. One call of `stencils` reads a state for all edges that leave it, a second one (its models are
the branches) continues the separable convolutions, and `pointwise_norm` follows each. What an edge adds to its node is a
row of one product of mixture weights and maps.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.ops.stencils import stencils
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.mixed_cell import BN_EPS, channel_shuffle, operation

# Branches in this order: those of one kind are neighbours in the result of `stencils`.
CONVOLUTIONS = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
POOLS = ("max_pool_3x3", "avg_pool_3x3")


def mixed_cell(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec) -> Tensor:
    """`pamkd.ops.mixed_cell`, whose checks the arguments have passed."""
    of = {}
    for piece, values in zip(spec.weights, weights.split([piece.size for piece in spec.weights]), strict=True):
        of[piece.edge, piece.op, piece.part] = values.view(piece.shape)
    mixture = F.pad(mix.reshape(-1), (1, 0))
    states = [s0] if s1 is None else [s0, s1]
    nodes: list[Tensor | None] = [None] * spec.nodes
    bypass: list[Tensor | None] = [None] * spec.nodes
    for source in range(spec.inputs + spec.nodes - 1):
        edges = [edge for edge in range(spec.edges) if spec.source(edge) == source]
        x, rest = states[source].split([spec.op_channels, spec.channels - spec.op_channels], 1)
        stride = spec.stride(edges[0])
        for edge, y in zip(edges, _leaving(x, edges, stride, of, mixture, spec).unbind(), strict=True):
            nodes[spec.node(edge)] = _plus(nodes[spec.node(edge)], y)
            if spec.partial > 1:
                past = rest if stride == 1 else F.max_pool2d(rest, 2, 2)
                bypass[spec.node(edge)] = _plus(bypass[spec.node(edge)], past)
        node = source + 1 - spec.inputs
        if node >= 0:  # all of its edges are in
            states.append(nodes[node] if spec.partial == 1 else channel_shuffle(torch.cat([nodes[node], bypass[node]], 1), spec.partial))
    return states[-1] if spec.output == "last" else torch.cat(states[spec.inputs :], 1)


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


def _leaving(x: Tensor, edges: list[int], stride: int, of: dict, mixture: Tensor, spec: CellSpec) -> Tensor:
    """What a state x [n, c, h, w] sends along each edge: [edges, n, c, h', w']. mixture: 0, and then `mix` row by row."""
    places = {name: [] for name in (*CONVOLUTIONS, *POOLS, "skip_connect", "others")}
    for row, edge in enumerate(edges):
        for column, name in enumerate(spec.candidates[edge]):
            if name != "none":
                kind = name if name in places and not (name == "skip_connect" and stride == 2) else "others"
                places[kind].append((row, edge, column))
    n, c, h, w = x.shape
    maps = (n, (h + stride - 1) // stride, (w + stride - 1) // stride, c)
    total = None

    def add(values: Tensor, shares: list[tuple[int, int, int, int]]) -> None:
        """Adds mix[edge, column] * values[term] to the row of the edge, for all shares (row, edge, column, term)."""
        nonlocal total
        numbers = [0] * (len(edges) * len(values))
        for row, edge, column, term in shares:
            numbers[row * len(values) + term] = 1 + edge * spec.columns + column
        table = mixture.index_select(0, _index(tuple(numbers), mixture.device)).view(len(edges), len(values))
        rows = values.reshape(len(values), -1)
        total = table @ rows if total is None else torch.addmm(total, table, rows)

    convolutions = [(name, *place) for name in CONVOLUTIONS for place in places[name]]
    pools = bool(places["max_pool_3x3"] or places["avg_pool_3x3"])
    if convolutions or pools:
        first = [of[edge, column, "dw1"] for _, _, edge, column in convolutions]
        y = stencils(x, first, [1 + name.startswith("dil") for name, *_ in convolutions], stride=stride, pools=pools).movedim(-3, -1)
        *depthwise, pooled = y.split([*(len(places[name]) for name in CONVOLUTIONS), 2 * pools])
        for name, d in zip(CONVOLUTIONS, depthwise, strict=True):
            if not places[name]:
                continue
            weights = {
                part: torch.stack([of[edge, column, part] for _, edge, column in places[name]])
                for part in (("pw1", "dw2", "pw2") if name.startswith("sep") else ("pw1",))
            }
            z = pointwise_norm(d, weights["pw1"])
            if name.startswith("sep"):
                d = stencils(z.movedim(-1, -3), [weights["dw2"]], [1], pools=False).squeeze(0).movedim(-3, -1)
                z = pointwise_norm(d, weights["pw2"])
            add(z, [(*place, term) for term, place in enumerate(places[name])])
        if pools:
            add(_norm(pooled), [(*place, term) for term, name in enumerate(POOLS) for place in places[name]])
    if places["skip_connect"]:
        add(x.movedim(1, -1)[None], [(*place, 0) for place in places["skip_connect"]])
    for row, edge, column in places["others"]:
        layers = [values for (e, i, _), values in of.items() if (e, i) == (edge, column)]
        value = operation(spec.candidates[edge][column], x, stride, layers).movedim(1, -1)
        add(value[None], [(row, edge, column, 0)])
    return (x.new_zeros(len(edges), *maps) if total is None else total.view(len(edges), *maps)).movedim(-1, -3)


@functools.lru_cache(maxsize=4096)
def _index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Copied to a device once: a copy within a step would wait for it, and could not be captured in a CUDA graph."""
    return torch.tensor(numbers, device=device)


def pointwise_norm(d: Tensor, pointwise: Tensor) -> Tensor:
    """BatchNorm of the pointwise convolution of every branch: [b, n, h, w, c], [b, c, c, 1, 1] -> [b, n, h, w, c]."""
    return _norm(torch.bmm(d.flatten(1, 3), pointwise.flatten(2).mT).view(d.shape))


def _norm(z: Tensor) -> Tensor:
    """Affine-free BatchNorm of every map of z [b, n, h, w, c] on its own statistics; PyTorch takes these in float32 at least."""
    maps = [F.batch_norm(rows, None, None, training=True, eps=BN_EPS) for rows in z.flatten(1, 3).unbind()]
    return torch.stack(maps).view(z.shape)
