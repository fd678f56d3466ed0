"""A mixed-op cell as a table of branches, which the Triton kernels read (`kernels/branches.py`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pamkd.reference.cell_spec import CellSpec

NODES, HALVES = 2, 3  # values of `state`; 0 and 1 are the cell's inputs
WEIGHTED, MAXIMUM, AVERAGE = 0, 1, 2  # values of `kind`


@dataclass
class Branch:
    """A row of the table; its fields are the table's columns, in their order."""

    state: int
    index: int
    kind: int = WEIGHTED
    size: int = 1  # 0: noise, which reads nothing of its state
    dilation: int = 1
    shift: int = 0
    relu: int = 1
    stride: int = 1
    norm: int = 1
    taps: int = -1
    pointwise: int = -1
    first_row: int = 0
    end_row: int = 0
    mix: int = -1
    map: int = -1
    target: int = 0

    @property
    def convolution(self) -> bool:
        return self.pointwise >= 0


@dataclass
class Leaving:
    """What leaves a state: its first halves, and in backward the maps of the gradients that come back to it."""

    halves: tuple[int, int]  # numbers of the first halves
    map: int  # the first one: of first halves, of the other convolutions, then of the max and the average pools if there are any
    convolutions: list[Branch]  # in the order of the maps
    bounds: tuple[int, int, int, int]  # in `Plan.shared`: max pools, average pools, identities
    stride: int

    @property
    def pools(self) -> bool:
        return self.bounds[0] < self.bounds[2]


@dataclass
class Entering:
    """The branches that enter a node: their number in the table, how many, and how many first ones are convolutions."""

    first: int
    count: int
    convolutions: int


@dataclass
class Plan:
    """The table: first halves of separable convolutions by the state that they read, then all other branches by node."""

    branches: list[Branch] = field(default_factory=list)
    sources: list[Leaving] = field(default_factory=list)
    nodes: list[Entering] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)  # numbers of the branches without weights, by state and kind
    seconds: list[Branch] = field(default_factory=list)  # of separable convolutions, by the number of their first half
    maps: int = 0  # of gradients; the last ones are of the second halves

    def owners(self, entries: int) -> list[list[int]]:
        """The one or two branches that each entry of the mixture weighs, -1 for none."""
        of = [[i for i, branch in enumerate(self.branches) if branch.mix == entry] for entry in range(entries)]
        return [[*numbers, -1, -1][:2] for numbers in of]


@functools.lru_cache(maxsize=256)
def plan_of(spec: CellSpec) -> Plan:
    """The branches of a cell without full convolutions larger than 1x1."""
    at = {(piece.edge, piece.op, piece.part): piece.offset for piece in spec.weights}
    c, plan = spec.op_channels, Plan()
    entering: list[list[Branch]] = [[] for _ in range(spec.nodes)]
    sources = [[edge for edge in range(spec.edges) if spec.source(edge) == source] for source in range(spec.inputs + spec.nodes - 1)]
    own: list[list[Branch]] = []  # of each state, those that read it
    for source, edges in enumerate(sources):
        place = {"state": source, "index": 0} if source < spec.inputs else {"state": NODES, "index": (source - spec.inputs) * spec.channels}
        halves, others = [], []
        for edge in edges:
            for op, name in enumerate(spec.candidates[edge]):
                stride = spec.stride(edge)
                common = {**place, "stride": stride, "mix": edge * spec.columns + op, "target": spec.node(edge) * c}
                rows = {"first_row": 0, "end_row": c}
                if name.startswith(("sep_conv", "dil_conv")):
                    taps = {"size": int(name[-1]), "dilation": 1 + name.startswith("dil")}
                    places = [
                        {"taps": at[edge, op, f"dw{i}"], "pointwise": at[edge, op, f"pw{i}"]} for i in (1, 2) if (edge, op, f"dw{i}") in at
                    ]
                    branch = Branch(**common | taps | places[0] | rows)
                    if name.startswith("sep"):
                        second = common | taps | places[1] | rows | {"state": HALVES, "index": len(plan.seconds), "stride": 1}
                        branch.mix = -1
                        halves.append(branch)
                        plan.seconds.append(Branch(**second))
                        entering[spec.node(edge)].append(plan.seconds[-1])
                    else:
                        others.append(branch)
                elif name == "nor_conv_1x1":
                    others.append(Branch(**common | rows, pointwise=at[edge, op, "conv"]))
                elif name == "skip_connect" and stride == 2:  # FactorizedReduce: two branches, each with half of the rows
                    for shift, first, end in ((0, 0, c // 2), (1, c // 2, c)):
                        part = f"conv_{shift + 1}"
                        others.append(Branch(**common, pointwise=at[edge, op, part], shift=shift, first_row=first, end_row=end))
                elif name == "skip_connect":
                    others.append(Branch(**common, relu=0, norm=0))
                elif name == "noise":
                    others.append(Branch(**common, size=0, relu=0, norm=0))
                elif name.endswith("pool_3x3"):
                    kind = MAXIMUM if name.startswith("max") else AVERAGE
                    others.append(Branch(**common, kind=kind, size=3, relu=0, norm=int(spec.pool_norm)))
        own.append(others)
        for branch in others:
            entering[branch.target // c].append(branch)
        plan.branches += halves
        convolutions = halves + [branch for branch in others if branch.convolution]
        for number, branch in enumerate(convolutions):
            branch.map = plan.maps + number
        pools = any(branch.kind != WEIGHTED for branch in others)
        plan.sources.append(
            Leaving((len(plan.seconds) - len(halves), len(plan.seconds)), plan.maps, convolutions, (0, 0, 0, 0), spec.stride(edges[0]))
        )
        plan.maps += len(convolutions) + 2 * pools
    for branches in entering:
        ordered = sorted(branches, key=lambda branch: not branch.convolution)
        plan.nodes.append(Entering(len(plan.branches), len(ordered), sum(branch.convolution for branch in ordered)))
        plan.branches += ordered
    numbers = {id(branch): number for number, branch in enumerate(plan.branches)}
    for leaving, branches in zip(plan.sources, own, strict=True):
        bounds = [len(plan.shared)]
        for kind in (MAXIMUM, AVERAGE, WEIGHTED):
            plan.shared += [numbers[id(branch)] for branch in branches if branch.kind == kind and branch.size and not branch.convolution]
            bounds.append(len(plan.shared))
        leaving.bounds = (bounds[0], bounds[1], bounds[2], bounds[3])
    for branch in plan.seconds:
        branch.map = plan.maps + branch.index
    plan.maps += len(plan.seconds)
    return plan


@functools.lru_cache(maxsize=256)
def tables_of(spec: CellSpec, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """On the device: the table [branches, columns], the numbers of branches without weights, the owners of the mixture's entries."""
    plan = plan_of(spec)
    rows = [list(vars(branch).values()) for branch in plan.branches]
    owners = plan.owners(spec.edges * spec.columns)
    table, shared, of_mix = (torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (rows, plan.shared, owners))
    return table, shared, of_mix
