"""A cell drawn as a layered graph: states as circles, operations as boxes, every edge following its source's colour."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from pamkd.report.charts import COLORS, WIDTH, figure, image, text
from pamkd.report.markup import Markup, el
from pamkd.spaces.genotype import Gene

NODES_PER_LEVEL = 2  # keeps four boxes and the passing edges within a phone's width
BOX, STATE, OUTER, LANE = 68, 46, 84, 8  # widths; OUTER: inputs and output
BOX_HEIGHT, STATE_HEIGHT, GAP = 36, 28, 26
SEPARATION = 12
STARTS, SWEEPS = 12, 10
NAMES = {
    "none": ("none", ""),
    "max_pool_3x3": ("max pool", "3×3"),
    "avg_pool_3x3": ("avg pool", "3×3"),
    "skip_connect": ("skip", ""),
    "sep_conv_3x3": ("sep conv", "3×3"),
    "sep_conv_5x5": ("sep conv", "5×5"),
    "dil_conv_3x3": ("dil conv", "3×3"),
    "dil_conv_5x5": ("dil conv", "5×5"),
}

Item = tuple[str, int, int]  # kind ("state", "op", "lane", "out"), number, rank
Edge = tuple[Item, Item, int]  # from, to, state that it carries


def operation_name(operation: str) -> str:
    return " ".join(NAMES.get(operation, (operation.replace("_", " "), ""))).strip()


def state_name(state: int) -> str:
    """c_{k-2} and c_{k-1} are the outputs of the two cells before; nodes are numbered from 0."""
    return ("c[k−2]", "c[k−1]")[state] if state < 2 else f"node {state - 2}"


def draw_cell(title: str, genes: Sequence[Gene], concat: Sequence[int]) -> Markup:
    """A figure of one cell; see `Genotype` for the arguments."""
    ranks, edges = _graph(genes, concat)
    order = _order(ranks, edges)
    place = _coordinates(order, edges)
    margin = 6
    shift = margin - min(place[item] - _width(item) / 2 for rank in order for item in rank)
    width = shift + margin + max(place[item] + _width(item) / 2 for rank in order for item in rank)
    if width < WIDTH:
        shift, width = shift + (WIDTH - width) / 2, WIDTH
    tops, y = [], 4.0
    heights = [max(_height(item) for item in rank) for rank in order]
    for height in heights:
        tops.append(y)
        y += height + GAP

    lines, shapes = [], []
    for a, b, state in edges:
        x0, y0 = place[a] + shift, tops[a[2]] + heights[a[2]]
        x1, y1 = place[b] + shift, tops[b[2]]
        bend = (y1 - y0) * 0.55
        d = f"M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
        if a[0] == "lane":
            d = f"M{x0:.1f} {tops[a[2]]:.1f}V{y0:.1f}" + d[d.index("C") :]
        lines.append(el("path", d=d, class_=f"wire c{state % COLORS}"))
    for rank in order:
        for item in rank:
            shapes += _shape(item, place[item] + shift, tops[item[2]], heights[item[2]], genes)
    said = [f"{state_name(i // 2 + 2)} takes {operation_name(op)} of {state_name(state)}" for i, (op, state) in enumerate(genes)]
    description = "; ".join(said) + ". The output concatenates " + ", ".join(map(state_name, concat)) + "."
    return figure(title, image(width, y - GAP + 4, title, description, *lines, *shapes))


def _width(item: Item) -> float:
    kind, index, _ = item
    if kind == "state":
        return OUTER if index < 2 else STATE
    return {"op": BOX, "lane": LANE, "out": OUTER}[kind]


def _height(item: Item) -> float:
    return {"op": BOX_HEIGHT, "lane": 0}.get(item[0], STATE_HEIGHT)


def _graph(genes: Sequence[Gene], concat: Sequence[int]) -> tuple[list[list[Item]], list[Edge]]:
    """Items of each rank and edges between neighbouring ranks.

    States have even ranks, the operations of a node the rank before it, the output the last. What a state sends further
    than one rank runs through lanes, one per rank, shared by all its readers.
    """
    levels = [0, 0]
    filled: defaultdict[int, int] = defaultdict(int)
    for node in range(len(genes) // 2):
        level = 1 + max(levels[state] for _, state in genes[2 * node : 2 * node + 2])
        while filled[level] == NODES_PER_LEVEL:
            level += 1
        filled[level] += 1
        levels.append(level)
    out: Item = ("out", 0, 2 * max(levels) + 1)
    readers: dict[int, list[Item]] = defaultdict(list)
    edges: list[Edge] = []
    for i, (_, state) in enumerate(genes):
        level = levels[i // 2 + 2]
        box: Item = ("op", i, 2 * level - 1)
        readers[state].append(box)
        edges.append((box, ("state", i // 2 + 2, 2 * level), state))
    for state in concat:
        readers[state].append(out)
    ranks: list[list[Item]] = [[] for _ in range(out[2] + 1)]
    for state, level in enumerate(levels):
        source: Item = ("state", state, 2 * level)
        ranks[2 * level].append(source)
        for rank in range(2 * level + 1, 1 + max((reader[2] for reader in readers[state]), default=0)):
            here = [reader for reader in readers[state] if reader[2] == rank]
            edges += [(source, reader, state) for reader in here]
            ranks[rank] += [reader for reader in here if reader != out]
            if any(reader[2] > rank for reader in readers[state]):
                lane: Item = ("lane", state, rank)
                edges.append((source, lane, state))
                ranks[rank].append(lane)
                source = lane
    ranks[out[2]].append(out)
    return ranks, edges


def _order(ranks: list[list[Item]], edges: list[Edge]) -> list[list[Item]]:
    """Left-to-right order within the ranks with few crossings: barycentre sweeps and swaps of neighbours from several starts."""
    above, below = _neighbours(edges)
    best, fewest = ranks, None
    for start in range(STARTS):
        order = [list(rank) for rank in ranks]
        if start:
            shuffle = random.Random(start)
            for rank in order:
                shuffle.shuffle(rank)
        for sweep in range(SWEEPS):
            down = sweep % 2 == 0
            for r in range(1, len(order)) if down else range(len(order) - 2, -1, -1):
                beside = order[r - 1] if down else order[r + 1]
                position = {item: i for i, item in enumerate(beside)}
                near = above if down else below

                def barycentre(
                    item: Item,
                    near: Mapping[Item, Sequence[Item]] = near,
                    position: dict[Item, int] = position,
                    own: list[Item] = order[r],
                ) -> float:
                    found = [position[other] for other in near[item]]
                    return sum(found) / len(found) if found else own.index(item) * len(position) / len(own)

                order[r] = sorted(order[r], key=barycentre)
        _swap_neighbours(order, above, below)
        count = sum(_crossings(order[r], order[r + 1], below) for r in range(len(order) - 1))
        if fewest is None or count < fewest:
            best, fewest = order, count
    return best


def _swap_neighbours(order: list[list[Item]], above: dict[Item, list[Item]], below: dict[Item, list[Item]]) -> None:
    def around(r: int) -> int:
        before = _crossings(order[r - 1], order[r], below) if r else 0
        return before + (_crossings(order[r], order[r + 1], below) if r + 1 < len(order) else 0)

    improved = True
    while improved:
        improved = False
        for r, rank in enumerate(order):
            for i in range(len(rank) - 1):
                count = around(r)
                rank[i], rank[i + 1] = rank[i + 1], rank[i]
                if around(r) < count:
                    improved = True
                else:
                    rank[i], rank[i + 1] = rank[i + 1], rank[i]


def _neighbours(edges: list[Edge]) -> tuple[dict[Item, list[Item]], dict[Item, list[Item]]]:
    above, below = defaultdict(list), defaultdict(list)
    for a, b, _ in edges:
        below[a].append(b)
        above[b].append(a)
    return above, below


def _crossings(upper: list[Item], lower: list[Item], below: dict[Item, list[Item]]) -> int:
    position = {item: i for i, item in enumerate(lower)}
    ends = [sorted(position[b] for b in below[a]) for a in upper]
    flat = [end for group in ends for end in group]
    return sum(flat[i] > flat[j] for i in range(len(flat)) for j in range(i + 1, len(flat)))


def _coordinates(order: list[list[Item]], edges: list[Edge]) -> dict[Item, float]:
    """Centres: each rank in turn as near to its neighbours' mean as the widths allow, lanes straight before all else."""
    place: dict[Item, float] = {}
    for rank in order:
        x = -sum(_width(item) + SEPARATION for item in rank) / 2
        for item in rank:
            place[item] = x + _width(item) / 2
            x += _width(item) + SEPARATION
    around: dict[Item, list[tuple[Item, float]]] = defaultdict(list)
    for a, b, _ in edges:
        weight = 6.0 if a[0] == b[0] == "lane" else 1.0
        around[a].append((b, weight))
        around[b].append((a, weight))
    for sweep in range(60):
        for rank in order if sweep % 2 == 0 else reversed(order):
            wanted, weights = [], []
            for item in rank:
                weight = sum(w for _, w in around[item])
                wanted.append(sum(place[other] * w for other, w in around[item]) / weight if weight else place[item])
                weights.append(weight or 0.1)
            offsets = [0.0]
            for left, right in itertools.pairwise(rank):
                offsets.append(offsets[-1] + (_width(left) + _width(right)) / 2 + SEPARATION)
            fitted = _isotonic([x - offset for x, offset in zip(wanted, offsets, strict=True)], weights)
            place |= {item: x + offset for item, x, offset in zip(rank, fitted, offsets, strict=True)}
    return place


