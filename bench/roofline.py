"""Launches, bytes and operations of a supernet pass and of a PAMKD step on a GPU, and the time that these alone would take.

Counted by tracing on meta tensors, so no GPU is needed: every operation that PyTorch would launch is one launch, reads its
inputs and writes its outputs once; views and allocations are none. An operation of ours counts the kernels that it launches,
as `OURS` lists them, with a second reading where two kernels read the same tensor and the workspace between two kernels. Both
sides take float32, or bfloat16 throughout. A lower bound is the larger of bytes over bandwidth and operations over rate, matrix
products at the rate of the precision, everything else at that of float32; launches cost nothing in it.

Ours is the cell of `pamkd.ops.cell_of_stencils`, what `mixed_cell` runs on CUDA; the learners of a step run one after another.
A step is the passes of the schedule in `pamkd.trilevel` where all but the best learner have a teacher, for both sides, and
leaves out on both what is less than a thousandth of the bytes: the updates, the perturbations and the similarity loss.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench import published
from bench._harness import Bench
from pamkd.ops import cell_of_stencils
from pamkd.ops._library import IMPLEMENTATIONS
from pamkd.spaces.darts import Darts

GB, TERA = 1e9, 1e12
# Bytes and operations per second: memory, float32, TF32, bfloat16.
DEVICES = {"A100": (1.55 * TERA, 19.5 * TERA, 156 * TERA, 312 * TERA), "H100": (3.35 * TERA, 67 * TERA, 495 * TERA, 990 * TERA)}
PRECISIONS = {"float32": (torch.float32, 1), "TF32": (torch.float32, 2), "bfloat16": (torch.bfloat16, 3)}  # dtype, column of DEVICES
NO_LAUNCH = {"empty", "new_empty", "empty_strided", "new_empty_strided", "empty_like", "detach", "_unsafe_view", "lift_fresh"}
# Forward and backward passes of a learner per second-order step: 4 with K = 1, where W alone is trained; with K > 1 the best
# learner needs 8, a taught one 11 (docs/hypergradient.md).
ALONE, BEST, TAUGHT = 4, 8, 11


@dataclass
class Count:
    launches: int = 0
    bytes: int = 0
    products: int = 0  # operations of matrix products and convolutions over all channels
    others: int = 0
    by_operation: Counter = field(default_factory=Counter)  # bytes
    launches_of: Counter = field(default_factory=Counter)

    def add(self, name: str, bytes: int, *, products: int = 0, others: int = 0) -> None:
        self.launches, self.bytes = self.launches + 1, self.bytes + bytes
        self.products, self.others = self.products + products, self.others + others
        self.by_operation[name] += bytes
        self.launches_of[name] += 1

    def seconds(self, device: str, column: int) -> float:
        memory, *rates = DEVICES[device]
        return max(self.bytes / memory, self.products / rates[column - 1] + self.others / rates[0])


def size(value: object) -> int:
    """Bytes of the tensors in a result or an argument; an expanded tensor is as large as its memory."""
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tree_leaves(value) if isinstance(t, Tensor))


def stencils_forward(count: Count, arguments: tuple, result: Tensor) -> None:
    x, weights, kernels, *_ = arguments
    count.add("stencils", size([x, weights, result]), others=taps(kernels, result))


def stencils_backward(count: Count, arguments: tuple, result: tuple) -> None:
    grad, x, weights, kernels, *_, need_x, need_weights = arguments
    if need_x:
        count.add("stencils, input", size([grad, x, weights, result[0]]), others=taps(kernels, grad))
    if need_weights:
        convolutions = grad[: len(kernels)]
        tiles = grad.shape[2] * math.ceil(grad.shape[3] / (16 * grad.shape[3] // x.shape[2])) * math.ceil(grad.shape[4] / 16)
        workspace = tiles * weights.numel() * 4
        count.add("stencils, weights", convolutions.numel() * grad.element_size() + size(x) + workspace, others=taps(kernels, grad))
        count.add("stencils, sum", workspace + size(weights))


def taps(kernels: list[int], maps: Tensor) -> int:
    """Operations of the stencils that end or begin in `maps` [maps, ...]: a multiply-add per tap, one per sample of a pool."""
    return maps[0].numel() * (sum(2 * k * k for k in kernels) + 9 * (len(maps) - len(kernels)))


OURS = {"pamkd::stencils_forward": stencils_forward, "pamkd::stencils_backward": stencils_backward}


class Trace(TorchDispatchMode):
    """Counts what runs within it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        schema = function._schema
        name = schema.name.removeprefix("aten::")
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if schema.name in OURS:
            OURS[schema.name](self.count, arguments, result)
        elif not view and name not in NO_LAUNCH:
            self.add(name, function, arguments, result)
        return result

    def add(self, name: str, function: OpOverload, arguments: tuple, result: object) -> None:
        kind, operations = "others", sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        if name in ("convolution", "convolution_backward"):
            # Not PyTorch's count, which takes the groups of a depthwise convolution's gradients for one.
            backward = name == "convolution_backward"
            weight = arguments[2 if backward else 1]
            maps = arguments[0] if backward else result
            operations = 2 * maps.numel() * weight[0].numel() * (sum(arguments[-1][:2]) if backward else 1)
            if weight.shape[1] > 1:
                kind = "products"
            else:
                name = f"depthwise {name}"
        elif flops := flop_registry.get(function.overloadpacket):
            kind, operations = "products", flops(*arguments, out_val=result)
        self.count.add(name, size(arguments) + size(result), **{kind: operations})


