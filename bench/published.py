"""Supernets and the DARTS evaluation network as their published codes compose them: the peers of `bench.supernet`.

One module per candidate operation, one BatchNorm per module, an edge's output summed term by term. Parameters bear the
published names (NAS-Bench-201's: ours), so the same weights load into these networks and into ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
from pamkd.spaces import supernet
from pamkd.spaces.darts import NODES
from pamkd.spaces.genotype import Genotype
from pamkd.spaces.prdarts import PrDarts


class ReLUConvBN(nn.Module):
    def __init__(self, c_in: int, c_out: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out, affine=affine))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c_out: int, affine: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


class DepthwiseSeparable(nn.Module):
    def __init__(self, c: int, k: int, stride: int, dilation: int, repeats: int, affine: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(repeats):
            step = stride if i == 0 else 1
            layers += [
                nn.ReLU(),
                nn.Conv2d(c, c, k, step, dilation * (k // 2), dilation, groups=c, bias=False),
                nn.Conv2d(c, c, 1, bias=False),
                nn.BatchNorm2d(c, affine=affine),
            ]
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class NorConv(nn.Module):
    """A full convolution of NAS-Bench-201; our name for its weight."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, k, padding=k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(F.relu(x)))


def operation(name: str, c: int, stride: int, affine: bool) -> nn.Module:
    if name == "none":
        return Zero(stride)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)
    if name.startswith("nor_conv"):
        return NorConv(c, int(name[-1]))
    separable = name.startswith("sep")
    return DepthwiseSeparable(c, int(name[-1]), stride, 1 if separable else 2, 2 if separable else 1, affine)


