"""A step of a search as one CUDA graph: its thousands of launches become one. Never run on a GPU (docs/gpu.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pamkd.methods.method import Method, Phase, StepReport, StepTensors, SupernetLearner
from pamkd.trilevel.finite import Noted
from pamkd.trilevel.passes import Batch

WARM_UP = 2  # steps before the capture: kernels are compiled, libraries make their workspaces


@dataclass(frozen=True)
class Recorded:
    """What a step leaves; after a capture, the tensors that every replay fills anew."""

    learners: list[SupernetLearner]  # with the new weights
    found: StepTensors
    hypergradient: list[Tensor] | None
    noted: Noted


@dataclass(frozen=True)
class _Graph:
    key: tuple[Any, ...]
    tensors: list[Tensor]  # of the learners, read where they lie
    inputs: list[Tensor]  # batches and draws, copied in
    replay: Callable[[], None]
    recorded: Recorded

    def fits(self, key: tuple[Any, ...], tensors: list[Tensor]) -> bool:
        return self.key == key and all(one is other for one, other in zip(self.tensors, tensors, strict=True))


class GraphedStep:
    """`method.step` for a method of static passes, whose draws are all made before the step.

    A graph reads the learners' tensors and writes the new ones elsewhere; they are copied over only after the watched numbers of the
    step were read and found good, so a step that diverged has changed nothing. Learning rate, phase and the schedules of
    method and supernet are constants of a graph and change with the epoch, so each epoch captures its own: three steps in some
    hundreds.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._graph: _Graph | None = None

    def __call__(
        self, learners: Sequence[SupernetLearner], train: Batch, valid: Batch, *, lr: float, phase: Phase, seed: int
    ) -> tuple[StepReport, list[Tensor] | None]:
        drawn = self._method.draw(train, valid, phase=phase, learners=len(learners), seed=seed)
        values, tree = tree_flatten((train, valid, drawn))
        moments = tuple(dataclasses.replace(learner.network.moment, seed=0) for learner in learners)
        key = (lr, phase, moments, tuple(value.shape for value in values))
        tensors = [tensor for learner in learners for tensor in learner.tensors.values()]
        graph = self._graph
        if graph is None or not graph.fits(key, tensors):
            graph = self._graph = None  # its memory is free before the next one takes as much
            inputs = [value.clone() for value in values]
            train, valid, drawn = tree_unflatten(inputs, tree)
            graph = self._graph = _Graph(key, tensors, inputs, *capture(self._step(learners, train, valid, drawn, lr, phase)))
        for place, value in zip(graph.inputs, values, strict=True):
            place.copy_(value)
        graph.replay()
        graph.recorded.noted.check()
        report = graph.recorded.found.read(len(learners))
        for learner, updated in zip(learners, graph.recorded.learners, strict=True):
            for name, place in learner.tensors.items():
                if name != "alphas":
                    place.copy_(getattr(updated, name))
        return report, graph.recorded.hypergradient

    def _step(
        self, learners: Sequence[SupernetLearner], train: Batch, valid: Batch, drawn: Any, lr: float, phase: Phase
    ) -> Callable[[], Recorded]:
        def step() -> Recorded:
            twins = [dataclasses.replace(learner) for learner in learners]
            found, hypergradient = self._method.take(twins, train, valid, lr=lr, phase=phase, drawn=drawn)
            return Recorded(twins, found, hypergradient, self._method.passes.watch.take())

        return step


def capture(step: Callable[[], Recorded]) -> tuple[Callable[[], None], Recorded]:
    """Take a step a few times, then record it: what replays it, and the tensors that it fills."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # Threads that pin the next batches ask for memory meanwhile, which the default mode forbids them.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        recorded = step()
    return graph.replay, recorded