def traced(step: Callable[[], object]) -> Count:
    with Trace() as trace:
        step()
    return trace.count


def batch(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(size, 3, 32, 32, device="meta", dtype=dtype), torch.empty(size, device="meta", dtype=torch.long)


def published_pass(channels: int, cells: int, images: int, dtype: torch.dtype) -> Count:
    """Forward and backward of the published composition, channels_last."""
    network = published.Supernet(Darts(channels=channels, cells=cells)).to("meta", dtype, memory_format=torch.channels_last)
    alphas = torch.empty(2, 14, 8, device="meta", dtype=dtype, requires_grad=True)
    x, labels = batch(images, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    return traced(lambda: torch.autograd.grad(F.cross_entropy(network(x, alphas), labels), [alphas, *network.parameters()]))


class OverStencils(Darts):
    """The supernet as it runs on CUDA."""

    _mixed_cell = staticmethod(cell_of_stencils.mixed_cell)


def our_pass(channels: int, cells: int, images: int, dtype: torch.dtype) -> Count:
    """Forward and backward of the supernet over the cells that run on CUDA."""
    supernet = OverStencils(channels=channels, cells=cells)
    weights, alphas = (torch.empty(*s, device="meta", dtype=dtype, requires_grad=True) for s in ((supernet.num_weights,), (2, 14, 8)))
    x, labels = batch(images, dtype)
    IMPLEMENTATIONS["stencils"]["meta"] = "traced"  # the operation, not the composition that takes its place elsewhere
    try:
        count = traced(lambda: torch.autograd.grad(F.cross_entropy(supernet.forward(weights, alphas, x).logits, labels), [alphas, weights]))
    finally:
        del IMPLEMENTATIONS["stencils"]["meta"]
    if not count.launches_of["stencils"]:
        raise AssertionError("the supernet ran without the stencils: what was traced is not ours")
    return count


def passes(learners: int) -> int:
    return ALONE if learners == 1 else BEST + TAUGHT * (learners - 1)


def report(bench: Bench, case: str, times: int, ours: Count, peer: Count, column: int) -> None:
    bench.row(case, "launches", "1", times * ours.launches, {"published": times * peer.launches})
    bench.row(case, "bytes", "GB", times * ours.bytes / GB, {"published": times * peer.bytes / GB})
    for kind in ("products", "others"):
        figures = [times * getattr(count, kind) / TERA for count in (ours, peer)]
        bench.row(case, kind, "Tflop", figures[0], {"published": figures[1]})
    for device in DEVICES:
        seconds = [times * count.seconds(device, column) for count in (ours, peer)]
        bench.row(case, f"bound {device}", "s", seconds[0], {"published": seconds[1]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--operations", action="store_true", help="print bytes and launches of each operation, of both sides")
    bench = Bench("roofline", parser, rounds=1)
    options = bench.options
    for images in options.batch:
        counts = {
            dtype: [make(options.channels, options.cells, images, dtype) for make in (our_pass, published_pass)]
            for dtype in (torch.float32, torch.bfloat16)
        }
        for precision, (dtype, column) in PRECISIONS.items():
            ours, peer = counts[dtype]
            report(bench, f"pass batch={images} {precision}", 1, ours, peer, column)
            for learners in options.learners:
                report(bench, f"step K={learners} batch={images} {precision}", passes(learners), ours, peer, column)
        if options.operations:
            for side, count in zip(("ours", "published"), counts[torch.float32], strict=True):
                for name, amount in count.by_operation.most_common():
                    print(f"batch={images} float32 {side:10} {name:40} {amount / GB:9.3f} GB {count.launches_of[name]:6} launches")
    bench.finish()


if __name__ == "__main__":
    main()
