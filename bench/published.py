"""The DARTS supernet and evaluation network as their published code composes them: the peers of `bench.supernet`.

One module per candidate operation, one BatchNorm per module, an edge's output summed term by term. Parameters bear the
published names, so the same weights load into these networks and into ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamkd.spaces.darts import NODES, PRIMITIVES
from pamkd.spaces.genotype import Genotype


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


def operation(name: str, c: int, stride: int, affine: bool) -> nn.Module:
    if name == "none":
        return Zero(stride)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)
    separable = name.startswith("sep")
    return DepthwiseSeparable(c, int(name[-1]), stride, 1 if separable else 2, 2 if separable else 1, affine)


class MixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList()
        for name in PRIMITIVES:
            op = operation(name, c, stride, affine=False)
            self._ops.append(nn.Sequential(op, nn.BatchNorm2d(c, affine=False)) if "pool" in name else op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class SearchCell(nn.Module):
    def __init__(self, c_s0: int, c_s1: int, c: int, reduction: bool, reduced: bool) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = FactorizedReduce(c_s0, c, False) if reduced else ReLUConvBN(c_s0, c, False)
        self.preprocess1 = ReLUConvBN(c_s1, c, False)
        self._ops = nn.ModuleList(MixedOp(c, 2 if reduction and j < 2 else 1) for i in range(NODES) for j in range(2 + i))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(NODES):
            states.append(sum(self._ops[offset + j](state, weights[offset + j]) for j, state in enumerate(states)))
            offset += len(states) - 1
        return torch.cat(states[-NODES:], 1)


class Supernet(nn.Module):
    """forward(images, alphas [2, 14, 8]) -> logits."""

    def __init__(self, channels: int, cells: int, classes: int = 10) -> None:
        super().__init__()
        c, c_s0, c_s1, reduced = channels, 3 * channels, 3 * channels, False
        self.stem = nn.Sequential(nn.Conv2d(3, c_s1, 3, padding=1, bias=False), nn.BatchNorm2d(c_s1))
        self.cells = nn.ModuleList()
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            c *= 2 if reduction else 1
            self.cells.append(SearchCell(c_s0, c_s1, c, reduction, reduced))
            c_s0, c_s1, reduced = c_s1, NODES * c, reduction
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(c_s1, classes)

    def forward(self, images: Tensor, alphas: Tensor) -> Tensor:
        normal, reduce = F.softmax(alphas, -1)
        s0 = s1 = self.stem(images)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, reduce if cell.reduction else normal)
        return self.classifier(self.global_pooling(s1).flatten(1))


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
