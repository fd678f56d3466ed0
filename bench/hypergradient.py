"""Finite-difference hypergradients of a real supernet against exact ones, by the norm of the perturbation.

The second-order part (everything but the direct term) of two learners' hypergradients, on handwritten digits, untrained and
after some steps of search: relative error and cosine of the schedule's central differences to double backward through the
eager cells. float64 shows what the kinks of ReLU and max pooling do; float32 adds rounding.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from bench._harness import Bench
from pamkd.data import Augment, Batches, generator, halves, load_dataset
from pamkd.methods.pamkd import Pamkd
from pamkd.spaces.darts import Darts
from pamkd.trilevel.difference import DEFAULT_FD_STEP
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner

STEPS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
LR, WEIGHT = 0.05, 0.5


def method_of(fd_step: float, exact: bool = False, order: str = "second") -> Pamkd:
    return Pamkd(weight=WEIGHT, fd_step=fd_step, order=order, exact=exact)


def hypergradient(method: Pamkd, learners: list[Learner], train: Batch, valid: Batch) -> Tensor:
    _, found = method.step(copy.deepcopy(learners), train, valid, lr=LR, phase="search", seed=0)
    return torch.stack(found).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--trained", type=int, nargs="+", default=[0, 60], help="steps of search before measuring")
    bench = Bench("hypergradient", parser, rounds=3)
    options = bench.options

    data = load_dataset("digits")
    supernet = Darts(channels=options.channels, cells=options.cells, image_channels=1)
    augment = Augment(data.mean, data.std)
    train, valid = (
        Batches(data.subset(part), None, options.batch, seed=0, stream=name, augment=augment).forever()
        for name, part in zip(("train", "valid"), halves(data.labels, 0), strict=True)
    )
    learners = []
    for k in range(2):
        alphas = supernet.init_alphas(generator(0, "alphas", k))
        learners.append(Learner.create(supernet, alphas, *(supernet.init_weights(generator(0, name, k)) for name in ("v", "w"))))
    adam = torch.optim.Adam([learner.alphas for learner in learners], 6e-3, betas=(0.5, 0.999), weight_decay=1e-3)
    method, done = method_of(DEFAULT_FD_STEP), 0
    for target in options.trained:
        for step in range(done, target):
            _, found = method.step(learners, Batch(*next(train)), Batch(*next(valid)), lr=LR, phase="search", seed=step)
            for learner, grad in zip(learners, found, strict=True):
                learner.alphas.grad = grad
            adam.step()
        done = target
        batches = Batch(*next(train)), Batch(*next(valid))
        for dtype in (torch.float64, torch.float32):
            at = [Learner(supernet, *(t.detach().to(dtype) for t in learner.tensors.values())) for learner in learners]
            for learner in at:
                learner.alphas.requires_grad_()
            pair = [Batch(batch.images.to(dtype), batch.labels) for batch in batches]
            wide = [Learner(supernet, *(t.detach().double() for t in learner.tensors.values())) for learner in at]
            for learner in wide:
                learner.alphas.requires_grad_()
            wide_pair = [Batch(batch.images.double(), batch.labels) for batch in pair]
            direct = hypergradient(method_of(1.0, order="first"), wide, *wide_pair)
            exact = hypergradient(method_of(1.0, exact=True), wide, *wide_pair) - direct
            narrow = hypergradient(method_of(1.0, order="first"), at, *pair)
            error = {}
            for step in STEPS:
                found = hypergradient(method_of(step), at, *pair) - narrow
                error[step] = ((found - exact).norm() / exact.norm()).item()
                cosine = F.cosine_similarity(found.flatten(), exact.flatten(), 0).item()
                print(f"{target:4} steps, {dtype}: step {step:g}: relative error {error[step]:.2e}, cosine {cosine:.4f}", flush=True)
                case = f"{target} steps of search, {str(dtype).removeprefix('torch.')}, step {step:g}"
                bench.row(case, "1 - cosine", "", 1 - cosine, {"exact": 0.0})
            share = (exact.norm() / direct.norm()).item()
            print(f"norm of the second-order part over that of the direct term: {share:.3f}")
            for step in STEPS:
                case = f"{target} steps of search, {str(dtype).removeprefix('torch.')}, step {step:g}"
                bench.row(case, "relative error", "", error[step], {f"step {DEFAULT_FD_STEP:g}": error[DEFAULT_FD_STEP]})
    ours, peer = method_of(DEFAULT_FD_STEP), method_of(DEFAULT_FD_STEP, exact=True)
    bench.time(
        f"one step C={options.channels} cells={options.cells} batch={options.batch}, float32",
        lambda: hypergradient(ours, learners, *batches),
        {"exact, double backward": lambda: hypergradient(peer, learners, *batches)},
    )
    bench.finish()


if __name__ == "__main__":
    main()
