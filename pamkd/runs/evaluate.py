"""The evaluation: a genotype's network trained from scratch, once for each seed, and tested; written down so that it can be resumed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from pamkd.data import Augmentation, Batches, load_dataset, number_of_classes
from pamkd.distributed import Mesh, is_main_process, open_mesh
from pamkd.runs import checkpoint
from pamkd.runs.augmentation import augmentations
from pamkd.runs.evaluate_config import EvaluateConfig, find_genotype
from pamkd.runs.evaluate_state import EvaluationState
from pamkd.runs.export import save_network, weights_name
from pamkd.runs.folder import CHECKPOINT, continued, open_folder
from pamkd.runs.interrupt import interruptible
from pamkd.runs.logs import Metrics, Progress, Stopwatch, write_json
from pamkd.runs.numerics import check_device, with_numerics
from pamkd.spaces.architecture import Architecture, Network
from pamkd.spaces.evaluation_network import multiply_adds

IN_ORDER = {"drop_last": False, "shuffle": False}  # every test image once


@dataclass(frozen=True)
class EvaluationResult:
    """Test errors (shares of the test images, one per seed, after the last epoch) and the size of the network."""

    genotype: Architecture
    test_error: list[float]
    parameters: int  # without the auxiliary head
    multiply_adds: int
    network: Network  # of the last seed
    history: list[dict[str, Any]]  # the rows of metrics.jsonl

    @property
    def mean(self) -> float:
        return statistics.mean(self.test_error)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for one seed."""
        return statistics.stdev(self.test_error) if len(self.test_error) > 1 else None


