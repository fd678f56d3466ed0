"""The stencils that leave a state of a cell, forward and backward: `pamkd.ops.stencils` against the same composed of PyTorch calls.

They have a kernel for GPUs alone, so `--device cuda` is needed. Bytes are those that must move: forward reads the state and writes six
maps, backward reads their gradients and the state and writes its gradient. Before anything is timed the error of ours against float64
must be at most twice PyTorch's in the same precision, or that of rounding.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor

from bench._harness import Bench
from pamkd.ops import stencils
from pamkd.reference.stencils import stencils as composed

CASES = [(16, 32, 1), (16, 32, 2), (32, 16, 1), (32, 16, 2), (64, 8, 1)]  # channels, height, stride: states of DARTS's supernet
SIZES, DILATIONS = zip(*itertools.product((3, 5), (1, 2)), strict=True)
MAPS = len(SIZES) + 2
DTYPES = (torch.float32, torch.bfloat16)


def elements(images: int, channels: int, height: int, stride: int) -> tuple[int, int]:
    """Of the state, and of the maps together."""
    out = -(-height // stride)
    return images * channels * height**2, MAPS * images * channels * out**2


def operations(images: int, channels: int, height: int, stride: int) -> int:
    """Of the convolutions forward: a multiplication and an addition for each weight and pixel."""
    return elements(images, channels, height, stride)[1] // MAPS * 2 * sum(k * k for k in SIZES)


def largest(found: Tensor, truth: Tensor) -> float:
    """Difference, of the largest value."""
    return ((found.double() - truth).abs().max() / truth.abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=96, help="images")
    bench = Bench("stencils", parser, rounds=31, gpu=True)
    if bench.device.type == "cpu":
        parser.exit(2, "bench.stencils: the stencils have no kernel for the CPU, where mixed_cell does without: take --device cuda\n")
    for (channels, height, stride), dtype in itertools.product(CASES, DTYPES):
        random = torch.Generator().manual_seed(0)
        shapes = [(bench.options.batch, channels, height, height), *((channels, 1, k, k) for k in SIZES)]
        x, *depthwise = (torch.randn(*shape, generator=random).to(bench.device, dtype) for shape in shapes)
        x = x.contiguous(memory_format=torch.channels_last)
        leaves = [leaf.requires_grad_() for leaf in (x, *depthwise)]

        def ours(x: Tensor = x, depthwise: list[Tensor] = depthwise, stride: int = stride) -> Tensor:
            return stencils(x, depthwise, DILATIONS, stride=stride)

        def peer(x: Tensor = x, depthwise: list[Tensor] = depthwise, stride: int = stride) -> Tensor:
            return composed(x, depthwise, DILATIONS, stride, True)

        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        results = {"ours": ours(), "PyTorch": peer(), "float64": composed(exact[0], exact[1:], DILATIONS, stride, True)}
        grad = torch.randn(results["ours"].movedim(2, -1).shape, generator=random).to(results["ours"]).movedim(-1, 2)

        def backward(
            of: str, results: dict[str, Tensor] = results, leaves: list[Tensor] = leaves, grad: Tensor = grad
        ) -> tuple[Tensor, ...]:
            return torch.autograd.grad(results[of], leaves, grad, retain_graph=True)

        case = f"c={channels} {height}x{height} stride {stride} {str(dtype).removeprefix('torch.')}"
        truth = (results["float64"], *backward("float64", leaves=exact, grad=grad.double()))
        errors = {
            name: [largest(*pair) for pair in zip((results[name], *backward(name)), truth, strict=True)] for name in ("ours", "PyTorch")
        }
        for one, other in zip(*errors.values(), strict=True):
            if not one <= 2 * max(other, torch.finfo(dtype).eps):
                raise AssertionError(f"{case}: the error against float64 is {one:.2e}, PyTorch's {other:.2e}")
        of_state, of_maps = elements(*shapes[0][:3], stride)
        size = operations(*shapes[0][:3], stride)
        with torch.no_grad():
            bench.time_on_gpu(f"{case}, forward", ours, {"PyTorch": peer}, (of_state + of_maps) * dtype.itemsize, size)
        bench.time_on_gpu(
            f"{case}, backward",
            lambda backward=backward: backward("ours"),
            {"PyTorch": lambda backward=backward: backward("PyTorch")},
            (2 * of_state + of_maps) * dtype.itemsize,
            2 * size,
        )
    bench.finish()


if __name__ == "__main__":
    main()
