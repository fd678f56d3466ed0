"""The networks that `bench.supernet` compares: one training step of each candidate, and how far their results agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import published
from bench._harness import Bench
from pamkd.spaces import SPACES
from pamkd.spaces.darts import Darts
from pamkd.spaces.evaluation_network import EvaluationNetwork
from pamkd.spaces.genotype import named
from pamkd.spaces.published import published_state_dict
from pamkd.spaces.supernet import Moment, Supernet

# channels, cells, batch
SIZES = {"supernet": (16, 8, 32), "supernet-64": (16, 8, 64), "supernet-large": (36, 20, 16), "evaluation": (36, 20, 16)}
# The search networks of `bench.supernet --space`, halfway through a search: space, its options, stage.
SPACE_CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "pdarts-1": ("pdarts", {"cells": 5, "dropout": (0.0, 0.4, 0.7)}, 0),  # its preset for CIFAR-10
    "pdarts-2": ("pdarts", {"cells": 5, "dropout": (0.0, 0.4, 0.7)}, 1),
    "pdarts-3": ("pdarts", {"cells": 5, "dropout": (0.0, 0.4, 0.7)}, 2),
    "pcdarts": ("pcdarts", {"cells": 8}, 0),
    "prdarts": ("prdarts", {"cells": 6}, 0),
    "nasbench201": ("nasbench201", {"cells": 5}, 0),
    "drnas": ("drnas", {"channels": 36, "cells": 8}, 0),
    "drnas-nasbench201": ("drnas-nasbench201", {"cells": 5}, 0),
    **{space: (space, {"cells": 8}, 0) for space in ("s1", "s2", "s3", "s4")},
    "s3-droppath": ("s3", {"cells": 8, "drop_path": 0.4}, 0),  # R-DARTS
    "darts-minus": ("darts-minus", {"cells": 8}, 0),
}
SPACE_BATCH = 32
CANDIDATES = ("ours", "published", "published channels_last")
Step = Callable[[], tuple[Tensor, ...]]


class Candidate(NamedTuple):
    step: Step  # forward and backward: logits, then gradients
    results: Step  # the same with the gradients in the order of the published parameters, architecture first


def inputs_of(batch: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(batch, 3, 32, 32, generator=random), torch.randint(0, 10, (batch,), generator=random)
    return images.to(dtype), labels


def candidate(
    case: str, name: str, batch: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device | str = "cpu"
) -> Candidate:
    """A step of the network of this case; weights and images are float32 numbers, a function of the seed alone."""
    images, labels = (x.to(device) for x in inputs_of(batch, dtype, seed + 1))
    if case == "evaluation":
        return _evaluation_step(name, *SIZES[case][:2], images, labels, seed)
    return _supernet_step(name, supernet_of(case), images, labels, seed)


def supernet_of(case: str) -> Supernet:
    if case in SIZES:
        channels, cells, _ = SIZES[case]
        return Darts(channels=channels, cells=cells)
    space, options, stage = SPACE_CASES[case]
    network = SPACES[space](**options)
    for _ in range(stage):
        random = torch.Generator().manual_seed(0)
        network = network.next_stage(network.init_alphas(random), random).supernet
    return network.at(Moment(epoch=25, epochs=50))


def _supernet_step(name: str, supernet: Supernet, images: Tensor, labels: Tensor, seed: int) -> Candidate:
    random = torch.Generator().manual_seed(seed)
    weights = supernet.init_weights(random).to(images)
    alphas = supernet.init_alphas(random).to(images).requires_grad_()
    network = published.Supernet(supernet)
    names = [parameter for parameter, _ in network.named_parameters()]
    if name == "ours":
        weights.requires_grad_()

        def ours() -> tuple[Tensor, ...]:
            logits = supernet.forward(weights, alphas, images).logits
            return logits, *torch.autograd.grad(F.cross_entropy(logits, labels), (alphas, weights))

        def results() -> tuple[Tensor, ...]:
            logits, to_alphas, flat = ours()
            state = published_state_dict(supernet, flat)
            return logits, to_alphas, *(state[parameter] for parameter in names)

        return Candidate(ours, results)
    state = published_state_dict(supernet, weights)
    network.load_state_dict({parameter: state[parameter] for parameter in names}, strict=False)
    step = _network_step(network.to(images), images, labels, name, alphas).step

    def with_our_draws() -> tuple[Tensor, ...]:
        network.our_draws = True
        gradients = step()
        network.our_draws = False
        return gradients

    return Candidate(step, with_our_draws)


def _evaluation_step(name: str, channels: int, cells: int, images: Tensor, labels: Tensor, seed: int) -> Candidate:
    genotype = named("DARTS_V2")
    torch.manual_seed(seed)
    ours = EvaluationNetwork(genotype, channels=channels, cells=cells).to(images)
    if name == "ours":
        return _network_step(ours, images, labels, name)
    network = published.EvaluationNetwork(genotype, channels, cells).to(images)
    network.load_state_dict(ours.state_dict())
    return _network_step(network, images, labels, name)


def _network_step(network: nn.Module, images: Tensor, labels: Tensor, name: str, *alphas: Tensor) -> Candidate:
    if name.endswith("channels_last"):
        network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    parameters = [*alphas, *network.parameters()]

    def step() -> tuple[Tensor, ...]:
        output = network(images, *alphas)
        logits = output if isinstance(output, Tensor) else output.logits
        # PR-DARTS leaves out operations that are not active: no gradient, ours is 0
        return logits, *torch.autograd.grad(F.cross_entropy(logits, labels), parameters, materialize_grads=True)

    return Candidate(step, step)


def require_equal_in_float64(bench: Bench, case: str, truth: tuple[Tensor, ...], *, batch: int = 2) -> None:
    """Raises AssertionError unless logits and every gradient are those of the published composition to 1e-8 of their largest value."""
    for i, (a, b) in enumerate(zip(candidate(case, "ours", batch, torch.float64).results(), truth, strict=True)):
        bench.require_close(f"{case} in float64, result {i}", a, b.reshape(a.shape), rtol=1e-8)


def require_agreement(bench: Bench, case: str, *, batch: int = 2) -> None:
    """Raises AssertionError unless ours computes what the published composition does; adds rows of the float32 errors.

    float64: logits and every gradient to 1e-8 of their largest value. float32 results of a deep network of ReLU, max pooling and
    BatchNorm are compared with float64, not with each other (near a kink, rounding decides where a gradient goes): ours may be
    twice as wrong as the peers are in the mean over them and the seeds, and logits are always good at 1e-4. (One value on
    the other side of its kink makes an error of 1e-3 in all gradients, and how many there are in one seed is chance.)
    """
    seeds = 12 if case == "supernet" else 4  # the others are large, slow in float64, and average over more values
    logits_error, gradient_error = dict.fromkeys(CANDIDATES, 0.0), dict.fromkeys(CANDIDATES, 0.0)
    for seed in range(seeds):
        truth = candidate(case, "published", batch, torch.float64, seed).results()
        if seed == 0:
            require_equal_in_float64(bench, case, truth, batch=batch)
        for name in CANDIDATES:
            logits, *gradients = candidate(case, name, batch, seed=seed).results()
            logits_error[name] += ((logits - truth[0]).abs().max() / truth[0].abs().max()).item() / seeds
            found, exact = (torch.cat([x.double().flatten() for x in of]) for of in (gradients, truth[1:]))
            gradient_error[name] += ((found - exact).norm() / exact.norm()).item() / seeds
    for what, errors, allowed in (("logits", logits_error, 1e-4), ("gradient", gradient_error, 1e-6)):
        ours = errors.pop("ours")
        bench.row(case, f"error of float32 {what}", "1", ours, errors)
        if ours > max(allowed, 2 * sum(errors.values()) / len(errors)):
            raise AssertionError(f"{case}: our float32 {what} are {ours:.1e} from those of float64, the peers' only {errors}")


def multiply_adds(case: str) -> int:
    """Of the published network for one image, forward."""
    images = inputs_of(1)[0]
    if case == "evaluation":
        channels, cells, _ = SIZES[case]
        return published.multiply_adds(published.EvaluationNetwork(named("DARTS_V2"), channels, cells), images)
    supernet = supernet_of(case)
    return published.multiply_adds(published.Supernet(supernet), images, supernet.init_alphas(torch.Generator()))