def _isotonic(values: list[float], weights: list[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in weighted least squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, wa, na), (b, wb, nb) = pools[-2:]
            pools[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return [mean for mean, _, length in pools for _ in range(length)]


def _shape(item: Item, x: float, top: float, height: float, genes: Sequence[Gene]) -> list[Markup]:
    kind, index, _ = item
    middle = top + height / 2
    if kind == "state":
        width = _width(item)
        box = {"x": x - width / 2, "y": top, "width": width, "height": height, "rx": height / 2}
        return [el("rect", **box, class_=f"state c{index % COLORS}"), _state_label(x, middle, index)]
    if kind == "op":
        operation, state = genes[index]
        box = {"x": x - BOX / 2, "y": top, "width": BOX, "height": height, "rx": 6}
        first, second = NAMES.get(operation, (operation.replace("_", " "), ""))
        tip = el("title", f"{operation} from {state_name(state)} to {state_name(index // 2 + 2)}")
        squeeze = {"textLength": BOX - 8, "lengthAdjust": "spacingAndGlyphs"} if len(first) > 10 else {}
        words = [text(x, middle + (-2 if second else 4), first, text_anchor="middle", class_="name", **squeeze)]
        if second:
            words.append(text(x, middle + 14, second, text_anchor="middle", class_="name"))
        return [el("g", tip, el("rect", **box, class_=f"op c{state % COLORS}"), *words)]
    if kind == "out":
        box = {"x": x - OUTER / 2, "y": top, "width": OUTER, "height": height, "rx": 6}
        return [el("rect", **box, class_="out"), text(x, middle + 4, "c[k] concat", text_anchor="middle", class_="name")]
    return [el("path", d=f"M{x:.1f} {top:.1f}v{height:.1f}", class_=f"wire c{index % COLORS}")]


def _state_label(x: float, y: float, state: int) -> Markup:
    label = state_name(state) if state < 2 else str(state - 2)
    return text(x, y + 4, label, text_anchor="middle", class_="strong")
