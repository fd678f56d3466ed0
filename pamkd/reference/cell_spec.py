"""The description of a mixed-op cell that every implementation of `mixed_cell` reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

# The position of a name is its code in `CellSpec.encode`: append, never reorder. `noise` is drawn (space S4).
OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "noise",
)


@dataclass(frozen=True)
class WeightSlice:
    """One weight tensor inside a cell's flat slice."""

    edge: int
    op: int  # column of the edge's candidate list
    part: str  # "dw1", "pw1", "dw2", "pw2", "conv", "conv_1" or "conv_2"
    offset: int  # in elements, from the start of the cell's slice
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class CellSpec:
    """A cell: `inputs` input states, then `nodes` nodes, each fed by every earlier state.

    Edges are ordered by node, then by source state: edge 0 is (node 0 <- state 0). `candidates[e]` names the operations
    of edge e; the mixture's column i weighs `candidates[e][i]`. In a reduction cell the edges that leave an input
    state have stride 2.  With `partial = k > 1` the operations see the first `channels // k` channels, the others
    bypass them (through a 2x2 max pool where the stride is 2) with the weight in the mixture's last column, and the channels
    are shuffled in k groups (PC-DARTS). `output` is "concat" (all nodes along the channels) or "last" (the last node,
    NAS-Bench-201). `pool_norm` says whether pools are followed by BatchNorm.
    """

    channels: int
    candidates: tuple[tuple[str, ...], ...]
    reduction: bool = False
    inputs: int = 2
    nodes: int = 4
    partial: int = 1
    output: str = "concat"
    pool_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("channels", "inputs", "nodes", "partial"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"CellSpec: {name} is {getattr(self, name)!r}; needed is an integer")
        lists = isinstance(self.candidates, tuple) and all(isinstance(ops, tuple) for ops in self.candidates)
        if not lists or not all(isinstance(name, str) for ops in self.candidates for name in ops):
            raise TypeError(f"CellSpec: candidates are {self.candidates!r}; needed is a tuple of one tuple of names for each edge")
        if self.inputs not in (1, 2) or self.nodes < 1:
            raise ValueError(f"CellSpec: inputs {self.inputs} and nodes {self.nodes}; a cell has 1 or 2 inputs and 1 or more nodes")
        edges = self.nodes * self.inputs + self.nodes * (self.nodes - 1) // 2
        if len(self.candidates) != edges:
            raise ValueError(f"CellSpec: {len(self.candidates)} candidate lists; {self.nodes} nodes have {edges} edges, one list each")
        unknown = sorted({op for ops in self.candidates for op in ops} - set(OPERATIONS))
        if unknown:
            raise ValueError(f"CellSpec: unknown operations {unknown}; known are {list(OPERATIONS)}")
        if self.partial < 1 or self.channels < 1 or self.channels % self.partial:
            raise ValueError(f"CellSpec: channels {self.channels} must be positive and divisible by partial {self.partial}")
        halved = self.reduction and any("skip_connect" in ops and self.stride(edge) == 2 for edge, ops in enumerate(self.candidates))
        if halved and self.op_channels < 2:
            seen = f"operations see {self.op_channels} of {self.channels} channels"
            raise ValueError(f"CellSpec: {seen}; skip_connect of stride 2 makes two halves of them")
        if self.output not in ("concat", "last"):
            raise ValueError(f"CellSpec: output {self.output!r}; it is 'concat' or 'last'")

    @property
    def edges(self) -> int:
        return len(self.candidates)

    @property
    def columns(self) -> int:
        """Columns of the mixture: the longest candidate list, and with partial channels one more for what bypasses."""
        return max(map(len, self.candidates)) + (self.partial > 1)

    @property
    def op_channels(self) -> int:
        """Channels that the operations see."""
        return self.channels // self.partial

    @property
    def out_channels(self) -> int:
        return self.channels * (self.nodes if self.output == "concat" else 1)

    def source(self, edge: int) -> int:
        """The state that the edge leaves."""
        return self._ends[edge][0]

    def node(self, edge: int) -> int:
        """The node that the edge enters, counted from 0 (its state is `inputs + node`)."""
        return self._ends[edge][1]

    def stride(self, edge: int) -> int:
        return 2 if self.reduction and self.source(edge) < self.inputs else 1

    @cached_property
    def _ends(self) -> tuple[tuple[int, int], ...]:
        return tuple((state, node) for node in range(self.nodes) for state in range(self.inputs + node))

    @cached_property
    def weights(self) -> tuple[WeightSlice, ...]:
        """The weight tensors of the cell in the order of its flat slice: edge, candidate, then layer order.

        Separable convolution: dw1 [c, 1, k, k], pw1 [c, c, 1, 1], dw2, pw2; dilated: dw1, pw1; full convolution:
        conv [c, c, k, k]; stride-2 skip (FactorizedReduce): conv_1 [c // 2, c, 1, 1], conv_2 [c - c // 2, c, 1, 1].
        """
        slices, offset = [], 0
        for edge, ops in enumerate(self.candidates):
            for op, name in enumerate(ops):
                for part, shape in _weight_shapes(name, self.op_channels, self.stride(edge)):
                    slices.append(WeightSlice(edge, op, part, offset, shape))
                    offset += math.prod(shape)
        return tuple(slices)

    @cached_property
    def num_weights(self) -> int:
        """Elements of the cell's flat slice."""
        return sum(piece.size for piece in self.weights)

    def encode(self) -> list[int]:
        """The cell as integers, for the operation's schema (decoded in `csrc/common/cell_spec.h`)."""
        last, pool_norm = int(self.output == "last"), int(self.pool_norm)
        head = [self.channels, int(self.reduction), self.inputs, self.nodes, self.partial, last, self.columns, pool_norm]
        return head + [code for ops in self.candidates for code in (len(ops), *map(OPERATIONS.index, ops))]

    @classmethod
    def decode(cls, code: list[int]) -> CellSpec:
        """The inverse of `encode`."""
        return _decoded(tuple(code))


@lru_cache(maxsize=256)  # every call of the operation on a GPU decodes, and asks for what a cell computes of itself
def _decoded(code: tuple[int, ...]) -> CellSpec:
    channels, reduction, inputs, nodes, partial, last, _, pool_norm = code[:8]
    candidates, rest = [], code[8:]
    while rest:
        count = rest[0]
        candidates.append(tuple(OPERATIONS[i] for i in rest[1 : count + 1]))
        rest = rest[count + 1 :]
    return CellSpec(channels, tuple(candidates), bool(reduction), inputs, nodes, partial, "last" if last else "concat", bool(pool_norm))


def _weight_shapes(name: str, c: int, stride: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if name.startswith(("sep_conv", "dil_conv")):
        k = int(name[-1])
        for layer in ("1", "2") if name.startswith("sep_conv") else ("1",):
            yield f"dw{layer}", (c, 1, k, k)
            yield f"pw{layer}", (c, c, 1, 1)
    elif name.startswith("nor_conv"):
        k = int(name[-1])
        yield "conv", (c, c, k, k)
    elif name == "skip_connect" and stride == 2:
        yield "conv_1", (c // 2, c, 1, 1)
        yield "conv_2", (c - c // 2, c, 1, 1)
