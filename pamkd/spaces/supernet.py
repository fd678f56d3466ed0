"""Supernets of cells as pure functions of one flat weight vector and a table of architecture parameters."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.data.randomness import derived_seed, generator
from pamkd.distributed import WHOLE, Columns
from pamkd.ops.disturbed_cell import disturbed_cell
from pamkd.ops.mixed_cell import mixed_cell
from pamkd.ops.relu_conv_norm import relu_conv_norm
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
from pamkd.reference.mixed_cell import factorized_reduce
from pamkd.reference.mixed_cell import mixed_cell as reference_mixed_cell
from pamkd.reference.relu_conv_norm import relu_conv_norm as reference_relu_conv_norm
from pamkd.spaces.layout import Layout

if TYPE_CHECKING:
    from pamkd.spaces.architecture import Architecture

MIN_IMAGE_SIZE = 8
Candidates = tuple[tuple[str, ...], ...]  # the operations of each edge of a cell, in edge order


@dataclass(frozen=True)
class Moment:
    """Where in a search a step stands: schedules are functions of the epoch, draws of the seed, and batches may be split."""

    epoch: int = 0  # of the stage, counted from 0
    epochs: int = 1  # of the stage
    seed: int = 0  # of everything that is drawn for the step
    columns: Columns = WHOLE  # among which the batch is split: the network gets this column's images and gives outputs of all


class Output(NamedTuple):
    """What a network says of a batch."""

    logits: Tensor  # [n, classes]
    embedding: Tensor  # [n, d], the pooled feature before the classifier


class Cell(NamedTuple):
    """A cell of the network and what enters it."""

    spec: CellSpec
    reduce_s0: bool  # the previous cell was a reduction: s0 is twice as large as s1
    in_channels: tuple[int, ...]  # of the states that enter


class NextStage(NamedTuple):
    """What a learner goes on with in the next stage of a search."""

    supernet: Supernet
    alphas: Tensor | None  # fresh ones; None: copies of the old ones
    alphas_source: Tensor | None = None  # the flat index of the old parameter that each new one copies
    weights_source: Tensor | None = None  # [num_weights], the same for weights, -1 in gaps; None: weights begin anew


class Supernet(ABC):
    """Stem, `cells` mixed-op cells with reductions at a third and two thirds, pool, linear classifier (DARTS macro network).

    A subclass says which operations each edge may choose (`candidates`), how architecture parameters become mixture
    weights (`mixtures`) and how they become a genotype (`genotype`); a space with schedules, draws or stages overrides
    what is below those. The network itself holds no tensors: `forward(weights [num_weights], alphas, images)` is a
    function, so learners and perturbed copies are just other vectors. BatchNorm uses batch statistics everywhere; there
    are no running statistics that a pass could disturb.

    `stem` "cifar" is a 3x3 convolution, "imagenet" divides height and width by 4 and then by 8 in three stride-2
    convolutions. `drop_path` is the probability, in the last epoch, that an edge is dropped for an image
    (Zela et al. 2020); it grows linearly from 0.
    """

    stages: int = 1  # of equal numbers of epochs; `next_stage` leads from one to the next
    restarts: ClassVar[bool] = False  # each stage has its own learning rates, from the start again
    cell_types: ClassVar[tuple[str, ...]] = ("normal", "reduce")
    min_cells = 3
    stem_multiplier = 3
    partial = 1  # k of PC-DARTS: operations see the first channels // k channels
    pool_norm = True  # BatchNorm after pools
    affine_tail = False  # BatchNorm and relu before the pool

    def __init__(
        self,
        *,
        channels: int = 16,
        cells: int = 8,
        classes: int = 10,
        image_channels: int = 3,
        stem: Literal["cifar", "imagenet"] = "cifar",
        drop_path: float = 0.0,
    ) -> None:
        if channels < 2 or channels % 2:
            raise ValueError(f"channels is {channels}: a supernet needs an even number of at least 2 (FactorizedReduce halves it)")
        if not isinstance(self.partial, int) or self.partial < 1:
            raise ValueError(f"partial is {self.partial!r}: needed is a whole number of 1 (all channels) or more")
        if channels % self.partial:
            raise ValueError(f"channels is {channels}: partial channels need a multiple of {self.partial}")
        if cells < self.min_cells:
            why = " (reductions stand at cells // 3 and 2 * cells // 3)" if self.min_cells == 3 else ""
            raise ValueError(f"cells is {cells}: a supernet needs at least {self.min_cells}{why}")
        if classes < 2:
            raise ValueError(f"classes is {classes}: classification needs at least 2")
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem is {stem!r}: it is 'cifar' or 'imagenet'")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}: needed is 0 or more and below 1")
        self.channels, self.num_cells, self.classes, self.image_channels = channels, cells, classes, image_channels
        self.stem, self.drop_path = stem, drop_path
        self.moment = Moment()
        self.lay_out()
        self._eager = False
        self._mixtures: tuple[Tensor, ...] | None = None

    def lay_out(self) -> None:
        """Describe the cells and their weights, as the attributes say."""
        self.cells = list(self._cells())
        self.layout = Layout(self._shapes())

    @abstractmethod
    def candidates(self, reduction: bool) -> Candidates:
        """The operations of each edge of a normal or reduction cell; one entry per edge, in edge order."""

    def computed(self, reduction: bool) -> Candidates:
        """The operations that the cells compute, one for each column of `sample`: the candidates and any that help beside them."""
        return self.candidates(reduction)

    @abstractmethod
    def mixtures(self, alphas: Tensor) -> tuple[Tensor, ...]:
        """How much the architecture wants of each operation, `[edges, columns]` for each type of cell; nothing is drawn."""

    @abstractmethod
    def genotype(self, alphas: Tensor) -> Architecture:
        """The discrete architecture that these parameters stand for."""

    @abstractmethod
    def init_alphas(self, generator: torch.Generator) -> Tensor:
        """Fresh architecture parameters of one learner."""

    def sample(self, alphas: Tensor) -> tuple[Tensor, ...]:
        """The mixtures that the passes of this step compute with, `[edges, spec.columns]`: a function of alphas and `moment`."""
        return self.mixtures(alphas)

    def regulariser(self, alphas: Tensor) -> Tensor | None:
        """A scalar that joins the validation loss wherever architectures are trained."""
        return None

    def next_stage(self, alphas: Tensor, generator: torch.Generator) -> NextStage:
        """What follows when a stage but the last has ended, from the architecture that it found."""
        raise NotImplementedError(f"{type(self).__name__} has one stage")

    @property
    def structure(self) -> dict[str, Any]:
        """What later stages have made of the space, as JSON; `restructured` takes it."""
        return {}

    def restructured(self, structure: dict[str, Any]) -> Supernet:
        """This supernet with the structure of another stage."""
        return self

    @property
    def skip_dropout(self) -> float:
        """Probability, at this moment, that dropout zeroes a value of a stride-1 skip connection."""
        return 0.0

    @property
    def stochastic(self) -> bool:
        """Whether passes of some step of a search draw numbers."""
        return self.drop_path > 0 or any("noise" in names for reduction in (False, True) for names in self.candidates(reduction))

    @property
    def drop_path_rate(self) -> float:
        """Probability of drop-path at this moment."""
        return self.drop_path * self.moment.epoch / max(1, self.moment.epochs - 1)

    def at(self, moment: Moment) -> Supernet:
        """This supernet as it is in one step of a search."""
        twin = copy.copy(self)
        twin.moment = moment
        return twin

    def with_mixtures(self, mixtures: tuple[Tensor, ...]) -> Supernet:
        """This supernet with these mixtures in the place of what `sample` would make of any architecture."""
        twin = copy.copy(self)
        twin._mixtures = mixtures
        return twin

    def random(self, *names: str | int) -> torch.Generator:
        """A generator for one draw of this step: every pass of the step gets the same numbers."""
        return generator(self.moment.seed, *names)

    @property
    def depth(self) -> int:
        """Cells of the network."""
        return self.num_cells

    @property
    def num_weights(self) -> int:
        """Length of the flat weight vector, alignment gaps included (`layout.count` counts the weights alone)."""
        return self.layout.size

    @property
    def stem_width(self) -> int:
        """Channels that leave the stem."""
        return self.stem_multiplier * self.channels

    @property
    def stem_size(self) -> int:
        """So many leading weights are the stem's."""
        return next(entry.offset for entry in self.layout.entries if entry.name.startswith("cells."))

    @property
    def encoder_size(self) -> int:
        """So many leading weights are not the classifier's."""
        return next(entry.offset for entry in self.layout.entries if entry.name == "classifier.weight")

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
            elif value.dim() == 1 and name != "classifier.bias":  # of a BatchNorm
                value.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                bound = 1 / math.sqrt(self.embedding_size if name == "classifier.bias" else math.prod(value.shape[1:]))
                value.uniform_(-bound, bound, generator=generator)
        return flat

    def twice_differentiable(self) -> Supernet:
        """This supernet over the eager reference of its cells, whose backward pass can be differentiated again."""
        twin = copy.copy(self)
        twin._eager = True
        return twin

    @property
    def _composed(self) -> bool:
        """Whether plain PyTorch calls stand in for the fused operations, which have no synchronised BatchNorm and no second derivative."""
        return self._eager or self.moment.columns.synchronised

    @property
    def _mixed_cell(self) -> Callable[..., Tensor]:
        return self._composition if self._composed else mixed_cell

    @property
    def _disturbed_cell(self) -> Callable[..., Tensor]:
        return self._composition if self._composed else disturbed_cell

    @property
    def _composition(self) -> Callable[..., Tensor]:
        norm = self.moment.columns.batch_norm
        return functools.partial(reference_mixed_cell, layer=functools.partial(reference_relu_conv_norm, norm=norm), norm=norm)

    def forward(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Output:
        """weights [num_weights], images [n, image_channels, h, w] with h, w >= 8 -> logits [n, classes], embedding [n, d].

        With weights [m, num_weights] and alphas [m, ...] it computes the m networks of learners that stack (`stacks_with`) at once, each
        on all images, or on its own of [m, n, ...]: logits [m, n, classes], embedding [m, n, d].

        Where the moment's columns split a batch, the images are this column's and what is returned is of the whole batch.
        """

        def outputs(images: Tensor, weights: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
            views = self.layout.views(weights)  # once: its backward pass concatenates all gradients
            embedding = self._feature_map(views, alphas, images).mean((2, 3))
            return F.linear(embedding, views["classifier.weight"], views["classifier.bias"]), embedding

        return Output(*self._whole_batch(outputs, images, weights, alphas))

    def stacks_with(self, other: object) -> bool:
        """Whether one call of `forward` computes both networks: they are the same at this moment, and their passes draw nothing."""
        if not isinstance(other, Supernet) or type(self) is not type(other) or self.stochastic or self.moment.columns.synchronised:
            return False
        if self._mixtures is not None or other._mixtures is not None:
            return False
        one, two = ((network.cells, network._eager, dataclasses.replace(network.moment, seed=0)) for network in (self, other))
        return one == two

    def _whole_batch(self, part: Callable[..., tuple[Tensor, ...]], images: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """part(this column's images, *parameters) [n, ...] -> of all images, with the dimension of weight sets that parameters have."""
        columns, stacked = self.moment.columns, parameters[0].dim() == 2
        parameters = columns.enter(*parameters)
        if stacked:
            part = torch.vmap(part, (0 if images.dim() == 5 else None, *(0 for _ in parameters)), out_dims=1)
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        outputs = columns.gather(*part(images, *parameters))
        return tuple(output.transpose(0, 1) for output in outputs) if stacked else outputs

    def feature_map(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Tensor:
        """What is pooled to the embedding: [n, d, h', w']."""

        def maps(images: Tensor, weights: Tensor, alphas: Tensor) -> tuple[Tensor]:
            return (self._feature_map(self.layout.views(weights), alphas, images),)

        return self._whole_batch(maps, images, weights, alphas)[0]

    def _feature_map(self, views: dict[str, Tensor], alphas: Tensor, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != self.image_channels or min(images.shape[2:]) < MIN_IMAGE_SIZE:
            needed = f"[n, {self.image_channels}, h, w] with h and w at least {MIN_IMAGE_SIZE}"
            raise ValueError(f"images have shape {tuple(images.shape)}; this supernet needs {needed}")
        mixtures = self.sample(alphas) if self._mixtures is None else self._mixtures
        last = self._states(views, mixtures, images)
        if self.affine_tail:
            last = F.relu(self._affine_norm(last, views, "lastact.0"))
        return last

    def stem_features(self, weights: Tensor, images: Tensor) -> Tensor:
        """What the stem makes of the images, pooled: [n, stem_multiplier * channels], or of m networks as `forward`."""

        def pooled(images: Tensor, weights: Tensor) -> tuple[Tensor]:
            return (self._stem(self.layout.views(weights), images)[1].mean((2, 3)),)

        return self._whole_batch(pooled, images, weights)[0]

    def _states(self, views: dict[str, Tensor], mixtures: tuple[Tensor, ...], images: Tensor) -> Tensor:
        """The output of the last cell."""
        s0, s1 = self._stem(views, images)
        norm = self.moment.columns.batch_norm
        for i, cell in enumerate(self.cells):
            name = f"cells.{i}."
            if cell.reduce_s0:
                left = factorized_reduce(s0, views[name + "preprocess0.conv_1.weight"], views[name + "preprocess0.conv_2.weight"], norm)
            else:
                left = self._relu_conv_norm(s0, views[name + "preprocess0.op.1.weight"])
            right = self._relu_conv_norm(s1, views[name + "preprocess1.op.1.weight"])
            s0, s1 = s1, self._cell(i, left, right, views[name + "_ops"], mixtures[cell.spec.reduction])
        return s1

    def _relu_conv_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if self._composed:
            return self.moment.columns.batch_norm(F.conv2d(F.relu(x), weight))
        return relu_conv_norm(x, None, weight)[0]

    def _stem(self, views: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        if self.stem == "cifar":
            s0 = self._affine_norm(F.conv2d(images, views["stem.0.weight"], padding=1), views, "stem.1")
            return s0, s0
        x = self._affine_norm(F.conv2d(images, views["stem0.0.weight"], stride=2, padding=1), views, "stem0.1")
        s0 = self._affine_norm(F.conv2d(F.relu(x), views["stem0.3.weight"], stride=2, padding=1), views, "stem0.4")
        return s0, self._affine_norm(F.conv2d(F.relu(s0), views["stem1.1.weight"], stride=2, padding=1), views, "stem1.2")

    def draws(self, i: int, state: Tensor) -> Disturbance | None:
        """What is drawn inside cell i in this step, for input states like `state`; None where nothing is."""
        spec, dropout, drop_path = self.cells[i].spec, self.skip_dropout, self.drop_path_rate
        used = {name for edge, names in enumerate(spec.candidates) for name in names if name != "skip_connect" or spec.stride(edge) == 1}
        if not (drop_path or "noise" in used or (dropout and "skip_connect" in used)):
            return None
        return Disturbance(derived_seed(self.moment.seed, "cell", i), dropout, drop_path, self.moment.columns.first(len(state)))

    def _cell(self, i: int, left: Tensor, right: Tensor | None, weights: Tensor, mix: Tensor) -> Tensor:
        spec, disturbance = self.cells[i].spec, self.draws(i, left)
        mix = mix.to(left.dtype)
        if disturbance is None:
            return self._mixed_cell(left, right, weights, mix, spec)
        return self._disturbed_cell(left, right, weights, mix, spec, disturbance)

    def _affine_norm(self, x: Tensor, views: dict[str, Tensor], name: str) -> Tensor:
        """BatchNorm on batch statistics with the weight and bias of that name."""
        return self.moment.columns.batch_norm(x, views[f"{name}.weight"], views[f"{name}.bias"])

    def _cells(self) -> Iterator[Cell]:
        reductions = (self.depth // 3, 2 * self.depth // 3)
        c, reduce_s0 = self.channels, self.stem == "imagenet"
        c_s0 = c_s1 = self.stem_multiplier * self.channels
        for i in range(self.depth):
            reduction = i in reductions
            c *= 2 if reduction else 1
            spec = CellSpec(c, self.computed(reduction), reduction, partial=self.partial, pool_norm=self.pool_norm)
            yield Cell(spec, reduce_s0, (c_s0, c_s1))
            c_s0, c_s1, reduce_s0 = c_s1, spec.out_channels, reduction

    def stem_layers(self) -> Iterator[tuple[tuple[str, str], int, int]]:
        """Names of convolution and BatchNorm, input and output channels of every layer of the stem."""
        width = self.stem_multiplier * self.channels
        if self.stem == "cifar":
            yield ("stem.0", "stem.1"), self.image_channels, width
        else:
            yield ("stem0.0", "stem0.1"), self.image_channels, width // 2
            yield ("stem0.3", "stem0.4"), width // 2, width
            yield ("stem1.1", "stem1.2"), width, width

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for (convolution, norm), c_in, c_out in self.stem_layers():
            yield f"{convolution}.weight", (c_out, c_in, 3, 3)
            yield f"{norm}.weight", (c_out,)
            yield f"{norm}.bias", (c_out,)
        yield from self._cell_shapes()
        if self.affine_tail:
            yield "lastact.0.weight", (self.embedding_size,)
            yield "lastact.0.bias", (self.embedding_size,)
        yield "classifier.weight", (self.classes, self.embedding_size)
        yield "classifier.bias", (self.classes,)

    def _cell_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for i, (spec, reduce_s0, (c_s0, c_s1)) in enumerate(self.cells):
            if reduce_s0:
                yield f"cells.{i}.preprocess0.conv_1.weight", (spec.channels // 2, c_s0, 1, 1)
                yield f"cells.{i}.preprocess0.conv_2.weight", (spec.channels // 2, c_s0, 1, 1)
            else:
                yield f"cells.{i}.preprocess0.op.1.weight", (spec.channels, c_s0, 1, 1)
            yield f"cells.{i}.preprocess1.op.1.weight", (spec.channels, c_s1, 1, 1)
            yield f"cells.{i}._ops", (spec.num_weights,)
