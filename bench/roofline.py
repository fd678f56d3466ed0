"""Launches, bytes and operations of a supernet pass and of a PAMKD step on a GPU, and the time that these alone would take.

Counted by tracing on meta tensors, so no GPU is needed: every operation that PyTorch would launch is one launch, reads its
inputs and writes its outputs once; views and allocations are none. A kernel of ours likewise reads every map, weight and partial
sum that it needs once, and counts all operations that it does, those for maps that it computes again included (`bench/_launches.py`).
Both sides take float32, or bfloat16 throughout. A lower bound is the larger of bytes over bandwidth and operations over rate, matrix
products at the rate of the precision, everything else at that of float32; launches cost nothing in it.

Ours is what `mixed_cell` and `relu_conv_norm` run on a GPU; the learners of a step run one after another.
A step is the passes of the schedule in `pamkd.trilevel` where all but the best learner have a teacher, for both sides, and
leaves out on both what is less than a thousandth of the bytes: the updates, the perturbations and the similarity loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench import published
from bench._harness import CHIPS, TERA, Bench
from bench._launches import ON_CUDA, Count, Launches, as_on_cuda, size
from pamkd.spaces.darts import Darts

GB = 1e9
PRECISIONS = {"float32": (torch.float32, 1), "TF32": (torch.float32, 2), "bfloat16": (torch.bfloat16, 3)}  # dtype, column of CHIPS
NO_LAUNCH = {"empty", "new_empty", "empty_strided", "new_empty_strided", "empty_like", "detach", "_unsafe_view", "lift_fresh"}
# Forward and backward passes of a learner per second-order step: 4 with K = 1, where W alone is trained; with K > 1 the best
# learner needs 8, a taught one 11 (docs/hypergradient.md).
ALONE, BEST, TAUGHT = 4, 8, 11


class Trace(TorchDispatchMode):
    """Counts what runs within it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()
        self.launches = Launches(self.count)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        schema = function._schema
        if schema.name in ON_CUDA:  # what it consists of is counted
            with self, self.launches.of(schema.name, arguments):
                return ON_CUDA[schema.name](*arguments)
        result = function(*arguments, **(options or {}))
        name = schema.name.removeprefix("aten::")
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if schema.name == "pamkd::stencils_input":
            self.launches.stencils_input(*arguments)
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


def our_pass(channels: int, cells: int, images: int, dtype: torch.dtype) -> Count:
    """Forward and backward of the supernet over the operations that run on CUDA."""
    supernet = Darts(channels=channels, cells=cells)
    weights, alphas = (torch.empty(*s, device="meta", dtype=dtype, requires_grad=True) for s in ((supernet.num_weights,), (2, 14, 8)))
    x, labels = batch(images, dtype)
    with as_on_cuda():
        count = traced(lambda: torch.autograd.grad(F.cross_entropy(supernet.forward(weights, alphas, x).logits, labels), [alphas, weights]))
    if not count.launches_of["mixture_kernel"]:
        raise AssertionError("the supernet ran without our kernels: what was traced is not ours")
    return count


def passes(learners: int) -> int:
    return ALONE if learners == 1 else BEST + TAUGHT * (learners - 1)


def report(bench: Bench, case: str, times: int, ours: Count, peer: Count, column: int) -> None:
    bench.row(case, "launches", "1", times * ours.launches, {"published": times * peer.launches})
    bench.row(case, "bytes", "GB", times * ours.bytes / GB, {"published": times * peer.bytes / GB})
    for kind in ("products", "others"):
        figures = [times * getattr(count, kind) / TERA for count in (ours, peer)]
        bench.row(case, kind, "Tflop", figures[0], {"published": figures[1]})
    for device in CHIPS:
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
