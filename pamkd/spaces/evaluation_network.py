"""The network that a genotype stands for, trained from scratch after a search (DARTS evaluation network, Liu et al. 2019)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamkd.distributed import WHOLE, Columns
from pamkd.distributed.columns import normalised
from pamkd.ops.relu_conv_norm import relu_conv_norm
from pamkd.spaces.genotype import INPUTS, Gene, Genotype
from pamkd.spaces.supernet import MIN_IMAGE_SIZE

if TYPE_CHECKING:
    from pamkd.spaces.architecture import Network

Stem = Literal["cifar", "imagenet"]
AUXILIARY = "auxiliary_head"  # its parameters are not counted: they are used in training only


class EvaluationOutput(NamedTuple):
    """What a network that is trained by itself says of a batch."""

    logits: Tensor  # [n, classes]
    auxiliary: Tensor | None  # [n, classes] in training with an auxiliary head


class EvaluationNetwork(nn.Module):
    """Stem, `cells` cells of the genotype with reductions at a third and two thirds of them, global pool, linear classifier.

    `stem` "cifar" is a 3x3 convolution to 3 `channels`; "imagenet" divides height and width by 4 and then by 8 in three
    stride-2 convolutions. `auxiliary` adds the auxiliary classifier on the second reduction cell, used in training only;
    `auxiliary_norm` says whether its last convolution has a BatchNorm (default: as DARTS, with the cifar stem only).
    Parameters bear the names of the published DARTS code, so `state_dict()` and `load_state_dict` exchange with it
    (`pamkd.spaces.published.load_published_network` says what does not fit). Initial weights are PyTorch's defaults.

    In training `columns` may share a batch: images are this column's part, and so are the logits.
    """

    columns: Columns = WHOLE

    def __init__(
        self,
        genotype: Genotype,
        *,
        channels: int = 36,
        cells: int = 20,
        classes: int = 10,
        image_channels: int = 3,
        stem: Stem = "cifar",
        auxiliary: bool = False,
        auxiliary_norm: bool | None = None,
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(
                f"channels is {channels}: an evaluation network needs an even number of at least 2 (FactorizedReduce halves it)"
            )
        if cells < 3:
            raise ValueError(
                f"cells is {cells}: an evaluation network needs at least 3 (reductions stand at cells // 3 and 2 * cells // 3)"
            )
        if classes < 2:
            raise ValueError(f"classes is {classes}: classification needs at least 2")
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem is {stem!r}: it is 'cifar' or 'imagenet'")
        self.genotype = genotype.checked()
        self.image_channels, self.classes = image_channels, classes
        norm = stem == "cifar" if auxiliary_norm is None else auxiliary_norm
        self.options = {"channels": channels, "cells": cells, "classes": classes, "image_channels": image_channels, "stem": stem}
        self.options |= {"auxiliary": auxiliary, "auxiliary_norm": norm}
        if stem == "cifar":
            width = 3 * channels
            self.stem = nn.Sequential(nn.Conv2d(image_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        else:
            width, half = channels, channels // 2
            self.stem0 = nn.Sequential(*_halving(image_channels, half), nn.ReLU(), *_halving(half, width))
            self.stem1 = nn.Sequential(nn.ReLU(), *_halving(width, width))
        reductions = (cells // 3, 2 * cells // 3)
        c, c_s0, c_s1, reduced = channels, width, width, stem == "imagenet"
        self.cells = nn.ModuleList()
        for i in range(cells):
            reduction = i in reductions
            c *= 2 if reduction else 1
            cell = EvaluationCell(genotype, c_s0, c_s1, c, reduction=reduction, reduced=reduced)
            self.cells.append(cell)
            if i == reductions[1]:
                c_auxiliary = cell.out_channels
            c_s0, c_s1, reduced = c_s1, cell.out_channels, reduction
        self._auxiliary_at = reductions[1]
        if auxiliary:
            self.auxiliary_head = AuxiliaryHead(c_auxiliary, classes, 3 if stem == "cifar" else 2, norm)
        self.classifier = nn.Linear(c_s1, classes)

    @property
    def num_parameters(self) -> int:
        """Weights and biases without the auxiliary head, as papers count them."""
        return sum(value.numel() for name, value in self.named_parameters() if not name.startswith(AUXILIARY))

    def forward(self, images: Tensor, drop_path: float = 0.0, generator: torch.Generator | None = None) -> EvaluationOutput:
        """images [n, image_channels, h, w] with h, w >= 8.

        In training every branch but an identity is dropped for each image with probability `drop_path` and divided by
        1 - drop_path otherwise. `generator` (default: PyTorch's own) draws that, and what `noise` operations add.

        Raises ValueError for images of another shape.
        """
        if images.dim() != 4 or images.shape[1] != self.image_channels or min(images.shape[2:]) < MIN_IMAGE_SIZE:
            needed = f"[n, {self.image_channels}, h, w] with h and w at least {MIN_IMAGE_SIZE}"
            raise ValueError(f"images have shape {tuple(images.shape)}; this network needs {needed}")
        images = images.contiguous(memory_format=torch.channels_last)
        if hasattr(self, "stem"):
            s0 = s1 = self.stem(images)
        else:
            s0 = self.stem0(images)
            s1 = self.stem1(s0)
        # Channels last is faster in training. (Of one-channel images PyTorch cannot tell the layout, hence here and not before.)
        s0, s1 = (state.contiguous(memory_format=torch.channels_last) for state in (s0, s1))
        auxiliary, columns = None, self.columns if self.training else WHOLE
        for i, cell in enumerate(self.cells):
            assert isinstance(cell, EvaluationCell)
            masks = cell.masks(images, drop_path, generator, columns) if self.training and drop_path > 0 else None
            s0, s1 = s1, cell(s0, s1, masks, generator, columns)
            if i == self._auxiliary_at and self.training and hasattr(self, AUXILIARY):
                auxiliary = self.auxiliary_head(s1)
        return EvaluationOutput(self.classifier(s1.mean((2, 3))), auxiliary)


class EvaluationCell(nn.Module):
    """Node i + 2 = the sum of the genotype's entries 2 i and 2 i + 1; the output concatenates the states it names."""

    def __init__(self, genotype: Genotype, c_s0: int, c_s1: int, channels: int, *, reduction: bool, reduced: bool) -> None:
        super().__init__()
        self.genes: tuple[Gene, ...] = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.out_channels = channels * len(self.concat)
        self.preprocess0 = FactorizedReduce(c_s0, channels) if reduced else ReluConvNorm(c_s0, channels)
        self.preprocess1 = ReluConvNorm(c_s1, channels)
        self._ops = nn.ModuleList(operation(name, channels, 2 if reduction and state < INPUTS else 1) for name, state in self.genes)

    def masks(self, images: Tensor, drop_path: float, generator: torch.Generator | None, columns: Columns = WHOLE) -> Tensor:
        """[entries, n, 1, 1, 1] of 0 with probability drop_path, else 1 / (1 - drop_path)."""
        device = images.device if generator is None else generator.device
        kept = torch.empty(len(self.genes), columns.whole(len(images)), 1, 1, 1, device=device).bernoulli_(
            1 - drop_path, generator=generator
        )
        return (columns.part(kept, 1) / (1 - drop_path)).to(images)

    def forward(self, s0: Tensor, s1: Tensor, masks: Tensor | None, generator: torch.Generator | None, columns: Columns = WHOLE) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        total = None
        for i, ((_, state), op) in enumerate(zip(self.genes, self._ops, strict=True)):
            y = op(states[state], generator, columns) if isinstance(op, Noise) else op(states[state])
            if masks is not None and not isinstance(op, nn.Identity):
                y = y * masks[i]
            if i % 2 == 0:
                total = y
            else:
                states.append(total + y)
        return torch.cat([states[i] for i in self.concat], 1)


class ReluDepthwise(nn.Conv2d):
    """Depthwise k x k convolution of relu(x), no bias; the first layer of every separable and dilated convolution."""

    def __init__(self, channels: int, k: int, stride: int, dilation: int) -> None:
        padding = dilation * (k // 2)
        super().__init__(channels, channels, k, stride, padding, dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


def _fused(x: Tensor, depthwise: ReluDepthwise | None, pointwise: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """norm(pointwise(depthwise(relu(x)))) in training as one operation, running statistics included."""
    stride, dilation = (1, 1) if depthwise is None else (depthwise.stride[0], depthwise.dilation[0])
    kernel = None if depthwise is None else depthwise.weight
    y, mean, variance = relu_conv_norm(x, kernel, pointwise.weight, norm.weight, norm.bias, stride=stride, dilation=dilation, eps=norm.eps)
    _track(norm, mean, variance, y.numel() // y.shape[1])
    return y


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, values: int) -> None:
    """Running statistics from the mean and biased variance of so many values per channel."""
    counted, tracked, momentum = norm.num_batches_tracked, (norm.running_mean, norm.running_var), norm.momentum
    assert counted is not None and tracked[0] is not None and tracked[1] is not None and momentum is not None
    counted += 1
    tracked[0].lerp_(mean, momentum)
    tracked[1].lerp_(variance * (values / (values - 1)), momentum)


class SynchronisedNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics in training are those of the whole batch that `columns` share."""

    columns: Columns = WHOLE

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, variance = self.columns.statistics(x)
        _track(self, mean, variance, self.columns.whole(len(x)) * x.shape[2] * x.shape[3])
        return normalised(x, mean, variance, self.weight, self.bias, self.eps)


def share_batches(network: Network, columns: Columns) -> None:
    """Let the network train on this column's part of each batch."""
    network.columns = columns
    for parent in list(network.modules()) if columns.synchronised else ():
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm = SynchronisedNorm(child.num_features, child.eps, child.momentum, child.affine).to(child.running_mean)
                norm.load_state_dict(child.state_dict())
                norm.columns = columns
                setattr(parent, name, norm)


class ReluConvNorm(nn.Module):
    """relu, k x k convolution, BatchNorm; with k = 1 it brings an input state to the cell's channels."""

    def __init__(self, c_in: int, c_out: int, k: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_out, k, stride, k // 2, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        # On smaller maps, which come with more channels, PyTorch's matrix product outweighs what fusing saves.
        pointwise = self.op[1].kernel_size == (1, 1)
        fusable = pointwise and not isinstance(self.op[2], SynchronisedNorm)
        if fusable and self.training and x.device.type == "cpu" and x.shape[2] * x.shape[3] >= 1024:
            return _fused(x, None, *self.op[1:])
        return self.op(x)


class FactorizedReduce(nn.Module):
    """relu, two stride-2 pointwise convolutions, the second one pixel lower right, concatenated, BatchNorm.

    For odd sizes the shifted half reads one row and column of zeros beyond the edge, as in the supernet. The pixels are
    taken out before the convolution: oneDNN's weight gradient of a strided pointwise convolution writes out of bounds for
    fewer than 16 channels in channels-last order (oneDNN issue 6035).
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out - c_out // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1::2, 1::2]
        return self.bn(torch.cat([self.conv_1(x[:, :, ::2, ::2]), self.conv_2(shifted)], 1))


class DepthwiseSeparable(nn.Module):
    """[relu, depthwise, pointwise, BatchNorm], `repeats` times; the stride is the first one's."""

    def __init__(self, channels: int, k: int, stride: int, dilation: int, repeats: int) -> None:
        super().__init__()
        self.fusable = k in (3, 5)
        self.op = nn.Sequential()
        for i in range(repeats):  # 4 i is the published position of a ReLU, which the depthwise layer applies here
            self.op.add_module(str(4 * i + 1), ReluDepthwise(channels, k, stride if i == 0 else 1, dilation))
            self.op.add_module(str(4 * i + 2), nn.Conv2d(channels, channels, 1, bias=False))
            self.op.add_module(str(4 * i + 3), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not (self.fusable and self.training and x.device.type == "cpu") or isinstance(self.op[2], SynchronisedNorm):
            return self.op(x)
        for i in range(0, len(self.op), 3):
            x = _fused(x, *self.op[i : i + 3])
        return x


class Noise(nn.Module):
    """Standard normal noise in place of the (strided) input, drawn in evaluation too: the disturbance of space S4."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, generator: torch.Generator | None, columns: Columns = WHOLE) -> Tensor:
        n, *shape = x[:, :, :: self.stride, :: self.stride].shape
        device = x.device if generator is None else generator.device
        return columns.part(torch.randn(columns.whole(n), *shape, device=device, generator=generator)).to(x)


class AuxiliaryHead(nn.Module):
    """A classifier on the second reduction cell: pool to 2x2, convolutions to 128 and 768 channels, linear.

    The published pool (5x5 with stride 3, or 2 with the imagenet stem) takes 8x8 (7x7) pixels to 2x2; where it gives
    another size, an adaptive average pool to 2x2 takes its place.
    """

    def __init__(self, c_in: int, classes: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.stride = stride
        layers = [nn.Conv2d(c_in, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 768, 2, bias=False)]
        layers += [nn.BatchNorm2d(768)] if norm else []
        self.features = nn.Sequential()
        for i, layer in enumerate(layers, 2):  # 0 and 1 are the published ReLU and pool
            self.features.add_module(str(i), layer)
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        published = all((size - 5) // self.stride == 1 for size in x.shape[2:])
        x = F.avg_pool2d(x, 5, self.stride) if published else pooled_to_two(pooled_to_two(x, 2), 3)
        return self.classifier(F.relu(self.features(x)).flatten(1))


def pooled_to_two(x: Tensor, dim: int) -> Tensor:
    """`F.adaptive_avg_pool1d(x, 2)` along any dimension, with a gradient that is the same in every run on a GPU too."""
    half = (x.shape[dim] + 1) // 2
    return torch.stack([x.narrow(dim, begin, half).mean(dim) for begin in (0, x.shape[dim] - half)], dim)


def operation(name: str, channels: int, stride: int) -> nn.Module:
    """One operation of a genotype on `channels` channels, BatchNorm with affine parameters; pools have none here.

    Raises ValueError for a name that no genotype has.
    """
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    if name == "noise":
        return Noise(stride)
    if name == "conv_7x1_1x7":
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
            nn.BatchNorm2d(channels),
        )
    if name in SEPARABLE:
        k, dilation, repeats = SEPARABLE[name]
        return DepthwiseSeparable(channels, k, stride, dilation, repeats)
    known = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", *SEPARABLE, "conv_7x1_1x7", "noise")
    raise ValueError(f"genotype: unknown operation {name!r}; an evaluation network has {', '.join(known)}")


# name: kernel size, dilation, repeats
SEPARABLE = {
    "sep_conv_3x3": (3, 1, 2),
    "sep_conv_5x5": (5, 1, 2),
    "sep_conv_7x7": (7, 1, 2),
    "dil_conv_3x3": (3, 2, 1),
    "dil_conv_5x5": (5, 2, 1),
}


def multiply_adds(network: Network, image_size: tuple[int, int]) -> int:
    """Multiply-adds of the convolutions and the classifier for one image of this height and width, in evaluation.

    As papers count "FLOPs" and "MACs"; BatchNorm, pools, additions and the auxiliary head are not in it. Computes no values.
    """
    twin = copy.deepcopy(network).to("meta").eval()
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        total += output[0].numel() * layer.weight[0].numel()

    for layer in twin.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    twin(torch.empty(1, network.image_channels, *image_size, device="meta"))
    return total


def _halving(c_in: int, c_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False), nn.BatchNorm2d(c_out)
