"""Figure 1: does teaching without scrutiny harm the good learners, when one of them is bad?

Three initial models V are trained by themselves, the second for a tenth of the steps. Then fresh W are trained for the same
number of steps, taught by these V, which stay as they are: by nobody, as in MKD, KDCL and AFD (each by the V before it), and as in
PAMKD, with its own lambda, a tenth of it, and the mean over pairs of groups. Architectures stand still. Accuracies are on the test images.
The paper states neither dataset nor how weak its learner 2 was; at the scale paper this takes CIFAR-100 and the search of Sec. 4.2.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pamkd.data import Batches, derived_seed, generator, halves, load_dataset
from pamkd.methods.afd import Afd
from pamkd.methods.method import SupernetLearner
from pamkd.methods.pamkd import Pamkd
from pamkd.methods.second_kdcl import SecondKdcl
from pamkd.methods.second_mkd import SecondMkd
from pamkd.methods.two_sets import TwoSets
from pamkd.report.markup import Markup
from pamkd.reproduce.drawing import bars
from pamkd.reproduce.paper import Table
from pamkd.reproduce.scales import Machine
from pamkd.reproduce.statistics import mean_std, paired
from pamkd.reproduce.units import digest
from pamkd.reproduce.write import write_files
from pamkd.runs.augmentation import augmentations
from pamkd.runs.config import SearchConfig
from pamkd.runs.logs import write_json
from pamkd.runs.numerics import check_device
from pamkd.runs.options import DatasetName
from pamkd.runs.schedule import cosine
from pamkd.spaces.darts import Darts
from pamkd.spaces.supernet import Supernet
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.transfer.pseudo_labels import PseudoLabels
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Lesson, Teaching


@dataclass
class SecondAfd(TwoSets):
    """CE_k + T^2 KL(softmax(z(V_{k-1}) / T) || softmax(z(W_k) / T)); after each step W_k's encoder imitates V_{k-1}'s maps as in `afd`."""

    temperature: float = 3.0

    def teaching(self) -> Teaching:
        def before(losses: Tensor) -> Tensor:
            return torch.eye(len(losses)).roll(-1, 1).to(losses)

        return Teaching(PseudoLabels(self.temperature), self.temperature**2, before, "train")

    def start(self, learners: Sequence[SupernetLearner]) -> None:
        self._pairs = [Afd(seed=k) for k in range(len(learners))]
        for pair, learner in zip(self._pairs, learners, strict=True):
            pair.start([learner, learner])

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        for pair in self._pairs:
            pair.begin_epoch(epoch, epochs)

    def finish_step(self, learners: Sequence[SupernetLearner], train: Batch) -> None:
        """V_{k-1} enters each step as it is; what AFD makes of it is thrown away."""
        for k, pair in enumerate(self._pairs):
            teacher = SupernetLearner.create(learners[k - 1].network, learners[k - 1].alphas.detach(), learners[k - 1].v, learners[k - 1].v)
            pair.finish_step([teacher, learners[k]], train)


LEARNERS, WEAK = 3, 1
METHODS: dict[str, Callable[[], TwoSets] | None] = {
    "nobody": None,
    "MKD": SecondMkd,
    "KDCL": SecondKdcl,
    "AFD": SecondAfd,
    "PAMKD": Pamkd,
    "PAMKD, lambda 0.05": partial(Pamkd, weight=0.05),
    "PAMKD, mean over groups": lambda: Pamkd(transfer=GroupRelativeSimilarity(reduction="mean")),
}


@dataclass(frozen=True)
class Size:
    dataset: DatasetName
    epochs: int
    channels: int
    cells: int
    seeds: tuple[int, ...]
    lr: float
    batch: int = 64
    image_size: int | None = None


SIZES = {
    "paper": Size("cifar100", 50, 16, 8, tuple(range(10)), 0.025),
    "small": Size("digits", 6, 4, 3, tuple(range(5)), 0.05),
    "smoke": Size("digits", 1, 2, 3, (0, 1), 0.05),
}


@dataclass(frozen=True)
class Trial:
    """One seed: the initial models once, then fresh weights for each method. What is done is in `path`, a JSON file."""

    size: Size
    machine: Machine
    seed: int
    path: Path

    @classmethod
    def of(cls, scale: str, machine: Machine, seed: int, root: Path) -> Trial:
        size, folder = SIZES[scale], root / "figure1"
        if size.dataset == "digits" and machine.data is not None:
            size = dataclasses.replace(size, dataset="folder", image_size=16)
            folder = root / f"figure1-{digest(str(machine.data.resolve()))}"
        return cls(size, machine, seed, folder / f"seed-{seed}.json")

    def done(self) -> dict[str, list[float]]:
        """Accuracy in % of each learner's V, under "before", and of its W, by who taught."""
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def run(self, methods: Sequence[str]) -> None:
        """What is missing of these methods. V are not kept: they come out the same each time."""
        found = self.done()
        missing = [name for name in methods if name not in found]
        if not missing:
            return
        scene = Scene.of(self)
        learners = scene.initial()
        found["before"] = [scene.accuracy(learner.v, learner.alphas) for learner in learners]
        for name in missing:
            found[name] = [scene.accuracy(learner.w, learner.alphas) for learner in scene.taught(learners, METHODS[name])]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {key: found[key] for key in ("before", *METHODS) if key in found})


