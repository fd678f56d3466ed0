"""One second-order PAMKD step: ours, the same schedule over the eager cells, and the same problem written for Betty.

Betty (betty-ml 0.2.1) is a general multilevel engine; the program below is how its tutorials would have a user write the
three levels, with finite-difference hypergradients. Its modules hold the same flat weight vectors and run the same eager
supernet as the second candidate, so what differs is the schedule: 38 forward passes of a supernet for two learners.
Install it with: pip install betty-ml==0.2.1 --ignore-requires-python --no-deps
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench._harness import Bench
from bench.roofline import our_step
from pamkd.methods.pamkd import Pamkd
from pamkd.runs.cuda_graph import GraphedStep
from pamkd.spaces.darts import Darts
from pamkd.spaces.supernet import Supernet
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.trilevel.passes import Batch, Passes
from pamkd.trilevel.sgd import SGD
from pamkd.trilevel.step import Learner, pairwise_gaps

LR, WEIGHT = 0.025, 0.5


class TimedPasses(Passes):
    """Passes that add up their own time."""

    seconds = 0.0

    def forward(self, *arguments):
        start = time.perf_counter()
        result = super().forward(*arguments)
        self.seconds += time.perf_counter() - start
        return result

    def backward(self, *arguments):
        start = time.perf_counter()
        result = super().backward(*arguments)
        self.seconds += time.perf_counter() - start
        return result


class Ours:
    """K learners and the step of `pamkd.methods.pamkd` over one supernet."""

    def __init__(
        self, supernet: Supernet, start: list[Learner], train: Batch, valid: Batch, *, graphed: bool = False, stacked: bool = False
    ) -> None:
        self.learners = [Learner.create(supernet, *(tensor.detach().clone() for tensor in (k.alphas, k.v, k.w))) for k in start]
        self.adam = torch.optim.Adam([learner.alphas for learner in self.learners], 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        # Without clipping: Betty clips the learners' gradients together, the paper's code each by itself.
        self.passes = TimedPasses(static=graphed, stacked=stacked)
        method = Pamkd(passes=self.passes, weight=WEIGHT, sgd=SGD(0.9, 3e-4, 0.0))
        self.step = GraphedStep(method) if graphed else method.step
        self.train, self.valid = train, valid

    def __call__(self) -> None:
        _, hypergradient = self.step(self.learners, self.train, self.valid, lr=LR, phase="search", seed=0)
        for learner, grad in zip(self.learners, hypergradient, strict=True):
            learner.alphas.grad = grad
        self.adam.step()

    def weights(self) -> Tensor:
        return torch.cat([tensor for learner in self.learners for tensor in (learner.v, learner.w)])

    def forwards(self) -> int:
        return sum(self.passes.forwards.values())

    def outside(self) -> tuple[float, float]:
        """Seconds of one step, and of what is not in its network passes: updates, perturbations, similarities."""
        self.passes.seconds = 0.0
        start = time.perf_counter()
        self()
        seconds = time.perf_counter() - start
        return seconds, seconds - self.passes.seconds


class Betty:
    """The same step as a Betty program: problems V, W and A, one above the other."""

    def __init__(self, supernet: Supernet, start: list[Learner], train: Batch, valid: Batch) -> None:
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine
        from betty.problems import ImplicitProblem

        logging.disable(logging.INFO)
        transfer = GroupRelativeSimilarity()
        groups = transfer.draw(valid, 0)
        learners = range(len(start))
        count = [0]

        def run(weights: Tensor, alphas: Tensor, images: Tensor, labels: Tensor):
            count[0] += 1
            output = supernet.forward(weights, alphas, images)
            return F.cross_entropy(output.logits, labels), output

        class V(ImplicitProblem):
            def training_step(self, batch):
                images, labels, _, _ = batch
                return sum(run(self.module[k], self.a.module[k], images, labels)[0] for k in learners)

        class W(ImplicitProblem):
            def training_step(self, batch):
                images, labels, valid_images, valid_labels = batch
                loss = sum(run(self.module[k], self.a.module[k], images, labels)[0] for k in learners)
                taught = [run(self.v.module[k], self.a.module[k], valid_images, valid_labels) for k in learners]
                losses = torch.stack([loss for loss, _ in taught])
                published = torch.stack([transfer.publish(output, None, groups) for _, output in taught])
                gaps = pairwise_gaps(losses)
                for k in learners:
                    _, output = run(self.module[k], self.a.module[k], valid_images, valid_labels)
                    loss = loss + WEIGHT * (gaps[k] * transfer.loss(published, output, None, groups)).sum()
                return loss

        class A(ImplicitProblem):
            def training_step(self, batch):
                _, _, valid_images, valid_labels = batch
                return sum(run(self.w.module[k], self.module[k], valid_images, valid_labels)[0] for k in learners)

        def module(name: str) -> nn.ParameterList:
            return nn.ParameterList([nn.Parameter(getattr(learner, name).detach().clone()) for learner in start])

        def problem(kind: type, name: str, optimizer: type, **options) -> ImplicitProblem:
            parameters = module({"a": "alphas"}.get(name, name))
            # The upper level differentiates its loss twice over: along its own parameters and along W.
            config = Config(type="darts", retain_graph=name == "a")
            data = [(*train, *valid)]
            return kind(name, config, parameters, optimizer(parameters.parameters(), **options), train_data_loader=data)

        sgd = {"lr": LR, "momentum": 0.9, "weight_decay": 3e-4}
        v, w = problem(V, "v", torch.optim.SGD, **sgd), problem(W, "w", torch.optim.SGD, **sgd)
        a = problem(A, "a", torch.optim.Adam, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        dependencies = {"u2l": {a: [v, w]}, "l2u": {v: [w], w: [a]}}
        self.engine = Engine([v, w, a], EngineConfig(strategy="cpu", logger_type="none"), dependencies)
        self.engine.train()
        self.v, self.w, self.count = v, w, count

    def __call__(self) -> None:
        self.engine.global_step += 1
        self.engine.train_step()

    def weights(self) -> Tensor:
        pairs = zip(self.v.module.parameters(), self.w.module.parameters(), strict=True)
        return torch.cat([tensor.detach() for pair in pairs for tensor in pair])

    def forwards(self) -> int:
        return self.count[0]


def candidates(
    channels: int, cells: int, batch: int, learners: int, device: torch.device, dtype: torch.dtype
) -> tuple[Ours, dict[str, Ours | Betty]]:
    """Ours and its peers before their first step, from the same weights and with the same two batches."""
    supernet = Darts(channels=channels, cells=cells)
    random = torch.Generator().manual_seed(0)
    made = [(supernet.init_alphas(random), *(supernet.init_weights(random) for _ in "vw")) for _ in range(learners)]
    start = [Learner.create(supernet, *(tensor.to(device, dtype) for tensor in tensors)) for tensors in made]
    random = torch.Generator().manual_seed(1)
    train, valid = (
        Batch(
            torch.randn(batch, 3, 32, 32, generator=random).to(device, dtype), torch.randint(0, 10, (batch,), generator=random).to(device)
        )
        for _ in range(2)
    )
    peers: dict[str, Ours | Betty] = {"same schedule, eager cells": Ours(supernet.twice_differentiable(), start, train, valid)}
    if device.type == "cuda":
        peers["ours as a CUDA graph"] = Ours(supernet, start, train, valid, graphed=True, stacked=True)
        peers["ours, one pass after another"] = Ours(supernet, start, train, valid)
    elif importlib.util.find_spec("betty"):
        peers["Betty 0.2.1"] = Betty(supernet.twice_differentiable(), start, train, valid)
    return Ours(supernet, start, train, valid, stacked=device.type == "cuda"), peers


def require_agreement(bench: Bench, ours: Ours, peers: dict[str, Ours | Betty], rtol: float) -> None:
    """Takes one step with each."""
    ours()
    for name, peer in peers.items():
        peer()
        bench.require_close(f"V' and W' of {name}", ours.weights(), peer.weights(), rtol=rtol)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images per batch; 2 * R = 10 or more")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--learners", type=int, default=2)
    bench = Bench("step", parser, rounds=5, gpu=True)
    options = bench.options

    # Rounding decides on which side of a kink a float32 value lies, and so moves a large network's weights: float64 shows the agreement.
    small = candidates(4, 3, 16, options.learners, bench.device, torch.float64)
    require_agreement(bench, *small, rtol=1e-8)
    ours, peers = candidates(options.channels, options.cells, options.batch, options.learners, bench.device, torch.float32)
    require_agreement(bench, ours, peers, rtol=1e-3)
    if bench.device.type == "cpu" and len(peers) == 1:
        print("Betty is not installed and is left out: pip install betty-ml==0.2.1 --ignore-requires-python --no-deps")
    case = f"K={options.learners} C={options.channels} cells={options.cells} batch={options.batch}"
    bench.row(case, "passes", "forward passes", ours.forwards(), {name: peer.forwards() for name, peer in peers.items()})
    if bench.device.type == "cuda":
        count = our_step(options.learners, Darts(channels=options.channels, cells=options.cells), options.batch, torch.float32)
        bench.time_on_gpu(case, ours, peers, count.bytes, count.products + count.others)
        return bench.finish()
    bench.time(case, ours, peers)
    step, outside = (statistics.median(values) for values in zip(*(ours.outside() for _ in range(options.rounds)), strict=True))
    bench.row(case, "time outside the passes", "s", outside, {"the whole step": step})
    bench.finish()


if __name__ == "__main__":
    main()