class Evaluation:
    """An evaluation with the options of `EvaluateConfig`: `Evaluation(epochs=100).run(genotype, train, test).mean`."""

    def __init__(self, config: EvaluateConfig | None = None, **options: Any) -> None:
        if config is not None and options:
            raise TypeError("Evaluation takes an EvaluateConfig or its options, not both")
        self.config = config or EvaluateConfig(**options)

    @with_numerics
    def run(
        self,
        genotype: Architecture,
        train: Dataset[Any],
        test: Dataset[Any],
        *,
        augment: Augmentation | None = None,
        plain: Augmentation | None = None,
        classes: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> EvaluationResult:
        """Train on one map-style dataset of (image [c, h, w], label) and test on another.

        `augment(images, generator)` is applied to training batches, `plain` to test batches. `classes` defaults to
        `len(train.classes)`. Files are written only where the configuration has `out`; `facts` go into its manifest and
        beside the weights. Several processes (`pamkd.distributed.open_mesh`) share each batch.
        """
        with open_mesh(1, device=self.config.device, synchronised=self.config.sync_batch_norm) as mesh:
            return self._run(mesh, genotype, train, test, augment, plain, number_of_classes(train, classes), facts or {})

    def _run(
        self,
        mesh: Mesh,
        genotype: Architecture,
        train: Dataset[Any],
        test: Dataset[Any],
        augment: Augmentation | None,
        plain: Augmentation | None,
        classes: int,
        facts: dict[str, Any],
    ) -> EvaluationResult:
        config = self.config = continued(self.config, mesh)
        columns = mesh.columns.group.size
        config.require(config.batch_size % columns == 0, "batch_size", f"a multiple of {columns}, the processes that share each batch")
        images, _ = next(iter(self._batches(test, "test", classes, plain, config.seeds[0], **IN_ORDER).epoch(0)))
        channels, height, width = images.shape[1:]
        options: dict[str, Any] = {"channels": config.channels, "cells": config.cells, "classes": classes, "image_channels": channels}
        options |= {"stem": config.stem, "auxiliary": config.auxiliary > 0, "auxiliary_norm": config.auxiliary_norm}
        state = EvaluationState(config, genotype, options, mesh)
        size = {"parameters": state.network.num_parameters, "multiply_adds": multiply_adds(state.network, (height, width))}
        described = facts | {"image": [channels, height, width]}
        if config.out is not None and not config.resume and mesh.main:
            open_folder(config, {"seeds": list(config.seeds)} | described | {"network": size})
        metrics = Metrics(config.out, tensorboard=config.tensorboard, writes=mesh.main)
        if config.resume:
            checkpoint.restore(config.folder / CHECKPOINT, state.restore)
            metrics.rewind(lambda row: (config.seeds.index(row["seed"]), row["epoch"]) < (state.place, state.epoch))
            mesh.wait()  # all have read what the main process now writes on
        else:
            self._save(state)  # so that --resume works however early an evaluation is killed
        try:
            self._train(state, train, test, augment, plain, metrics, described)
        finally:
            metrics.close()
        result = EvaluationResult(genotype, state.errors, size["parameters"], size["multiply_adds"], state.network, metrics.rows)
        if config.out is not None and mesh.main:
            found = {"test_error": result.test_error, "test_error_mean": result.mean, "test_error_std": result.std}
            found |= {"seeds": list(config.seeds), "epochs": config.epochs} | size
            write_json(config.out / "genotype.json", genotype.to_json())
            write_json(config.out / "result.json", found | {"genotype": genotype.to_json()})
        return result

    def _batches(self, dataset: Dataset[Any], stream: str, classes: int, augment: Augmentation | None, seed: int, **order: Any) -> Batches:
        config = self.config
        made: dict[str, Any] = {"classes": classes, "augment": augment, "device": config.device, "workers": config.workers}
        return Batches(dataset, None, config.batch_size, seed=seed, stream=stream, **made, **order)

    def _train(
        self,
        state: EvaluationState,
        train: Dataset[Any],
        test: Dataset[Any],
        augment: Augmentation | None,
        plain: Augmentation | None,
        metrics: Metrics,
        facts: dict[str, Any],
    ) -> None:
        config, watch, classes, mesh = self.config, Stopwatch(), state.options["classes"], state.mesh
        steps = len(self._batches(train, "evaluation", classes, augment, config.seeds[0], columns=mesh.columns))
        done, total = (state.place * config.epochs + state.epoch) * steps + state.step, len(config.seeds) * config.epochs * steps
        with Progress(total, done=done, shown=mesh.main) as progress, interruptible(config.seconds) as stop:
            while state.place < len(config.seeds):
                seed = config.seeds[state.place]
                batches = self._batches(train, "evaluation", classes, augment, seed, columns=mesh.columns)
                test_batches = self._batches(test, "test", classes, plain, seed, **IN_ORDER)
                while state.epoch < config.epochs:
                    for images, labels in batches.epoch(state.epoch, state.step):
                        loss = state.train(images, labels)
                        seconds = watch.lap()
                        state.seconds += seconds
                        head = f"seed {seed}  epoch {state.epoch + 1}/{config.epochs}"
                        progress.advance(f"{head}  train {loss:.3f}  {len(labels) / seconds:.0f} img/s")
                        if mesh.any(bool(stop)):
                            self._save(state)
                            raise stop.interruption(f"with seed {seed} in epoch {state.epoch + 1} step {state.step}", config.out)
                    row = state.row(state.test(test_batches))
                    metrics.write(row)
                    metrics.scalars({f"{name}/seed_{seed}": row[name] for name in ("train_loss", "test_loss", "test_error")}, state.epoch)
                    progress.line(_summary(row, config.epochs))
                    watch.lap()
                    state.next_epoch(row["test_error"])
                    if state.epoch < config.epochs:
                        self._save(state)
                if config.out is not None and mesh.main:
                    save_network(config.out / weights_name(seed), state.network, facts | {"seed": seed, "test_error": state.errors[-1]})
                state.next_seed()
                self._save(state)

    def _save(self, state: EvaluationState) -> None:
        if self.config.out is not None and state.mesh.main:
            checkpoint.save(self.config.out / CHECKPOINT, *state.snapshot())


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """`pamkd evaluate`: load dataset and genotype, train and test with each seed, write the folder and print the result."""
    check_device(config.device)
    genotype = find_genotype(config)
    train, test = (
        load_dataset(config.dataset, config.data, train=part, image_size=config.image_size, download=config.download)
        for part in (True, False)
    )
    augment, plain = augmentations(config, train, color_jitter=True)
    dataset: dict[str, Any] = {"name": config.dataset, "fingerprint": train.fingerprint(), "test_fingerprint": test.fingerprint()}
    dataset |= {"classes": list(train.classes), "train": len(train), "test": len(test), "mean": list(train.mean), "std": list(train.std)}
    result = Evaluation(config).run(genotype, train, test, augment=augment, plain=plain, facts={"dataset": dataset})
    spread = "" if result.std is None else f" ± {100 * result.std:.2f}"
    if not is_main_process():
        return result
    print(f"test error {100 * result.mean:.2f}{spread} % ({len(test)} images, {_seeds(config.seeds)})")
    print(f"{result.parameters:,} parameters, {result.multiply_adds:,} multiply-adds per image")
    print(result.genotype.describe())
    if config.out is not None:
        print(f"results: {config.out}  (result.json, metrics.jsonl, genotype.json, {weights_name(config.seeds[0])})")
    return result


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def _summary(row: dict[str, Any], epochs: int) -> str:
    train, test = (f"{part} loss {row[part + '_loss']:.3f} error {100 * row[part + '_error']:.2f} %" for part in ("train", "test"))
    return f"seed {row['seed']}  epoch {row['epoch'] + 1}/{epochs}  {train}  {test}  {row['images_per_s']:.0f} img/s"
