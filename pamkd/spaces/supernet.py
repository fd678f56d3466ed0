"""Supernets of cells as pure functions of one flat weight vector and a table of architecture parameters."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.ops import mixed_cell
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.mixed_cell import BN_EPS, batch_norm, factorized_reduce
from pamkd.reference.mixed_cell import mixed_cell as reference_mixed_cell
from pamkd.spaces.genotype import Genotype
from pamkd.spaces.layout import Layout

MIN_IMAGE_SIZE = 8


class Output(NamedTuple):
    logits: Tensor  # [n, classes]
    embedding: Tensor  # [n, d], the pooled feature before the classifier


class Cell(NamedTuple):
    spec: CellSpec
    reduce_s0: bool  # the previous cell was a reduction: s0 is twice as large as s1
    in_channels: tuple[int, int]  # of s0 and s1


class Supernet(ABC):
    """Stem, `cells` mixed-op cells with reductions at a third and two thirds, pool, linear classifier (DARTS macro network).

    A subclass says which operations each edge may choose (`candidates`), how architecture parameters become mixture
    weights (`mixtures`) and how they become a genotype (`genotype`). The network itself holds no tensors:
    `forward(weights [num_weights], alphas, images)` is a function, so learners and perturbed copies are just other
    vectors. BatchNorm uses batch statistics everywhere; there are no running statistics that a pass could disturb.
    """

    stem_multiplier = 3

    def __init__(self, *, channels: int = 16, cells: int = 8, classes: int = 10, image_channels: int = 3) -> None:
        if channels < 2 or channels % 2:
            raise ValueError(f"channels is {channels}: a supernet needs an even number of at least 2 (FactorizedReduce halves it)")
        if cells < 3:
            raise ValueError(f"cells is {cells}: a supernet needs at least 3 (reductions stand at cells // 3 and 2 * cells // 3)")
        if classes < 2:
            raise ValueError(f"classes is {classes}: classification needs at least 2")
        self.channels, self.num_cells, self.classes, self.image_channels = channels, cells, classes, image_channels
        self.cells = list(self._cells())
        self.layout = Layout(self._shapes())
        self._cell_function = mixed_cell

    @abstractmethod
    def candidates(self, reduction: bool) -> tuple[tuple[str, ...], ...]:
        """The operations of each edge of a normal or reduction cell; one entry per edge, in edge order."""

    @abstractmethod
    def mixtures(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        """Mixture weights `[edges, columns]` of the normal and the reduction cells."""

    @abstractmethod
    def genotype(self, alphas: Tensor) -> Genotype:
        """The discrete architecture that these parameters stand for."""

    @abstractmethod
    def init_alphas(self, generator: torch.Generator) -> Tensor:
        """Fresh architecture parameters of one learner."""

    @property
    def num_weights(self) -> int:
        """Length of the flat weight vector, alignment gaps included (`layout.count` counts the weights alone)."""
        return self.layout.size

    @property
    def embedding_size(self) -> int:
        return self.cells[-1].spec.out_channels

    def init_weights(self, generator: torch.Generator) -> Tensor:
        """Fresh weights `[num_weights]` by PyTorch's defaults: U(-1, 1) / sqrt(fan_in), BatchNorm weight 1 and bias 0."""
        flat = torch.zeros(self.layout.size)
        views = self.layout.views(flat)
        for name, value in views.items():
            if name.endswith("._ops"):
                spec = self.cells[int(name.split(".")[1])].spec
                for piece in spec.weights:
                    bound = 1 / math.sqrt(math.prod(piece.shape[1:]))
                    value[piece.offset : piece.offset + piece.size].uniform_(-bound, bound, generator=generator)
            elif name.startswith("stem.1."):
                value.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                bound = 1 / math.sqrt(self.embedding_size if name == "classifier.bias" else math.prod(value.shape[1:]))
                value.uniform_(-bound, bound, generator=generator)
        return flat

    def twice_differentiable(self) -> Supernet:
        """This supernet over the eager reference of its cells, whose backward pass can be differentiated again."""
        twin = copy.copy(self)
        twin._cell_function = reference_mixed_cell
        return twin

    def forward(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Output:
        """weights [num_weights], images [n, image_channels, h, w] with h, w >= 8 -> logits [n, classes], embedding [n, d]."""
        if images.dim() != 4 or images.shape[1] != self.image_channels or min(images.shape[2:]) < MIN_IMAGE_SIZE:
            needed = f"[n, {self.image_channels}, h, w] with h and w at least {MIN_IMAGE_SIZE}"
            raise ValueError(f"images have shape {tuple(images.shape)}; this supernet needs {needed}")
        views = self.layout.views(weights)
        mixtures = self.mixtures(alphas)
        images = images.contiguous(memory_format=torch.channels_last)
        stem = F.conv2d(images, views["stem.0.weight"], padding=1)
        s0 = s1 = F.batch_norm(stem, None, None, views["stem.1.weight"], views["stem.1.bias"], training=True, eps=BN_EPS)
        for i, cell in enumerate(self.cells):
            name = f"cells.{i}."
            if cell.reduce_s0:
                left = factorized_reduce(s0, views[name + "preprocess0.conv_1.weight"], views[name + "preprocess0.conv_2.weight"])
            else:
                left = _relu_conv_bn(s0, views[name + "preprocess0.op.1.weight"])
            right = _relu_conv_bn(s1, views[name + "preprocess1.op.1.weight"])
            mix = mixtures[cell.spec.reduction]
            s0, s1 = s1, self._cell_function(left, right, views[name + "_ops"], mix, cell.spec)
        embedding = s1.mean((2, 3))
        return Output(F.linear(embedding, views["classifier.weight"], views["classifier.bias"]), embedding)

    def _cells(self):
        reductions = (self.num_cells // 3, 2 * self.num_cells // 3)
        c, reduce_s0 = self.channels, False
        c_s0 = c_s1 = self.stem_multiplier * self.channels
        for i in range(self.num_cells):
            reduction = i in reductions
            c *= 2 if reduction else 1
            spec = CellSpec(c, self.candidates(reduction), reduction)
            yield Cell(spec, reduce_s0, (c_s0, c_s1))
            c_s0, c_s1, reduce_s0 = c_s1, spec.out_channels, reduction

    def _shapes(self):
        stem = self.stem_multiplier * self.channels
        yield "stem.0.weight", (stem, self.image_channels, 3, 3)
        yield "stem.1.weight", (stem,)
        yield "stem.1.bias", (stem,)
        for i, (spec, reduce_s0, (c_s0, c_s1)) in enumerate(self.cells):
            if reduce_s0:
                yield f"cells.{i}.preprocess0.conv_1.weight", (spec.channels // 2, c_s0, 1, 1)
                yield f"cells.{i}.preprocess0.conv_2.weight", (spec.channels // 2, c_s0, 1, 1)
            else:
                yield f"cells.{i}.preprocess0.op.1.weight", (spec.channels, c_s0, 1, 1)
            yield f"cells.{i}.preprocess1.op.1.weight", (spec.channels, c_s1, 1, 1)
            yield f"cells.{i}._ops", (spec.num_weights,)
        yield "classifier.weight", (self.classes, self.embedding_size)
        yield "classifier.bias", (self.classes,)


def _relu_conv_bn(x: Tensor, weight: Tensor) -> Tensor:
    return batch_norm(F.conv2d(F.relu(x), weight))