def figure1(config: Any, root: Path) -> list[Path]:
    """List or run a `ReproduceConfig` of figure 1 and write figure1.md, .csv and .html; one JSON file for each seed is kept."""
    if config.space is not None:
        raise ValueError(f"figure1 trains DARTS's supernet with architectures that stand still: leave --space {config.space} away")
    methods = [name for name in METHODS if any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in config.rows)]
    if not methods:
        raise ValueError(f"no row of figure1 matches {' '.join(config.rows)}; rows are {', '.join(METHODS)}")
    check_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    trials = [Trial.of(config.scale, config.machine, seed, root) for seed in config.seeds or SIZES[config.scale].seeds]
    for trial in trials:
        if config.list:
            done = trial.done()
            for name in methods:
                print(f"{'done   ' if name in done else 'to run '} {name} seed {trial.seed}: {_said(trial.size)}")
        else:
            print(f"figure1 seed {trial.seed}: {trial.path}", file=sys.stderr, flush=True)
            trial.run(methods)
    return _write(root / "figure1", methods, {trial.seed: trial.done() for trial in trials})


def _said(size: Size) -> str:
    network = f"{size.channels} channels, {size.cells} cells"
    return f"{LEARNERS} learners on {size.dataset}, {network}, {size.epochs} epochs, batches of {size.batch}, learning rate {size.lr}"


