"""Launches, bytes and operations of a supernet pass and of a PAMKD step on a GPU, and the time that these alone would take.

Counted by tracing on meta tensors, so no GPU is needed: every operation that PyTorch would launch is one launch, reads its
inputs and writes its outputs once; views and allocations are none. A kernel of ours likewise reads every map, weight and partial
sum that it needs once, and counts all operations that it does, those for maps that it computes again included (`bench/_launches.py`).
Both sides take float32, or bfloat16 throughout. A lower bound is the larger of bytes over bandwidth and operations over rate, matrix
products at the rate of the precision (ours in float32 at a third of TF32's, of which they take three passes), everything else at
that of float32; launches cost nothing in it.

Ours is what `mixed_cell`, `disturbed_cell` and `relu_conv_norm` run on a GPU; the passes of one kind in a step, those of all learners
and of both ends of a difference, are one call of the supernet, whose learners the published composition runs one after another.
A step is the passes of the schedule in `pamkd.trilevel` where all but the best learner have a teacher, for both sides, and
leaves out on both what is less than a thousandth of the bytes: the updates, the perturbations and the similarity loss.
"""

from __future__ import annotations

import argparse
from collections import Counter
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
from bench._launches import ON_CUDA, Count, Launches, as_on_cuda, size, total
from bench._networks import SPACE_CASES, supernet_of
from pamkd.spaces.darts import Darts
from pamkd.spaces.supernet import Supernet

GB = 1e9
PRECISIONS = {"float32": (torch.float32, 1), "TF32": (torch.float32, 2), "bfloat16": (torch.bfloat16, 3)}  # dtype, column of CHIPS
NO_LAUNCH = {"empty", "new_empty", "empty_strided", "new_empty_strided", "empty_like", "detach", "_unsafe_view", "lift_fresh"}


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


def published_pass(supernet: Supernet, images: int, dtype: torch.dtype) -> Count:
    """Forward and backward of the published composition, channels_last."""
    network = published.Supernet(supernet).to("meta", dtype, memory_format=torch.channels_last)
    alphas = torch.empty(supernet.init_alphas(torch.Generator()).shape, device="meta", dtype=dtype, requires_grad=True)
    x, labels = batch(images, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    return traced(lambda: torch.autograd.grad(F.cross_entropy(network(x, alphas), labels), [alphas, *network.parameters()]))


def our_pass(supernet: Supernet, images: int, dtype: torch.dtype, sets: int = 1) -> Count:
    """Forward and backward of the supernet over the operations that run on CUDA, for so many weight sets in one call."""
    shapes = [(*([sets] if sets > 1 else []), *shape) for shape in ((supernet.num_weights,), supernet.init_alphas(torch.Generator()).shape)]
    weights, alphas = (torch.empty(*s, device="meta", dtype=dtype, requires_grad=True) for s in shapes)
    x, labels = batch(images, dtype)

    def loss() -> Tensor:
        logits = supernet.forward(weights, alphas, x).logits
        return sum(F.cross_entropy(one, labels) for one in logits.view(sets, *logits.shape[-2:]))

    with as_on_cuda():
        count = traced(lambda: torch.autograd.grad(loss(), [alphas, weights]))
    if not count.launches_of["mixture_kernel"]:
        raise AssertionError("the supernet ran without our kernels: what was traced is not ours")
    return count


def passes_of(supernet: Supernet, images: int, dtype: torch.dtype) -> tuple[Count, Count]:
    """Ours and the published one."""
    return our_pass(supernet, images, dtype), published_pass(supernet, images, dtype)


def calls(learners: int) -> Counter[int]:
    """How often a second-order step calls the supernet forward and backward, by the number of weight sets (docs/hypergradient.md)."""
    if learners == 1:  # W alone is trained
        return Counter({1: 2, 2: 1})
    students = learners - 1
    return Counter([learners] * 4 + [students] + [2 * learners] * 2 + [2 * students])


def our_step(learners: int, supernet: Supernet, images: int, dtype: torch.dtype) -> Count:
    return total((times, our_pass(supernet, images, dtype, sets)) for sets, times in calls(learners).items())


def passes(learners: int) -> int:
    return sum(sets * times for sets, times in calls(learners).items())


def bounds(device: str, precision: str, ours: Count, peer: Count) -> tuple[float, float]:
    """Seconds of both sides at least."""
    rates = CHIPS[device]
    rate = rates[PRECISIONS[precision][1]]
    return ours.seconds(device, rates[2] / 3 if precision == "float32" else rate), peer.seconds(device, rate)


def report(bench: Bench, case: str, ours: Count, peer: Count, precision: str) -> None:
    bench.row(case, "launches", "1", ours.launches, {"published": peer.launches})
    bench.row(case, "bytes", "GB", ours.bytes / GB, {"published": peer.bytes / GB})
    for kind in ("products", "others"):
        figures = [getattr(count, kind) / TERA for count in (ours, peer)]
        bench.row(case, kind, "Tflop", figures[0], {"published": figures[1]})
    for device in CHIPS:
        seconds = bounds(device, precision, ours, peer)
        bench.row(case, f"bound {device}", "s", seconds[0], {"published": seconds[1]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--space", nargs="+", default=[], choices=SPACE_CASES, help="also a pass of these networks of `bench.supernet`")
    parser.add_argument("--operations", action="store_true", help="print bytes and launches of each operation, of both sides")
    bench = Bench("roofline", parser, rounds=1)
    options = bench.options
    darts = Darts(channels=options.channels, cells=options.cells)
    for images in options.batch:
        for case in options.space:
            report(bench, f"{case} batch={images} float32", *passes_of(supernet_of(case), images, torch.float32), "float32")
        counts, steps = {}, {}
        for dtype in (torch.float32, torch.bfloat16):
            counts[dtype] = passes_of(darts, images, dtype)
            steps[dtype] = {learners: our_step(learners, darts, images, dtype) for learners in options.learners}
        for precision, (dtype, _) in PRECISIONS.items():
            ours, peer = counts[dtype]
            report(bench, f"pass batch={images} {precision}", ours, peer, precision)
            for learners, step in steps[dtype].items():
                report(bench, f"step K={learners} batch={images} {precision}", step, total([(passes(learners), peer)]), precision)
        if options.operations:
            for side, count in zip(("ours", "published"), counts[torch.float32], strict=True):
                for name, amount in count.by_operation.most_common():
                    print(f"batch={images} float32 {side:10} {name:40} {amount / GB:9.3f} GB {count.launches_of[name]:6} launches")
    bench.finish()


if __name__ == "__main__":
    main()
