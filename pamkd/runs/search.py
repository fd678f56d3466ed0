"""The search: epochs of tri-level steps over two halves of the training data, written down so that it can be resumed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pamkd.data import Augmentation, Batches, generator, number_of_classes
from pamkd.distributed import Mesh, open_mesh
from pamkd.methods.method import SupernetLearner
from pamkd.runs import bundle, checkpoint
from pamkd.runs.collapse import judge
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import OptionError
from pamkd.runs.folder import CHECKPOINT, continued, open_folder
from pamkd.runs.interrupt import interruptible
from pamkd.runs.logs import Metrics, Progress, Stopwatch, write_json
from pamkd.runs.memory import warn_if_short
from pamkd.runs.numerics import check_device, with_numerics
from pamkd.runs.options import CONFIG_NAME, first_difference, read_config
from pamkd.runs.schedule import cosine
from pamkd.runs.search_data import load_halves
from pamkd.runs.search_rows import description, epoch_rows, status, step_row, stopped, summary, write_tensorboard
from pamkd.runs.search_state import SearchState, Step
from pamkd.spaces import SPACES
from pamkd.spaces.architecture import Architecture, architecture_from_json
from pamkd.spaces.supernet import Supernet
from pamkd.trilevel.curvature import architecture_eigenvalue
from pamkd.trilevel.finite import Diverged
from pamkd.trilevel.passes import Batch

MAX_SKIPPED = 10  # steps in a row: a search that is lost shall end


@dataclass(frozen=True)
class SearchResult:
    """What a search found. `learner` is the one with the lowest validation loss of W; its genotype is retained."""

    genotype: Architecture
    learner: int
    valid_loss: list[float]
    valid_accuracy: list[float]
    genotypes: list[Architecture]
    learners: list[SupernetLearner]  # of this process, each with its supernet, `learner.network`
    history: list[dict[str, Any]]  # the rows of metrics.jsonl


class Search:
    """A search with the options of `SearchConfig`: `Search(learners=2, epochs=10).run(train, valid).genotype`."""

    def __init__(self, config: SearchConfig | None = None, **options: Any) -> None:
        if config is not None and options:
            raise TypeError("Search takes a SearchConfig or its options, not both")
        self.config = config or SearchConfig(**options)

    @with_numerics
    def run(
        self,
        train: Dataset[Any],
        valid: Dataset[Any],
        *,
        augment: Augmentation | None = None,
        plain: Augmentation | None = None,
        classes: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> SearchResult:
        """Search on two map-style datasets of (image [c, h, w], label): `train` trains weights, `valid` architectures.

        `augment(images, generator)` is applied to batches of both, `plain` to the batches of the validation pass at an
        epoch's end. `classes` defaults to `len(train.classes)`. Files are written only where the configuration has
        `out`; `facts` go into its manifest.

        In several processes (`pamkd.distributed.open_mesh`) each holds its learners and reads its part of their batches.
        """
        config = self.config
        with open_mesh(
            config.learners, learner_rows=config.learner_rows, device=config.device, synchronised=config.sync_batch_norm
        ) as mesh:
            return self._run(mesh, train, valid, augment, plain, number_of_classes(train, classes), facts or {})

    def _run(
        self,
        mesh: Mesh,
        train: Dataset[Any],
        valid: Dataset[Any],
        augment: Augmentation | None,
        plain: Augmentation | None,
        classes: int,
        facts: dict[str, Any],
    ) -> SearchResult:
        config = self.config = continued(self.config, mesh)
        _check_mesh(config, mesh)
        train_batches = self._batches(train, "train", config.batch_size, classes, augment, columns=mesh.columns)
        valid_batches = self._batches(valid, "valid", config.batch_size, classes, augment, columns=mesh.columns)
        check_batches = self._validation_batches(valid, classes, plain)
        images, _ = next(iter(check_batches.epoch(0)))
        supernet = build_supernet(config, classes, images.shape[1])
        if mesh.world.size == 1:
            warn_if_short(config, supernet, images[:2])
        state = SearchState(config, supernet, mesh)
        folder = config.out
        if folder is not None:
            if config.resume:
                _check_same(config, folder)
            elif mesh.main:
                processes = {"learner_rows": mesh.rows.group.size, "data_columns": mesh.columns.group.size}
                open_folder(config, self._facts(supernet, images) | {"processes": processes} | facts)
        metrics = Metrics(folder, tensorboard=config.tensorboard, writes=mesh.main)
        if config.resume:
            checkpoint.restore(config.folder / CHECKPOINT, state.restore)
            metrics.rewind(lambda row: (row["epoch"], row.get("step", math.inf)) < (state.epoch, state.step))
            mesh.wait()  # all have read what the main process now writes on
        else:
            self._save(state)  # so that --resume works however early a run is killed
        try:
            self._search(state, train_batches, valid_batches, check_batches, metrics)
        finally:
            metrics.close()
        return self._finish(state, check_batches, metrics, folder)

    def _batches(self, dataset: Dataset[Any], stream: str, size: int, classes: int, augment: Augmentation | None, **order: Any) -> Batches:
        config = self.config
        made: dict[str, Any] = {"classes": classes, "augment": augment, "device": config.device, "workers": config.workers}
        return Batches(dataset, None, size, seed=config.seed, stream=stream, **made, **order)

    def _validation_batches(self, dataset: Dataset[Any], classes: int, plain: Augmentation | None) -> Batches:
        """All images once, in batches of nearly equal size and one fixed random order: BatchNorm takes its statistics from a batch,
        and those of one class would be others."""
        count = len(dataset) if isinstance(dataset, Sized) else 0
        size = math.ceil(count / max(1, math.ceil(count / self.config.batch_size)))
        return self._batches(dataset, "check", size, classes, plain, drop_last=False)

    def _facts(self, supernet: Supernet, images: Tensor) -> dict[str, Any]:
        alphas = supernet.init_alphas(generator(self.config.seed, "alphas")).numel()
        sizes = {"weights": supernet.layout.count, "alphas": alphas}
        return {"seed": self.config.seed, "supernet": sizes, "image": list(images.shape[1:])}

    def _search(self, state: SearchState, train: Batches, valid: Batches, check: Batches, metrics: Metrics) -> None:
        config = self.config
        method, mesh, steps, watch = state.method, state.mesh, len(train), Stopwatch()
        total = config.epochs * steps
        with Progress(total, done=state.epoch * steps + state.step, shown=mesh.main) as progress, interruptible(config.seconds) as stop:
            valid_stream = valid.forever(state.epoch * steps + state.step)
            while state.epoch < config.epochs and not stopped(metrics.rows):
                epoch, phase = state.epoch, config.phase(state.epoch % state.stage_epochs)
                lr = self._learning_rate(state)
                method.begin_epoch(epoch, config.epochs)
                if state.step == 0:
                    method.measure(state.learners, lambda: check.epoch(0))
                for batch in train.epoch(epoch, state.step):
                    number = epoch * steps + state.step
                    inputs = Step(Batch(*batch), Batch(*next(valid_stream)), lr, phase, number)
                    try:
                        report = state.take(inputs)
                    except Diverged as error:
                        self._diverged(state, inputs, error, metrics, progress)
                        state.skip(watch.lap())
                    else:
                        seconds = watch.lap()
                        state.add(report, seconds, len(batch[1]))
                        if state.step % config.log_every == 0:
                            metrics.write(step_row(report, epoch, state.step, number))
                        progress.advance(status(report, epoch, config.epochs, phase, len(batch[1]) / seconds))
                    state.step += 1
                    if mesh.any(bool(stop)):
                        self._save(state)
                        raise stop.interruption(f"in epoch {epoch + 1} step {state.step}", config.out)
                row = self._epoch_row(state, check, phase, lr)
                collapse = judge([*epoch_rows(metrics.rows), row]) if phase == "search" else None
                if collapse is not None:
                    row |= {"collapse": collapse.reason, "good_epoch": collapse.good_epoch, "stopped": config.stop_on_collapse}
                metrics.write(row)
                write_tensorboard(metrics, row)
                progress.line(summary(row, config.epochs))
                if collapse is not None:
                    progress.line(f"collapse: {collapse.reason}; the last good epoch was {collapse.good_epoch + 1}")
                watch.lap()
                state.next_epoch()
                self._save(state)

    def _diverged(self, state: SearchState, step: Step, error: Diverged, metrics: Metrics, progress: Progress) -> None:
        """Keep the step in a bundle and note that it is skipped. Raises Diverged where the search shall not or cannot go on."""
        config, place = self.config, f"epoch {state.epoch + 1} step {state.step}"
        why = f"{place}: {error}"
        if config.out is not None:
            bundle.save(config.out / bundle.BUNDLE, state, step, str(error))
            why += f" (pamkd replay {config.out / bundle.BUNDLE} takes the step again)"
        if config.on_divergence == "stop":
            raise Diverged(why) from error
        if state.skipped_in_a_row == MAX_SKIPPED:
            raise Diverged(f"{MAX_SKIPPED} steps were skipped one after the other and the next one is no better; {why}") from error
        metrics.write({"kind": "skip", "epoch": state.epoch, "step": state.step, "global_step": step.number, "why": str(error)})
        progress.line(f"skipped {why}")

    def _save(self, state: SearchState) -> None:
        if self.config.out is not None:
            snapshot = state.snapshot()
            if state.mesh.main:
                checkpoint.save(self.config.out / CHECKPOINT, *snapshot)

    def _epoch_row(self, state: SearchState, check: Batches, phase: str, lr: float) -> dict[str, Any]:
        measured = validate(state, check)
        for k, (loss, _) in enumerate(measured):
            if not math.isfinite(loss):
                raise Diverged(f"the validation loss of learner {k} is {loss} after epoch {state.epoch + 1}: lower the learning rate")
        means, rows = state.means(), state.mesh.rows
        learners = rows.objects([description(learner) for learner in state.learners])
        cell_types = state.learners[0].network.cell_types
        every = self.config.eigenvalue_every
        eigenvalues = None
        if every and phase == "search" and (state.epoch % every == 0 or state.epoch == self.config.epochs - 1):
            batch = Batch(*next(iter(check.epoch(0))))
            decay = self.config.arch_weight_decay  # which Adam adds to the loss
            eigenvalues = rows.objects([architecture_eigenvalue(learner, batch) + decay for learner in state.learners])
        return {
            "kind": "epoch",
            "epoch": state.epoch,
            "phase": phase,
            "skipped": state.skipped,
            "train_loss": means["train_loss"],
            "train_loss_v": means["train_loss_v"],
            "valid_loss": [loss for loss, _ in measured],
            "valid_accuracy": [accuracy for _, accuracy in measured],
            "flow": means["flow"],
            "flow_steps": means["flow_steps"],
            "genotypes": [learner["genotype"] for learner in learners],
            "skips": [learner["skips"] for learner in learners],
            "entropy": [learner["entropy"] for learner in learners],
            "eigenvalues": eigenvalues,
            "mixtures": {name: [learner["mixtures"][i] for learner in learners] for i, name in enumerate(cell_types)},
            "operations": {name: [learner["operations"][i] for learner in learners] for i, name in enumerate(cell_types)},
            "lr": lr,
            "seconds": state.seconds,
            "images_per_s": state.images / state.seconds,
        }

    def _learning_rate(self, state: SearchState) -> float:
        config = self.config
        if state.epoch < config.lr_warmup_epochs:
            return config.lr * (state.epoch + 1) / config.lr_warmup_epochs
        if state.learners[0].network.restarts:
            return cosine(config.lr, config.lr_min, state.epoch % state.stage_epochs, state.stage_epochs)
        return cosine(config.lr, config.lr_min, state.epoch, config.epochs)

    def _finish(self, state: SearchState, check: Batches, metrics: Metrics, folder: Path | None) -> SearchResult:
        rows = epoch_rows(metrics.rows)
        kept = rows[-1]["good_epoch"] if stopped(rows) else rows[-1]["epoch"]
        last = next(row for row in rows if row["epoch"] == kept)
        genotypes = [architecture_from_json(data) for data in last["genotypes"]]
        best = state.method.retained(last["valid_loss"])
        result = SearchResult(genotypes[best], best, last["valid_loss"], last["valid_accuracy"], genotypes, state.learners, metrics.rows)
        found = {"learner": best, "valid_loss": result.valid_loss, "valid_accuracy": result.valid_accuracy}
        found |= {} if folder is None else state.method.summary(state.learners, lambda: check.epoch(0))
        if folder is not None and state.mesh.main:
            write_json(folder / "genotype.json", result.genotype.to_json())
            write_json(folder / "result.json", found | {"genotype": result.genotype.to_json(), "epochs": state.epoch})
        return result


def default_out(config: SearchConfig) -> SearchConfig:
    """The configuration with the run folder that the command line takes where none is given."""
    if config.out:
        return config
    method = "" if config.method == "pamkd" else f"{config.method}-"
    return dataclasses.replace(config, out=Path("runs") / f"{method}{config.space}-{config.dataset}-{config.seed}")


def search(config: SearchConfig) -> SearchResult:
    """`pamkd search`: load the dataset, cut its training half, run, and write the run folder. The test set is not read."""
    check_device(config.device)
    data = load_halves(config, config.seed, config.train_portion)
    return Search(config).run(data.train, data.valid, augment=data.augment, plain=data.plain, facts=data.facts)


def build_supernet(config: SearchConfig, classes: int, image_channels: int) -> Supernet:
    """The space's supernet in its first stage. Raises OptionError where the space cannot be searched like this."""
    options = config.options_of_the_space()
    sizes = {"channels": config.channels, "cells": config.cells, "classes": classes, "image_channels": image_channels}
    try:
        supernet = SPACES[config.space](**sizes, **options)
    except TypeError as error:
        raise OptionError(f"space_options are {list(config.space_options)}: space {config.space} does not take them ({error})") from error
    drawing = "one that draws nothing within a step with --cuda-graphs"
    config.require(not (config.cuda_graphs and supernet.stochastic), "space", drawing)
    alone = "another one with --stacked True: passes of this one draw numbers, each learner its own"
    config.require(not (config.stacked and supernet.stochastic), "space", alone)
    alike = config.transfer != "l2w" or supernet.stages == 1 or config.learners == 1
    config.require(alike, "transfer", f"another one for space {config.space}: learners differ in size after its first stage")
    config.require(config.epochs % supernet.stages == 0, "epochs", f"a multiple of {supernet.stages}, the stages of space {config.space}")
    warmup = config.warmup_v_epochs + config.warmup_w_epochs
    config.require(warmup < config.epochs // supernet.stages, "epochs", "more epochs in each stage than both warm-ups take together")
    return supernet


def validate(state: SearchState, batches: Batches) -> list[tuple[float, float]]:
    """Mean loss and accuracy of every learner's W over the batches, BatchNorm on each batch's own statistics.

    Columns take whole batches in turn.
    """
    columns = state.mesh.columns.group
    sums = torch.zeros(len(state.learners), 3, dtype=torch.float64)  # loss, correct, images
    with torch.no_grad():
        for i, (images, labels) in enumerate(batches.epoch(0, min(columns.rank, len(batches)), columns.size)):
            state.begin("check", columns.rank + i * columns.size)
            for learner, line in zip(state.learners, sums, strict=True):
                logits = learner.network.forward(learner.w, learner.alphas, images).logits
                loss = F.cross_entropy(logits, labels, reduction="sum")
                correct = (logits.argmax(1) == labels).sum()
                line += torch.tensor([loss.item(), correct.item(), len(labels)], dtype=torch.float64)
    (sums,) = state.mesh.rows.gather([[line] for line in columns.all_reduce(sums)])
    return [(loss / count, correct / count) for loss, correct, count in sums.tolist()]


def _check_mesh(config: SearchConfig, mesh: Mesh) -> None:
    """Raises OptionError where these options cannot be searched with in so many processes."""
    columns, processes = mesh.columns.group.size, mesh.world.size
    config.require(config.batch_size % columns == 0, "batch_size", f"a multiple of {columns}, the columns that share each batch")
    one = "with several processes: it runs in one"
    config.require(processes == 1 or config.method != "cream", "method", f"another one {one}")
    config.require(processes == 1 or config.hypergradient == "finite", "hypergradient", f"finite {one}")
    config.require(processes == 1 or not config.cuda_graphs, "cuda_graphs", f"False {one}")
    config.require(not (columns > 1 and config.sync_batch_norm and config.stacked), "stacked", "False or none with --sync-batch-norm")


def _check_same(config: SearchConfig, folder: Path) -> None:
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"--resume: there is no run in {folder} ({CONFIG_NAME} is missing); start it without --resume")
    different = first_difference(config, read_config(folder / CONFIG_NAME))
    if different is not None:
        name, was, value = different
        raise ValueError(f"--resume: the run in {folder} has {name} {was!r}, not {value!r}; resume with the same options")
