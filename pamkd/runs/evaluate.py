"""The evaluation: a genotype's network trained from scratch, once for each seed, and tested; written down so that it can be resumed."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pamkd.data import Augment, Batches, derived_seed, generator, load_dataset
from pamkd.runs import checkpoint
from pamkd.runs.config import CONFIG_NAME, FREE, read_config, require, save_config, to_dict
from pamkd.runs.errors import CheckpointError, Interrupted
from pamkd.runs.export import save_network, weights_name
from pamkd.runs.logs import Metrics, Progress, Stopwatch, write_json
from pamkd.runs.manifest import manifest
from pamkd.runs.search import CHECKPOINT, cosine, interruptible
from pamkd.spaces.evaluation_network import EvaluationNetwork, multiply_adds
from pamkd.spaces.genotype import PUBLISHED, Genotype
from pamkd.trilevel.passes import Diverged


@dataclass(frozen=True)
class EvaluateConfig:
    """Train a found or published architecture from scratch and test it."""

    run: Path | None = None
    """Run folder of a search: its genotype is trained, on its dataset where --dataset names no other."""
    genotype: str | None = None
    """A genotype file (JSON), or the name of a published genotype such as DARTS_V2."""
    dataset: Literal["digits", "cifar10", "cifar100", "imagenet", "folder"] = "digits"
    """Images to train and to test on. `folder` is any tree train/<class>/*.jpg and test/<class>/*.jpg."""
    data: Path | None = None
    """Where the dataset lies (not needed for digits)."""
    download: bool = False
    """Fetch cifar10 or cifar100 into `data` where a network exists."""
    image_size: int | None = None
    """Resize a folder's images to this height and width."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers: one 3x3 convolution, or three of stride 2 for large images."""
    channels: int = 36
    """Channels of the first cell."""
    cells: int = 20
    """Cells of the network."""
    epochs: int = 600
    """Epochs of training."""
    batch_size: int = 96
    """Images per batch."""
    lr: float = 0.025
    """Learning rate at the start."""
    schedule: Literal["cosine", "exponential"] = "cosine"
    """Learning rate over the epochs: half a cosine towards 0, or times `lr_decay` after each epoch."""
    lr_decay: float = 0.97
    """Factor per epoch of the exponential schedule."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 3e-4
    """Of all weights."""
    clip: float = 5.0
    """Largest gradient norm; 0: no clipping."""
    auxiliary: float = 0.4
    """Weight of the auxiliary head's loss; 0: no auxiliary head."""
    drop_path: float = 0.2
    """Probability of dropping a branch in the last epoch; grows linearly from 0."""
    label_smoothing: float = 0.0
    """Share of a label spread over all classes."""
    crop_padding: int | None = None
    """Random crop after padding by so many pixels; default: an eighth of the image size, 0 for digits and imagenet."""
    flip: bool | None = None
    """Random horizontal flips; default: yes, except for digits."""
    cutout: int = 16
    """Side of a square erased at random; 0: none."""
    seeds: tuple[int, ...] = (0,)
    """One training for each; everything random in it is a function of its seed."""
    out: Path | None = None
    """Folder for the results; default: <run>/evaluation, or runs/<genotype>-<dataset>."""
    resume: bool = False
    """Continue the evaluation in `out` from its last checkpoint, bit for bit on the CPU."""
    overwrite: bool = False
    """Delete an earlier evaluation in `out` first."""
    device: str = "cpu"
    """A PyTorch device."""
    threads: int = 0
    """CPU threads; 0: PyTorch's choice."""
    workers: int = 0
    """Processes that decode images of lazily loaded datasets."""
    tensorboard: bool = False
    """Also write TensorBoard files (needs the package tensorboard)."""

    def __post_init__(self) -> None:
        need = partial(require, self)
        need(self.run is None or self.genotype is None, "genotype", "either --run or --genotype, not both")
        need(self.epochs >= 1, "epochs", "1 or more")
        need(self.batch_size >= 2, "batch_size", "2 or more (BatchNorm)")
        need(self.lr > 0, "lr", "a positive number")
        need(0 < self.lr_decay <= 1, "lr_decay", "a number above 0, 1 at most")
        need(self.clip >= 0, "clip", "0 (no clipping) or more")
        need(self.auxiliary >= 0, "auxiliary", "0 or more")
        need(0 <= self.drop_path < 1, "drop_path", "0 or more and below 1")
        need(0 <= self.label_smoothing < 1, "label_smoothing", "0 or more and below 1")
        need(len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds), "seeds", "one number or several different ones")
        need(not (self.resume and self.overwrite), "resume", "either --resume or --overwrite")

    def learning_rate(self, epoch: int) -> float:
        if self.schedule == "exponential":
            return self.lr * self.lr_decay**epoch
        return cosine(self.lr, 0.0, epoch, self.epochs)


PRESETS: dict[str, EvaluateConfig] = {
    # DARTS (Liu et al. 2019), the settings under which the paper compares: 600 epochs of 36 channels and 20 cells.
    "darts-cifar10": EvaluateConfig(dataset="cifar10", data=Path("data"), crop_padding=4),
    "darts-cifar100": EvaluateConfig(dataset="cifar100", data=Path("data"), crop_padding=4),
    "darts-imagenet": EvaluateConfig(
        dataset="imagenet",
        data=Path("data"),
        stem="imagenet",
        channels=48,
        cells=14,
        epochs=250,
        batch_size=128,
        lr=0.1,
        schedule="exponential",
        weight_decay=3e-5,
        drop_path=0.0,
        label_smoothing=0.1,
        cutout=0,
    ),
    # Half a minute on two cores.
    "digits": EvaluateConfig(
        channels=8,
        cells=4,
        epochs=20,
        batch_size=64,
        lr=0.05,
        auxiliary=0.0,
        drop_path=0.0,
        label_smoothing=0.1,
        crop_padding=1,
        cutout=4,
    ),
}
PRESET_OF = {"digits": "digits", "cifar10": "darts-cifar10", "cifar100": "darts-cifar100", "imagenet": "darts-imagenet"}  # by dataset


@dataclass(frozen=True)
class EvaluationResult:
    """Test errors (shares of the test images, one per seed, after the last epoch) and the size of the network."""

    genotype: Genotype
    test_error: list[float]
    parameters: int  # without the auxiliary head
    multiply_adds: int
    network: EvaluationNetwork  # of the last seed
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

    def run(
        self,
        genotype: Genotype,
        train: Dataset,
        test: Dataset,
        *,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        plain: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        classes: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> EvaluationResult:
        """Train on one map-style dataset of (image [c, h, w], label) and test on another.

        `augment(images, generator)` is applied to training batches, `plain` to test batches. `classes` defaults to
        `len(train.classes)`. Files are written only where the configuration has `out`; `facts` go into its manifest and
        beside the weights.
        """
        config, facts = self.config, facts or {}
        shape = self._test_batches(test, plain, config.seeds[0]).epoch(0)
        image = list(next(iter(shape))[0].shape[1:])
        if classes is None:
            if not hasattr(train, "classes"):
                raise ValueError("the training dataset has no attribute `classes`: pass run(..., classes=NUMBER)")
            classes = len(train.classes)
        options = {"channels": config.channels, "cells": config.cells, "classes": classes, "image_channels": image[0]}
        options |= {"stem": config.stem, "auxiliary": config.auxiliary > 0}
        state = _State(config, genotype, options)
        size = {"parameters": state.network.num_parameters, "multiply_adds": multiply_adds(state.network, tuple(image[1:]))}
        described = facts | {"image": image}
        if config.out is not None:
            self._open_folder(config.out, described | {"network": size})
        metrics = Metrics(config.out, tensorboard=config.tensorboard)
        if config.resume:
            state.restore(*checkpoint.load(config.out / CHECKPOINT))
            metrics.rewind(lambda row: (config.seeds.index(row["seed"]), row["epoch"]) < (state.place, state.epoch))
        else:
            self._save(state)  # so that --resume works however early an evaluation is killed
        try:
            self._train(state, train, test, augment, plain, metrics, described)
        finally:
            metrics.close()
        result = EvaluationResult(genotype, state.errors, size["parameters"], size["multiply_adds"], state.network, metrics.rows)
        if config.out is not None:
            found = {"test_error": result.test_error, "test_error_mean": result.mean, "test_error_std": result.std}
            found |= {"seeds": list(config.seeds), "epochs": config.epochs} | size
            write_json(config.out / "genotype.json", genotype.to_json())
            write_json(config.out / "result.json", found | {"genotype": genotype.to_json()})
        return result

    def _test_batches(self, dataset: Dataset, plain: Callable | None, seed: int) -> Batches:
        config = self.config
        options = {"device": config.device, "workers": config.workers, "drop_last": False, "shuffle": False}
        return Batches(dataset, None, config.batch_size, seed=seed, stream="test", augment=plain, **options)

    def _train_batches(self, dataset: Dataset, augment: Callable | None, seed: int) -> Batches:
        config = self.config
        options = {"device": config.device, "workers": config.workers}
        return Batches(dataset, None, config.batch_size, seed=seed, stream="evaluation", augment=augment, **options)

    def _open_folder(self, folder: Path, facts: dict[str, Any]) -> None:
        config = self.config
        if config.resume:
            return
        if (folder / CONFIG_NAME).exists():
            if not config.overwrite:
                raise ValueError(
                    f"{folder} already holds an evaluation: continue it with --resume, replace it with --overwrite, or choose another --out"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder / CONFIG_NAME)
        write_json(folder / "manifest.json", manifest(config.device) | {"seeds": list(config.seeds)} | facts)

    def _train(
        self,
        state: _State,
        train: Dataset,
        test: Dataset,
        augment: Callable | None,
        plain: Callable | None,
        metrics: Metrics,
        facts: dict[str, Any],
    ) -> None:
        config, watch = self.config, Stopwatch()
        steps = len(self._train_batches(train, augment, config.seeds[0]))
        done = (state.place * config.epochs + state.epoch) * steps + state.step
        with Progress(len(config.seeds) * config.epochs * steps, done=done) as progress, interruptible() as interrupted:
            while state.place < len(config.seeds):
                seed = config.seeds[state.place]
                batches, test_batches = self._train_batches(train, augment, seed), self._test_batches(test, plain, seed)
                while state.epoch < config.epochs:
                    for images, labels in batches.epoch(state.epoch, state.step):
                        loss = state.train(images, labels)
                        seconds = watch.lap()
                        state.seconds += seconds
                        head = f"seed {seed}  epoch {state.epoch + 1}/{config.epochs}"
                        progress.advance(f"{head}  train {loss:.3f}  {len(labels) / seconds:.0f} img/s")
                        if interrupted:
                            self._save(state)
                            raise Interrupted(
                                f"interrupted with seed {seed} in epoch {state.epoch} step {state.step}; "
                                + (f"continue with --out {config.out} --resume" if config.out else "no folder, nothing kept")
                            )
                    row = state.row(*state.test(test_batches))
                    metrics.write(row)
                    metrics.scalars({f"{name}/seed_{seed}": row[name] for name in ("train_loss", "test_loss", "test_error")}, state.epoch)
                    progress.line(_summary(row, config.epochs))
                    watch.lap()
                    state.next_epoch(row["test_error"])
                    if state.epoch < config.epochs:
                        self._save(state)
                if config.out is not None:
                    save_network(config.out / weights_name(seed), state.network, facts | {"seed": seed, "test_error": state.errors[-1]})
                state.next_seed()
                self._save(state)

    def _save(self, state: _State) -> None:
        if self.config.out is not None:
            checkpoint.save(self.config.out / CHECKPOINT, *state.snapshot())


class _State:
    """Everything that changes while an evaluation runs, and thus everything that a checkpoint holds."""

    def __init__(self, config: EvaluateConfig, genotype: Genotype, options: dict[str, Any]) -> None:
        self.config, self.genotype, self.options = config, genotype, options
        self.place = 0  # among the seeds
        self.errors: list[float] = []  # of the seeds that are done
        self._start()

    def _start(self) -> None:
        """A fresh network by PyTorch's defaults, as a function of the seed; the global generator is not disturbed."""
        config, seed = self.config, self.config.seeds[self.place]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "evaluation network"))
            self.network = EvaluationNetwork(self.genotype, **self.options).to(config.device)
        rule = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        self.optimizer = torch.optim.SGD(self.network.parameters(), config.lr, **rule, fused=config.device.startswith(("cpu", "cuda")))
        self.epoch = 0
        self._clear()

    def _clear(self) -> None:
        self.step = self.correct = self.images = 0
        self.loss_sum = self.seconds = 0.0

    def train(self, images: Tensor, labels: Tensor) -> float:
        """One step. Raises Diverged before a weight changes when the loss is not finite."""
        config, seed = self.config, self.config.seeds[self.place]
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.epoch)
        drop_path = config.drop_path * self.epoch / config.epochs
        output = self.network.train()(images, drop_path, generator(seed, "drop-path", self.epoch, self.step))
        loss = F.cross_entropy(output.logits, labels, label_smoothing=config.label_smoothing)
        total = loss
        if output.auxiliary is not None:
            total = loss + config.auxiliary * F.cross_entropy(output.auxiliary, labels, label_smoothing=config.label_smoothing)
        value = total.item()
        if not math.isfinite(value):
            where = f"with seed {seed} in epoch {self.epoch} step {self.step}"
            raise Diverged(f"the training loss is {value} {where}: lower the learning rate or the clipping norm")
        self.optimizer.zero_grad()
        total.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        self.images += len(labels)
        self.loss_sum += loss.item() * len(labels)
        self.correct += int((output.logits.argmax(1) == labels).sum())
        return value

    @torch.no_grad()
    def test(self, batches: Batches) -> tuple[float, float]:
        """Mean loss and share of errors. Raises Diverged when the loss is not finite."""
        loss, wrong, count, seed = 0.0, 0, 0, self.config.seeds[self.place]
        self.network.eval()
        for i, (images, labels) in enumerate(batches.epoch(0)):
            logits = self.network(images, generator=generator(seed, "test", i)).logits
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            wrong += int((logits.argmax(1) != labels).sum())
            count += len(labels)
        if not math.isfinite(loss):
            raise Diverged(f"the test loss is {loss} with seed {seed} after epoch {self.epoch + 1}: lower the learning rate")
        return loss / count, wrong / count

    def row(self, test_loss: float, test_error: float) -> dict[str, Any]:
        config = self.config
        return {
            "kind": "epoch",
            "seed": config.seeds[self.place],
            "epoch": self.epoch,
            "train_loss": self.loss_sum / self.images,
            "train_error": 1 - self.correct / self.images,
            "test_loss": test_loss,
            "test_error": test_error,
            "lr": config.learning_rate(self.epoch),
            "drop_path": config.drop_path * self.epoch / config.epochs,
            "seconds": self.seconds,
            "images_per_s": self.images / self.seconds,
        }

    def next_epoch(self, test_error: float) -> None:
        self.epoch += 1
        self._clear()
        if self.epoch == self.config.epochs:
            self.errors.append(test_error)

    def next_seed(self) -> None:
        self.place += 1
        if self.place < len(self.config.seeds):
            self._start()

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, value in self.network.named_parameters():
            if value in self.optimizer.state:
                tensors[f"momentum.{name}"] = self.optimizer.state[value]["momentum_buffer"]
        counts = {name: getattr(self, name) for name in ("place", "errors", "epoch", "step", "images", "correct", "loss_sum", "seconds")}
        return tensors, {"state": counts, "config": self._fixed()}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        if "state" not in meta:
            raise CheckpointError("the checkpoint is of a search, not of an evaluation: give the folder of an evaluation (--out)")
        for name, value in self._fixed().items():
            if meta["config"].get(name) != value:
                was = meta["config"].get(name)
                raise CheckpointError(f"the checkpoint was written with {name} {was!r}, not {value!r}: resume with the same options")
        place = meta["state"]["place"]
        if 0 < place < len(self.config.seeds):
            self.place = place
            self._start()
        for name, value in meta["state"].items():
            setattr(self, name, value)
        self.network.load_state_dict({name[8:]: value for name, value in tensors.items() if name.startswith("network.")})
        for name, value in self.network.named_parameters():
            if f"momentum.{name}" in tensors:
                self.optimizer.state[value]["momentum_buffer"] = tensors[f"momentum.{name}"].to(value.device)

    def _fixed(self) -> dict[str, Any]:
        free = (*FREE, "run", "genotype")
        fixed = {name: value for name, value in to_dict(self.config).items() if name not in free}
        return fixed | {"architecture": self.genotype.to_json()}


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """`pamkd evaluate`: load dataset and genotype, train and test with each seed, write the folder and print the result."""
    if config.threads:
        torch.set_num_threads(config.threads)
    genotype = find_genotype(config)
    where = {"image_size": config.image_size, "download": config.download}
    train, test = (load_dataset(config.dataset, config.data, train=part, **where) for part in (True, False))
    digits, imagenet = config.dataset == "digits", config.dataset == "imagenet"
    padding = config.crop_padding if config.crop_padding is not None else 0 if digits or imagenet else train.image_shape[1] // 8
    flip = config.flip if config.flip is not None else not digits
    whole = {"resized_crop": imagenet, "color_jitter": imagenet}
    augment = Augment(train.mean, train.std, padding=padding, flip=flip, cutout=config.cutout, **whole)
    plain = Augment(train.mean, train.std)
    dataset = {"name": config.dataset, "fingerprint": train.fingerprint(), "test_fingerprint": test.fingerprint()}
    dataset |= {"classes": list(train.classes), "train": len(train), "test": len(test), "mean": list(train.mean), "std": list(train.std)}
    result = Evaluation(config).run(genotype, train, test, augment=augment, plain=plain, facts={"dataset": dataset})
    spread = "" if result.std is None else f" ± {100 * result.std:.2f}"
    print(f"test error {100 * result.mean:.2f}{spread} % ({len(test)} images, {_seeds(config.seeds)})")
    print(f"{result.parameters:,} parameters, {result.multiply_adds:,} multiply-adds per image")
    print(result.genotype.describe())
    if config.out is not None:
        print(f"results: {config.out}  (result.json, metrics.jsonl, genotype.json, {weights_name(config.seeds[0])})")
    return result


def find_genotype(config: EvaluateConfig) -> Genotype:
    """The genotype of the run, the file or the name. Raises ValueError saying which is missing."""
    if config.run is not None:
        path = config.run / "genotype.json"
        if not (config.run / CONFIG_NAME).is_file():
            raise ValueError(f"there is no run in {config.run} ({CONFIG_NAME} is missing): give the --out folder of a pamkd search")
        if not path.is_file():
            how = f"finish it with pamkd search --out {config.run} --resume"
            raise ValueError(f"the search in {config.run} has found no genotype yet (genotype.json is missing): {how}")
    elif config.genotype is None:
        raise ValueError("nothing to evaluate: give --run FOLDER of a search, or --genotype with a file or the name of a published one")
    elif config.genotype in PUBLISHED:
        return PUBLISHED[config.genotype]
    else:
        path = Path(config.genotype)
        if not path.is_file():
            raise ValueError(f"genotype {config.genotype!r} is neither a file nor a published one; those are {', '.join(PUBLISHED)}")
    return read_genotype(path)


def read_genotype(path: Path) -> Genotype:
    """The genotype of a JSON file. Raises ValueError naming the file when it holds none."""
    try:
        return Genotype.from_json(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def arguments(argv: Sequence[str]) -> list[str]:
    """The words of a command line, before them those that `--run` and the dataset imply.

    From the run: dataset, its place and image size; the output folder; and the preset of the dataset. What the command
    line or its `--config` file says itself is left alone, and with `--resume` all but the folder.
    """
    argv = list(argv)
    run, file = _value(argv, "--run"), _value(argv, "--config")
    said = read_config(Path(file)) if file is not None else {}

    def given(option: str) -> Any:
        return _value(argv, "--" + option.replace("_", "-")) or said.get(option)

    run = run or said.get("run")
    implied: list[str] = []
    dataset = given("dataset")
    if run is not None and "--resume" not in argv and (Path(run) / CONFIG_NAME).is_file():
        saved = read_config(Path(run) / CONFIG_NAME)
        if dataset in (None, saved.get("dataset")):
            dataset = saved.get("dataset")
            for option in ("dataset", "data", "image_size"):
                if saved.get(option) is not None and not given(option):
                    implied += ["--" + option.replace("_", "-"), str(saved[option])]
    if not given("out") and (run is not None or given("genotype")):
        out = Path(run) / "evaluation" if run is not None else Path("runs") / f"{Path(given('genotype')).stem}-{dataset or 'digits'}"
        implied += ["--out", str(out)]
    preset = PRESET_OF.get(dataset or "digits")
    if preset and file is None and "--resume" not in argv and not given("preset"):
        implied += ["--preset", preset]
    return implied + argv


def _value(argv: list[str], option: str) -> str | None:
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(option + "="):
            return word.split("=", 1)[1]
    return None


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def _summary(row: dict[str, Any], epochs: int) -> str:
    train, test = (f"{part} loss {row[part + '_loss']:.3f} error {100 * row[part + '_error']:.2f} %" for part in ("train", "test"))
    return f"seed {row['seed']}  epoch {row['epoch'] + 1}/{epochs}  {train}  {test}  {row['images_per_s']:.0f} img/s"