class TorchDraws:
    """What `Disturbance` draws, by PyTorch's generator as in the published codes."""

    def __init__(self, ours: Disturbance) -> None:
        self.skip_dropout, self.drop_path = ours.skip_dropout, ours.drop_path

    def noise(self, edge: int, like: Tensor) -> Tensor:
        return self._map(torch.randn, like)

    def skip_mask(self, edge: int, like: Tensor) -> Tensor:  # five times as fast as `F.dropout`
        return (self._map(torch.rand, like) >= self.skip_dropout).to(like.dtype).div_(1 - self.skip_dropout)

    @staticmethod
    def _map(draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        """In the tensor's memory format; `randn_like` is slow in channels_last."""
        if like.stride(1) == 1:
            return draw(like.movedim(1, -1).shape, dtype=like.dtype, device=like.device).movedim(-1, 1)
        return draw(like.shape, dtype=like.dtype, device=like.device)

    def edge_mask(self, edge: int, like: Tensor) -> Tensor:
        return (torch.rand(len(like), 1, 1, 1, device=like.device) >= self.drop_path).to(like.dtype).div_(1 - self.drop_path)


Drawn = Disturbance | TorchDraws | None


class MixedOp(nn.Module):
    """An edge: the first channels through the operations whose weight is not 0, the others past them (PC-DARTS)."""

    def __init__(self, spec: CellSpec, edge: int) -> None:
        super().__init__()
        self.spec, self.edge, self.stride = spec, edge, spec.stride(edge)
        self._ops = nn.ModuleList()
        for name in spec.candidates[edge]:
            op = nn.Identity() if name == "noise" else operation(name, spec.op_channels, self.stride, affine=False)
            normed = "pool" in name and spec.pool_norm
            self._ops.append(nn.Sequential(op, nn.BatchNorm2d(spec.op_channels, affine=False)) if normed else op)

    def forward(self, x: Tensor, weights: Tensor, active: list[bool], drawn: Drawn) -> Tensor:
        head, terms = x[:, : self.spec.op_channels], []
        for w, op, name, on in zip(weights, self._ops, self.spec.candidates[self.edge], active, strict=False):
            if not on:
                continue
            y = drawn.noise(self.edge, head[:, :, :: self.stride, :: self.stride]) if name == "noise" else op(head)
            dropped = name == "skip_connect" and self.stride == 1 and drawn and drawn.skip_dropout
            terms.append(w * (y * drawn.skip_mask(self.edge, y) if dropped else y))
        y = sum(terms)
        if self.spec.partial > 1:
            rest = x[:, self.spec.op_channels :]
            y = torch.cat([y, weights[-1] * (rest if self.stride == 1 else F.max_pool2d(rest, 2, 2))], 1)
            n, c, h, w = y.shape
            y = y.view(n, self.spec.partial, c // self.spec.partial, h, w).transpose(1, 2).reshape(n, c, h, w)
        return y * drawn.edge_mask(self.edge, y) if drawn and drawn.drop_path else y


class SearchCell(nn.Module):
    def __init__(self, spec: CellSpec, reduce_s0: bool, in_channels: tuple[int, ...], gated: bool) -> None:
        super().__init__()
        self.spec, self.gated = spec, gated
        if spec.inputs == 2:
            self.preprocess0 = (FactorizedReduce if reduce_s0 else ReLUConvBN)(in_channels[0], spec.channels, False)
            self.preprocess1 = ReLUConvBN(in_channels[1], spec.channels, False)
        self._ops = nn.ModuleList(MixedOp(spec, edge) for edge in range(spec.edges))

    def forward(self, states: list[Tensor], weights: Tensor, draw: Callable[[Tensor], Drawn]) -> Tensor:
        if self.spec.inputs == 2:
            states = [self.preprocess0(states[0]), self.preprocess1(states[1])]
        drawn, edge = draw(states[0]), 0
        active = weights.ne(0).tolist() if self.gated else [[True] * self.spec.columns] * self.spec.edges
        for _ in range(self.spec.nodes):
            edges = range(edge, edge + len(states))
            states = [*states, sum(self._ops[e](x, weights[e], active[e], drawn) for e, x in zip(edges, states, strict=True))]
            edge = edges.stop
        return states[-1] if self.spec.output == "last" else torch.cat(states[self.spec.inputs :], 1)


class ResidualBlock(nn.Module):
    """Between the stages of NAS-Bench-201."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv_a, self.conv_b = (
            nn.ModuleDict({"op": nn.Sequential(nn.ReLU(), nn.Conv2d(i, c, 3, s, 1, bias=False), nn.BatchNorm2d(c))})
            for i, s in ((c // 2, 2), (c, 1))
        )
        self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c // 2, c, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_b["op"](self.conv_a["op"](x)) + self.downsample(x)


class Supernet(nn.Module):
    """forward(images, alphas) -> logits of the search network of any of our spaces.

    Noise, dropout and drop-path are those of `space.moment` where `our_draws`, to compare results; else PyTorch draws them.
    """

    our_draws = False

    def __init__(self, space: supernet.Supernet) -> None:
        super().__init__()
        self.space = space
        width = space.stem_width
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.cells = nn.ModuleList(SearchCell(*cell, isinstance(space, PrDarts)) for cell in space.cells)
        widths = [cell.spec.channels for cell in space.cells]
        chain = space.cells[0].spec.inputs == 1
        self.blocks = nn.ModuleList(ResidualBlock(c) for before, c in pairwise(widths) if chain and c > before)
        self.starts = {i: block for block, i in enumerate(i for i in range(1, len(widths)) if chain and widths[i] > widths[i - 1])}
        if space.affine_tail:
            self.lastact = nn.Sequential(nn.BatchNorm2d(space.embedding_size), nn.ReLU())
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(space.embedding_size, space.classes)

    def forward(self, images: Tensor, alphas: Tensor) -> Tensor:
        mixtures = self.space.sample(alphas)
        s0 = s1 = self.stem(images)
        for i, cell in enumerate(self.cells):
            if i in self.starts:
                s1 = self.blocks[self.starts[i]](s1)
            states = [s0, s1][-cell.spec.inputs :]
            s0, s1 = s1, cell(states, mixtures[cell.spec.reduction], functools.partial(self._draws, i))
        if self.space.affine_tail:
            s1 = self.lastact(s1)
        return self.classifier(self.global_pooling(s1).flatten(1))

    def _draws(self, i: int, state: Tensor) -> Drawn:
        ours = self.space.draws(i, state)
        return ours if self.our_draws or ours is None else TorchDraws(ours)


class EvaluationCell(nn.Module):
    def __init__(self, genotype: Genotype, c_s0: int, c_s1: int, c: int, reduction: bool, reduced: bool) -> None:
        super().__init__()
        self.genes = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.preprocess0 = FactorizedReduce(c_s0, c, True) if reduced else ReLUConvBN(c_s0, c, True)
        self.preprocess1 = ReLUConvBN(c_s1, c, True)
        self._ops = nn.ModuleList(operation(name, c, 2 if reduction and j < 2 else 1, affine=True) for name, j in self.genes)

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for i in range(NODES):
            first, second = (op(states[j]) for op, (_, j) in zip(self._ops[2 * i : 2 * i + 2], self.genes[2 * i : 2 * i + 2], strict=True))
            states.append(first + second)
        return torch.cat([states[i] for i in self.concat], 1)


class EvaluationNetwork(nn.Module):
    """forward(images) -> logits."""

    def __init__(self, genotype: Genotype, channels: int, cells: int, classes: int = 10) -> None:
        super().__init__()
        c, c_s0, c_s1, reduced = channels, 3 * channels, 3 * channels, False
        self.stem = nn.Sequential(nn.Conv2d(3, c_s1, 3, padding=1, bias=False), nn.BatchNorm2d(c_s1))
        self.cells = nn.ModuleList()
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            c *= 2 if reduction else 1
            cell = EvaluationCell(genotype, c_s0, c_s1, c, reduction, reduced)
            self.cells.append(cell)
            c_s0, c_s1, reduced = c_s1, len(cell.concat) * c, reduction
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(c_s1, classes)

    def forward(self, images: Tensor) -> Tensor:
        s0 = s1 = self.stem(images)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.classifier(self.global_pooling(s1).flatten(1))


def multiply_adds(network: nn.Module, *arguments: Tensor) -> int:
    """Multiply-adds of the convolutions and the classifier in one forward pass."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(*arguments)
    for hook in hooks:
        hook.remove()
    return total
