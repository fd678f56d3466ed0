"""Figure 1: does teaching without scrutiny harm the good learners, when one of them is bad?

Three initial models V are trained by themselves, the second for a tenth of the steps. Then fresh W are trained for the same
number of steps, taught by these V, which stay as they are: by nobody, as in MKD, KDCL and AFD (each by the V before it), and as in
PAMKD, with its own lambda, a tenth of it, and the mean over pairs of groups. Architectures stand still. Accuracies are on the test images.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pamkd.data import Augment, Batches, derived_seed, generator, halves, load_dataset
from pamkd.methods.afd import Afd
from pamkd.methods.method import SupernetLearner
from pamkd.methods.pamkd import Pamkd
from pamkd.methods.second_kdcl import SecondKdcl
from pamkd.methods.second_mkd import SecondMkd
from pamkd.methods.two_sets import TwoSets
from pamkd.report.charts import figure, image, legend, text
from pamkd.report.charts import table as html_table
from pamkd.report.markup import Markup, el, join
from pamkd.report.page import document
from pamkd.reproduce.statistics import mean_std, paired
from pamkd.runs.logs import write_atomically, write_json
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
            return torch.eye(len(losses)).roll(-1, 1)

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
    epochs: int
    channels: int
    seeds: tuple[int, ...]
    batch: int = 64
    lr: float = 0.05


SIZES = {"small": Size(6, 4, tuple(range(5))), "smoke": Size(1, 2, (0, 1))}


def figure1(scale: str, out: Path, seeds: tuple[int, ...] = ()) -> list[Path]:
    """Run what is missing and write figure1.md, .csv and .html; one JSON file for each seed is kept."""
    if scale not in SIZES:
        raise ValueError(f"figure1 has the scales {', '.join(SIZES)}, not {scale}: the paper does not state its setting")
    size, found = SIZES[scale], {}
    for seed in seeds or size.seeds:
        path = out / scale / "figure1" / f"seed-{seed}.json"
        found[seed] = json.loads(path.read_text()) if path.is_file() else {}
        if set(found[seed]) != {"before", *METHODS}:  # not run yet, or by a version with other methods
            path.parent.mkdir(parents=True, exist_ok=True)
            found[seed] = _run(size, seed)
            write_json(path, found[seed])
    return _write(out / scale, found)


def _run(size: Size, seed: int) -> dict[str, list[float]]:
    """Accuracy in % of each learner's V, under "before", and of its W, by who taught."""
    data, test = (load_dataset("digits", None, train=part) for part in (True, False))
    augment = Augment(data.mean, data.std)
    train, valid = (
        Batches(data.subset(part), None, size.batch, seed=seed, stream=name, augment=augment)
        for name, part in zip(("train", "valid"), halves(data.labels, seed), strict=True)
    )
    check = Batches(test, None, size.batch, seed=seed, stream="test", augment=augment, drop_last=False, shuffle=False)
    network = Darts(channels=size.channels, cells=3, classes=len(data.classes), image_channels=1)
    learners = []
    for k in range(LEARNERS):
        alphas = network.init_alphas(generator(seed, "alphas", k))
        v, w = (network.init_weights(generator(seed, name, k)) for name in "vw")
        learners.append(SupernetLearner.create(network, alphas, v, w))
    total = size.epochs * len(train)
    parts = Pamkd().parts
    for step, (batch, _) in enumerate(_steps(train, valid, total)):
        trained = [learner for k, learner in enumerate(learners) if k != WEAK or step < total // 10]
        parts.train_v(trained, batch, cosine(size.lr, 0.0, step, total))
    found = {"before": [_accuracy(network, learner.v, learner.alphas, check) for learner in learners]}
    for name, kind in METHODS.items():
        taught = [SupernetLearner.create(network, learner.alphas.detach().clone(), learner.v, learner.w) for learner in learners]
        method = (kind or Pamkd)()
        method.start(taught)
        parts = method.parts
        for step, (batch, other) in enumerate(_steps(train, valid, total)):
            if not step % len(train):
                method.begin_epoch(step // len(train), size.epochs)
            lesson = _lesson(parts, taught, batch, other, derived_seed(seed, "groups", step)) if kind else None
            parts.train_w(taught, batch, other, lesson, range(LEARNERS) if lesson else (), cosine(size.lr, 0.0, step, total))
            if isinstance(method, SecondAfd):
                method.finish_step(taught, batch)
        found[name] = [_accuracy(network, learner.w, learner.alphas, check) for learner in taught]
    return found


def _steps(train: Batches, valid: Batches, total: int) -> Any:
    pairs = zip(train.forever(), valid.forever(), strict=False)
    return ((Batch(*a), Batch(*b)) for _, (a, b) in zip(range(total), pairs, strict=False))


def _lesson(parts: Any, learners: list[SupernetLearner], train: Batch, valid: Batch, seed: int) -> Lesson:
    context = parts.teaching.transfer.draw(train if parts.teaching.batch == "train" else valid, seed)
    with torch.no_grad():
        return Lesson.of(parts.measure(learners, train, valid, context), context)


@torch.no_grad()
def _accuracy(network: Supernet, weights: Tensor, alphas: Tensor, batches: Batches) -> float:
    right = count = 0
    for images, labels in batches.epoch(0):
        right += int((network.forward(weights, alphas, images).logits.argmax(1) == labels).sum())
        count += len(labels)
    return 100 * right / count


def _write(folder: Path, found: dict[int, dict[str, list[float]]]) -> list[Path]:
    names = [f"learner {k + 1}" + (" (weak V)" if k == WEAK else "") for k in range(LEARNERS)]
    head = ["test accuracy (%)", *names, "difference to nobody, learners 1 and 3"]
    rows = []
    for method in ("before", *METHODS):
        cells = [mean_std([run[method][k] for run in found.values()]) for k in range(LEARNERS)]
        difference = "–"
        if method not in ("before", "nobody"):
            good = [{seed: (run[name][0] + run[name][2]) / 2 for seed, run in found.items()} for name in (method, "nobody")]
            difference = str(paired(*good))
        label = {"before": "V, before", "nobody": "W, taught by nobody"}.get(method, f"W, {method}")
        rows.append((method, [label, *cells, difference]))
    body = [row for _, row in rows]
    lines = ["# Figure 1", "", " ".join(__doc__.split("\n\n")[1].split()), ""]
    lines += ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    lines += ["", f"Mean ± sample standard deviation over {len(found)} seeds; p by exact sign flips, two-sided."]
    paths = [folder / f"figure1.{suffix}" for suffix in ("md", "csv", "html")]
    write_atomically(paths[0], "\n".join(lines) + "\n")
    write_atomically(paths[1], "\n".join(",".join(f'"{cell}"' for cell in row) for row in (head, *body)) + "\n")
    means = {row[0]: [statistics.mean(run[method][k] for run in found.values()) for k in range(LEARNERS)] for method, row in rows}
    content = join(_bars(means, names), html_table(head, body))
    about = "A weak model among those that teach"
    write_atomically(paths[2], document("Figure 1 of the paper", about, [("bars", about, content)], "pamkd reproduce."))
    return paths


def _bars(means: dict[str, list[float]], learners: Sequence[str]) -> Markup:
    """Accuracy of each learner, from 0 to 100 %, a group of bars for each row of the table."""
    width, height, floor, left = 760, 260, 220, 36
    step = (width - left) / len(means)
    parts = [text(2, 14, "test accuracy (%)", class_="unit")]
    for mark in range(0, 101, 20):
        y = floor - 2 * mark * 0.95
        parts += [el("path", d=f"M{left} {y:.1f}H{width}", class_="rule"), text(left - 6, y + 4, mark, text_anchor="end")]
    for i, (name, values) in enumerate(means.items()):
        for k, value in enumerate(values):
            x, bar = left + step * (i + 0.15) + k * step * 0.24, 2 * value * 0.95
            parts.append(el("path", d=f"M{x:.1f} {floor}v{-bar:.1f}h{step * 0.2:.1f}v{bar:.1f}z", class_=f"dot c{k}"))
        parts.append(text(left + step * (i + 0.5), floor + 16 + 14 * (i % 2), name, text_anchor="middle"))
    said = "; ".join(f"{name}: {', '.join(f'{value:.1f}' for value in values)}" for name, values in means.items())
    svg = image(width, height, "Figure 1", f"{said}.", *parts)
    return figure("Accuracy of each learner", legend([(name, k) for k, name in enumerate(learners)]), svg)