@dataclass(frozen=True)
class Scene:
    """The data and the network of a trial."""

    seed: int
    size: Size
    device: str
    train: Batches
    valid: Batches
    test: Batches
    network: Supernet

    @classmethod
    def of(cls, trial: Trial) -> Scene:
        size, seed, machine = trial.size, trial.seed, trial.machine
        data, test = (load_dataset(size.dataset, machine.data, train=part, image_size=size.image_size) for part in (True, False))
        augment, plain = augmentations(SearchConfig(dataset=size.dataset), data)
        here: dict[str, Any] = {"seed": seed, "device": machine.device, "workers": machine.workers}
        train, valid = (
            Batches(data.subset(part), None, size.batch, stream=name, augment=augment, **here)
            for name, part in zip(("train", "valid"), halves(data.labels, seed), strict=True)
        )
        check = Batches(test, None, size.batch, stream="test", augment=plain, drop_last=False, shuffle=False, **here)
        network = Darts(channels=size.channels, cells=size.cells, classes=len(data.classes), image_channels=data.image_shape[0])
        return cls(seed, size, machine.device, train, valid, check, network)

    @property
    def total(self) -> int:
        return self.size.epochs * len(self.train)

    def lr(self, step: int) -> float:
        return cosine(self.size.lr, 0.0, step, self.total)

    def steps(self) -> Iterator[tuple[int, Batch, Batch]]:
        """Number, training batch and validation batch of every step."""
        pairs = zip(range(self.total), self.train.forever(), self.valid.forever(), strict=False)
        return ((step, Batch(*a), Batch(*b)) for step, a, b in pairs)

    def initial(self) -> list[SupernetLearner]:
        """Learners whose V are trained, the weak one's for a tenth of the steps."""
        learners = []
        for k in range(LEARNERS):
            alphas = self.network.init_alphas(generator(self.seed, "alphas", k)).to(self.device)
            v, w = (self.network.init_weights(generator(self.seed, name, k)).to(self.device) for name in "vw")
            learners.append(SupernetLearner.create(self.network, alphas, v, w))
        parts = Pamkd().parts
        for step, batch, _ in self.steps():
            parts.train_v([learner for k, learner in enumerate(learners) if k != WEAK or step < self.total // 10], batch, self.lr(step))
        return learners

    def taught(self, learners: Sequence[SupernetLearner], kind: Callable[[], TwoSets] | None) -> list[SupernetLearner]:
        """The same learners with W trained and taught by V in this way (None: by nobody)."""
        taught = [SupernetLearner.create(self.network, learner.alphas.detach().clone(), learner.v, learner.w) for learner in learners]
        method = (kind or Pamkd)()
        method.start(taught)
        for step, batch, other in self.steps():
            if not step % len(self.train):
                method.begin_epoch(step // len(self.train), self.size.epochs)
            lesson = _lesson(method.parts, taught, batch, other, derived_seed(self.seed, "groups", step)) if kind else None
            method.parts.train_w(taught, batch, other, lesson, range(LEARNERS) if lesson else (), self.lr(step))
            if isinstance(method, SecondAfd):
                method.finish_step(taught, batch)
        return taught

    @torch.no_grad()
    def accuracy(self, weights: Tensor, alphas: Tensor) -> float:
        right = count = 0
        for images, labels in self.test.epoch(0):
            right += int((self.network.forward(weights, alphas, images).logits.argmax(1) == labels).sum())
            count += len(labels)
        return 100 * right / count


def _lesson(parts: Any, learners: list[SupernetLearner], train: Batch, valid: Batch, seed: int) -> Lesson:
    context = parts.teaching.transfer.draw(train if parts.teaching.batch == "train" else valid, seed)
    with torch.no_grad():
        return Lesson.of(parts.measure(learners, train, valid, context), context)


def _write(path: Path, methods: Sequence[str], found: dict[int, dict[str, list[float]]]) -> list[Path]:
    """path.md, .csv and .html of what is done."""
    names = [f"learner {k + 1}" + (" (weak V)" if k == WEAK else "") for k in range(LEARNERS)]
    head = ["test accuracy (%)", *names, "seeds", "difference to nobody, learners 1 and 3"]
    body, drawn = [], {}
    for method in ("before", *methods):
        runs = {seed: done[method] for seed, done in found.items() if method in done}
        values = [[accuracies[k] for accuracies in runs.values()] for k in range(LEARNERS)]
        difference = "–"
        if method not in ("before", "nobody"):
            good = [{s: (d[name][0] + d[name][2]) / 2 for s, d in found.items() if name in d} for name in (method, "nobody")]
            difference = str(paired(*good))
        label = {"before": "V, before", "nobody": "W, taught by nobody"}.get(method, f"W, {method}")
        body.append([label, *map(mean_std, values), str(len(runs)), difference])
        if runs:
            drawn[method] = values
    about = " ".join(__doc__.split("\n\n")[1].split())
    note = "Mean ± sample standard deviation over seeds; p by exact sign flips, two-sided."
    chart = bars("Accuracy of each learner", "test accuracy (%)", drawn, names) if drawn else Markup()
    return write_files(path, Table("Figure 1 of the paper", about, {}, ()), head, body, [note], chart)
