"""The topology space of NAS-Bench-201 (Dong and Yang 2020): five operations on each of six edges of one cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.reference.cell_spec import CellSpec
from pamkd.spaces.supernet import Candidates, Cell, Supernet
from pamkd.spaces.topology import EDGES, NODES, OPERATIONS, Topology


class NasBench201(Supernet):
    """alphas [1, 6, 5]: the cell, edge, operation. `cells` is the number of cells in each of the three stages of the network.

    `partial` is k of partial channels (1: none).
    """

    cell_types = ("cell",)
    min_cells = 1
    stem_multiplier = 1
    pool_norm = False
    affine_tail = True

    def __init__(self, *, partial: int = 1, **options: Any) -> None:
        self.partial = partial
        super().__init__(**options)
        if self.stem != "cifar":
            raise ValueError(f"stem is {self.stem!r}: NAS-Bench-201 has the cifar stem only")

    def candidates(self, reduction: bool) -> Candidates:
        return (OPERATIONS,) * len(EDGES)

    def init_alphas(self, generator: torch.Generator) -> Tensor:
        return 1e-3 * torch.randn(1, len(EDGES), len(self.candidates(False)[0]), generator=generator)

    def mixtures(self, alphas: Tensor) -> tuple[Tensor, ...]:
        return tuple(alphas.softmax(-1))

    def sample(self, alphas: Tensor) -> tuple[Tensor, ...]:
        (mix,) = self.mixtures(alphas)
        return (mix if self.partial == 1 else torch.cat([mix, torch.ones_like(mix[:, :1])], 1),)

    def genotype(self, alphas: Tensor) -> Topology:
        """The strongest operation of every edge, `none` included."""
        (mix,) = self.mixtures(alphas.detach())
        return Topology(tuple(names[o] for names, o in zip(self.candidates(False), mix.argmax(1).tolist(), strict=True)))

    def _cells(self) -> Iterator[Cell]:
        for stage in range(3):
            c = self.channels << stage
            candidates = self.computed(False)
            spec = CellSpec(c, candidates, inputs=1, nodes=NODES, output="last", partial=self.partial, pool_norm=self.pool_norm)
            for _ in range(self.num_cells):
                yield Cell(spec, False, (c,))

    def _cell_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for stage in range(3):
            c = self.channels << stage
            if stage:
                name, c_in = f"blocks.{stage - 1}", c // 2
                for part, inputs in (("conv_a", c_in), ("conv_b", c)):
                    yield f"{name}.{part}.op.1.weight", (c, inputs, 3, 3)
                    yield f"{name}.{part}.op.2.weight", (c,)
                    yield f"{name}.{part}.op.2.bias", (c,)
                yield f"{name}.downsample.1.weight", (c, c_in, 1, 1)
            for i in range(stage * self.num_cells, (stage + 1) * self.num_cells):
                yield f"cells.{i}._ops", (self.cells[i].spec.num_weights,)

    def _states(self, views: dict[str, Tensor], mixtures: tuple[Tensor, ...], images: Tensor) -> Tensor:
        x, _ = self._stem(views, images)
        for i in range(len(self.cells)):
            stage, first = divmod(i, self.num_cells)
            if stage and not first:
                x = self._residual_block(x, views, f"blocks.{stage - 1}")
            x = self._cell(i, x, None, views[f"cells.{i}._ops"], mixtures[0])
        return x

    def _residual_block(self, x: Tensor, views: dict[str, Tensor], name: str) -> Tensor:
        y = x
        for part, stride in (("conv_a", 2), ("conv_b", 1)):
            y = F.conv2d(F.relu(y), views[f"{name}.{part}.op.1.weight"], stride=stride, padding=1)
            y = self._affine_norm(y, views, f"{name}.{part}.op.2")
        return y + F.conv2d(F.avg_pool2d(x, 2, ceil_mode=True), views[f"{name}.downsample.1.weight"])
