"""What changes while a search runs: learners, their supernets, the optimiser of the architectures, and the sums of an epoch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pamkd.data import derived_seed, generator
from pamkd.distributed import WHOLE, Columns, Mesh
from pamkd.methods.method import Phase, StepReport, SupernetLearner
from pamkd.runs.config import SearchConfig
from pamkd.runs.cuda_graph import GraphedStep
from pamkd.runs.errors import CheckpointError
from pamkd.runs.method import method_of
from pamkd.runs.options import first_difference, fixed
from pamkd.spaces.supernet import Moment, Supernet
from pamkd.trilevel.finite import Diverged, Watch
from pamkd.trilevel.passes import Batch


class Step(NamedTuple):
    """What a search gives to a step besides its state."""

    train: Batch
    valid: Batch
    lr: float
    phase: Phase
    number: int  # counted from the start of the search: what is drawn for a step is a function of it


class SearchState:
    """Everything that changes while a search runs, and thus everything that a checkpoint holds."""

    PLACE = ("epoch", "step", "skipped", "images", "seconds")
    SUMS = ("train_loss", "train_loss_v", "flow", "flow_steps")

    def __init__(self, config: SearchConfig, supernet: Supernet, mesh: Mesh | None = None) -> None:
        """Fresh learners over a supernet in its first stage; `learners` are those that live in this process."""
        self.mesh = mesh or Mesh()
        self.config, self.method = config, method_of(config, self.mesh.rows)
        if self.mesh.world.size > 1:  # none leaves a step in whose middle others wait for it
            self.method.passes.watch = Watch(later=True, exchanges=self.mesh.rows.group.calls.total)
        self._step = GraphedStep(self.method) if config.cuda_graphs else self.method.step
        self.here = range(self.mesh.rows.group.rank, config.learners, self.mesh.rows.group.size)
        self.learners = [self._fresh(k, supernet, supernet.init_alphas(generator(config.seed, "alphas", k))) for k in self.here]
        self.method.start(self.learners)
        self.optimizer = self._adam()
        self.epoch = self.step = self.skipped = self.images = 0
        self.seconds, self.skipped_in_a_row = 0.0, 0
        self._clear()

    @property
    def stage_epochs(self) -> int:
        return self.config.epochs // self.learners[0].network.stages

    def _fresh(self, k: int, supernet: Supernet, alphas: Tensor, *names: str | int) -> SupernetLearner:
        v, w = (supernet.init_weights(generator(self.config.seed, name, k, *names)) for name in ("v", "w"))
        v = v if self.method.two_sets else torch.empty(0)
        alphas, v, w = (tensor.to(self.config.device) for tensor in (alphas, v, w))
        return SupernetLearner.create(supernet, alphas, v, w, k)

    def _adam(self) -> torch.optim.Adam:
        config = self.config
        alphas = [learner.alphas for learner in self.learners]
        return torch.optim.Adam(alphas, config.arch_lr, betas=(0.5, 0.999), weight_decay=config.arch_weight_decay)

    def begin(self, draw: str, number: int, columns: Columns = WHOLE) -> None:
        """Bring every learner's supernet to this epoch, with draws of its own that are a function of `draw` and `number`."""
        epoch = self.epoch % self.stage_epochs
        for k, learner in zip(self.here, self.learners, strict=True):
            seed = derived_seed(self.config.seed, draw, k, number)
            learner.network = learner.network.at(Moment(epoch, self.stage_epochs, seed, columns))

    def take(self, step: Step) -> StepReport:
        """One step of every learner: weights, then architectures. Raises Diverged, in all processes alike, all being again as before."""
        self.begin("step", step.number, self.mesh.columns)
        before, method = [dataclasses.replace(learner) for learner in self.learners], self.method.state()
        diverged = None
        try:
            report, hypergradient = self._step(
                self.learners,
                Batch(*(part.to(self.config.device) for part in step.train)),
                Batch(*(part.to(self.config.device) for part in step.valid)),
                lr=step.lr,
                phase=step.phase,
                seed=derived_seed(self.config.seed, "groups", step.number),
            )
        except Diverged as error:
            diverged = error
        if self.mesh.any(diverged is not None):
            self.learners[:] = before
            self.method.load(method)
            raise min(filter(None, self.mesh.world.objects(diverged)), key=lambda error: error.after)
        if hypergradient is not None:
            self.update_alphas(hypergradient)
        return report

    def update_alphas(self, hypergradient: list[Tensor]) -> None:
        for learner, grad in zip(self.learners, hypergradient, strict=True):
            penalty = learner.network.regulariser(learner.alphas)
            if penalty is not None:
                grad = grad + torch.autograd.grad(penalty, learner.alphas)[0]
            learner.alphas.grad = grad
            if self.config.arch_clip:
                torch.nn.utils.clip_grad_norm_([learner.alphas], self.config.arch_clip)
        self.optimizer.step()

    def add(self, report: StepReport, seconds: float, images: int) -> None:
        flow = torch.tensor(report.flow, dtype=torch.float64)
        for name in ("train_loss", "train_loss_v"):
            self._sums[name] += torch.tensor(getattr(report, name), dtype=torch.float64)
        self._sums["flow"] += flow
        self._sums["flow_steps"] += flow > 0
        self.seconds += seconds
        self.images += images
        self.skipped_in_a_row = 0

    def skip(self, seconds: float) -> None:
        """Count a step that changed nothing."""
        self.seconds += seconds
        self.skipped += 1
        self.skipped_in_a_row += 1

    def means(self) -> dict[str, list[Any]]:
        return {name: finite_or_none((self._sums[name] / (self.step - self.skipped)).tolist()) for name in self.SUMS}

    def next_epoch(self) -> None:
        self.epoch += 1
        self._clear()
        if self.epoch % self.stage_epochs == 0 and self.epoch < self.config.epochs:
            self._next_stage(self.epoch // self.stage_epochs)

    def _clear(self) -> None:
        count = self.config.learners
        self.step, self.skipped, self.images, self.seconds = 0, 0, 0, 0.0
        self._sums = {name: torch.zeros((count, count) if "flow" in name else (count,), dtype=torch.float64) for name in self.SUMS}

    def _next_stage(self, stage: int) -> None:
        """Every learner's supernet follows its own architecture; weights, momentum and Adam's state follow where they can."""
        adam = [self.optimizer.state[learner.alphas] for learner in self.learners]
        for i, (k, learner) in enumerate(zip(self.here, self.learners, strict=True)):
            following = learner.network.next_stage(learner.alphas.detach().cpu(), generator(self.config.seed, "stage", k, stage))
            source = following.alphas_source
            alphas = following.alphas if source is None else copied(learner.alphas.detach(), source)
            if alphas is None:
                raise ValueError(f"space {self.config.space}: next_stage gives neither alphas nor alphas_source; needed is one of them")
            adam[i] = {name: value if name == "step" else copied(value, source) for name, value in adam[i].items() if source is not None}
            if following.weights_source is None:
                self.learners[i] = self._fresh(k, following.supernet, alphas, stage)
                continue
            weights = {name: value for name, value in learner.tensors.items() if name != "alphas"}
            weights = {name: copied(value, following.weights_source) if len(value) else value for name, value in weights.items()}
            self.learners[i] = SupernetLearner(following.supernet, alphas.to(self.config.device).requires_grad_(), **weights, number=k)
        self.method.start(self.learners)
        self.optimizer = self._adam()
        for learner, state in zip(self.learners, adam, strict=True):
            if state:
                self.optimizer.state[learner.alphas] = state

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds: the learners of all processes, whose number it does not tell."""
        tensors = {f"method.{name}": value for name, value in self.method.state().items()}
        for k, learner in zip(self.here, self.learners, strict=True):
            tensors |= {f"learner.{k}.{name}": value for name, value in learner.tensors.items()}
            tensors |= {f"adam.{k}.{name}": value for name, value in self.optimizer.state[learner.alphas].items()}
        rows = self.mesh.rows.group.objects({name: value.detach().cpu() for name, value in tensors.items()})
        tensors = {f"sums.{name}": value for name, value in self._sums.items()}
        tensors |= {name: value for row in rows for name, value in row.items()}
        meta = {name: getattr(self, name) for name in self.PLACE} | {"config": fixed(self.config)}
        return tensors, meta | {"structures": self.mesh.rows.objects([learner.network.structure for learner in self.learners])}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Take over what `snapshot` gave. Raises CheckpointError for that of a run with other options or of another supernet."""
        different = first_difference(self.config, meta["config"])
        if different is not None:
            name, was, now = different
            raise CheckpointError(f"the checkpoint was written with {name} {was!r}, not {now!r}: resume with the same options")
        for name in self.PLACE:
            now = getattr(self, name)
            setattr(self, name, type(now)(meta.get(name, now)))  # earlier versions did not skip
        self._sums = {name: alike(tensors, f"sums.{name}", value) for name, value in self._sums.items()}
        for i, (k, learner) in enumerate(zip(self.here, self.learners, strict=True)):
            network = learner.network.restructured(meta["structures"][k])
            expected = self._fresh(k, network, network.init_alphas(generator(self.config.seed, "alphas", k))).tensors
            values = {name: alike(tensors, f"learner.{k}.{name}", value).to(self.config.device) for name, value in expected.items()}
            self.learners[i] = SupernetLearner(network, **values, number=k)
            self.learners[i].alphas.requires_grad_()
        self.method.start(self.learners)
        for name, value in self.method.state().items():
            alike(tensors, f"method.{name}", value)
        of_method = {name.removeprefix("method."): value for name, value in tensors.items() if name.startswith("method.")}
        self.method.load({name: value.to(self.config.device) for name, value in of_method.items()})
        self.optimizer = self._adam()
        for k, learner in zip(self.here, self.learners, strict=True):
            prefix = f"adam.{k}."
            adam = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if adam:
                for name, value in (("exp_avg", learner.alphas), ("exp_avg_sq", learner.alphas), ("step", torch.zeros(()))):
                    alike(adam, name, value)
                state = {name: value if name == "step" else value.to(self.config.device) for name, value in adam.items()}
                self.optimizer.state[learner.alphas] = state


def alike(tensors: dict[str, Tensor], name: str, expected: Tensor) -> Tensor:
    """A tensor of a checkpoint. Raises CheckpointError where it has not the shape and the dtype of what a run has there."""
    found = tensors[name]
    if found.shape != expected.shape or found.dtype != expected.dtype:
        now = f"{expected.dtype} {tuple(expected.shape)}"
        raise CheckpointError(f"the checkpoint has {name} as {found.dtype} {tuple(found.shape)}, not the {now} of this supernet")
    return found


def copied(old: Tensor, source: Tensor) -> Tensor:
    """new[i] = old.flatten()[source[i]], 0 where source is negative (gaps of a flat buffer); of the shape of `source`."""
    source = source.to(old.device)
    return torch.where(source >= 0, old.flatten()[source.clamp(min=0)], old.new_zeros(()))


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: what a phase leaves out is null."""
    if isinstance(value, list):
        return [finite_or_none(entry) for entry in value]
    return value if math.isfinite(value) else None
