"""NAS-Bench-201's cells (Dong and Yang 2020): their strings, and the network that one is trained in by itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pamkd.spaces.evaluation_network import EvaluationOutput, ReluConvNorm
from pamkd.spaces.supernet import MIN_IMAGE_SIZE

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 3  # behind the input
EDGES = tuple((node, state) for node in range(1, NODES + 1) for state in range(node))  # 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2


class Topology(NamedTuple):
    """One operation for each of the six edges of a cell, in the order of `EDGES`. Node 0 is the input, node 3 the output."""

    operations: tuple[str, ...]

    def __str__(self) -> str:
        """The cell's string, as `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|`."""
        nodes = [[f"{op}~{state}" for op, (to, state) in zip(self.operations, EDGES, strict=True) if to == node] for node in (1, 2, 3)]
        return "+".join(f"|{'|'.join(edges)}|" for edges in nodes)

    @classmethod
    def parse(cls, text: str) -> Topology:
        """The inverse of `str`. Raises ValueError when the text is no cell."""
        pattern = r"\+".join(r"\|" + r"\|".join(rf"(\w+)~{state}" for state in range(node)) + r"\|" for node in (1, 2, 3))
        found = re.fullmatch(pattern, text.strip())
        if not found or not set(found.groups()) <= set(OPERATIONS):
            example = str(cls(("nor_conv_3x3",) * 6))
            raise ValueError(f"no cell of NAS-Bench-201: {text!r}; needed is a string like {example} of {', '.join(OPERATIONS)}")
        return cls(found.groups())

    def to_json(self) -> dict[str, Any]:
        return {"cell": str(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Topology:
        return cls.parse(str(data["cell"]))

    @property
    def skips(self) -> int:
        return self.operations.count("skip_connect")

    @property
    def skip_share(self) -> float:
        return self.skips / len(self.operations)

    def describe(self) -> str:
        return f"cell: {self}"


def every_topology() -> Iterator[Topology]:
    """All 15,625 cells."""
    return map(Topology, itertools.product(OPERATIONS, repeat=len(EDGES)))


class TopologyNetwork(nn.Module):
    """Stem, three times `cells` cells with residual blocks of stride 2 between, BatchNorm, relu, pool, linear classifier."""

    def __init__(
        self, topology: Topology, *, channels: int = 16, cells: int = 5, classes: int = 10, image_channels: int = 3, **refused: Any
    ) -> None:
        super().__init__()
        for name, value in refused.items():
            if value not in (False, None, 0, "cifar"):
                raise ValueError(f"{name} is {value!r}: a NAS-Bench-201 network has no auxiliary head and the cifar stem only")
        if channels < 1 or cells < 1 or classes < 2:
            raise ValueError(f"channels is {channels}, cells {cells}, classes {classes}: needed are 1, 1 and 2 or more")
        self.genotype, self.image_channels, self.classes = topology, image_channels, classes
        self.options = {"channels": channels, "cells": cells, "classes": classes, "image_channels": image_channels}
        self.stem = nn.Sequential(nn.Conv2d(image_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.cells = nn.ModuleList()
        for stage in range(3):
            width = channels << stage
            if stage:
                self.cells.append(ResidualBlock(width // 2, width))
            self.cells.extend(TopologyCell(topology, width) for _ in range(cells))
        self.lastact = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, classes)

    @property
    def num_parameters(self) -> int:
        return sum(value.numel() for value in self.parameters())

    def forward(self, images: Tensor, drop_path: float = 0.0, generator: torch.Generator | None = None) -> EvaluationOutput:
        """images [n, image_channels, h, w] with h, w >= 8. There is no drop-path and nothing to draw."""
        if images.dim() != 4 or images.shape[1] != self.image_channels or min(images.shape[2:]) < MIN_IMAGE_SIZE:
            needed = f"[n, {self.image_channels}, h, w] with h and w at least {MIN_IMAGE_SIZE}"
            raise ValueError(f"images have shape {tuple(images.shape)}; this network needs {needed}")
        if drop_path:
            raise ValueError(f"drop_path is {drop_path}: a NAS-Bench-201 network has none; set it to 0")
        x = self.stem(images.contiguous(memory_format=torch.channels_last)).contiguous(memory_format=torch.channels_last)
        for cell in self.cells:
            x = cell(x)
        return EvaluationOutput(self.classifier(self.lastact(x).mean((2, 3))), None)


class TopologyCell(nn.Module):
    """Node j = sum over the states before it of the edge's operation; the last node leaves the cell."""

    def __init__(self, topology: Topology, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {f"{node}<-{state}": _operation(op, channels) for op, (node, state) in zip(topology.operations, EDGES, strict=True)}
        )

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for node in range(1, NODES + 1):
            states.append(sum(self.edges[f"{node}<-{state}"](states[state]) for state in range(node)))
        return states[-1]


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class ResidualBlock(nn.Module):
    """Two [relu, 3x3 convolution, BatchNorm], the first of stride 2, plus a 2x2 average pool and a pointwise convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_a = ReluConvNorm(c_in, c_out, 3, 2)
        self.conv_b = ReluConvNorm(c_out, c_out, 3)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


def _operation(name: str, channels: int) -> nn.Module:
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return ReluConvNorm(channels, channels, int(name[-1]))
