"""Figure 1: does teaching without scrutiny harm the good learners, when one of them is bad?

Three initial models V are trained by themselves, the second for a tenth of the steps. Then fresh W are trained for the same
number of steps, taught by these V, which stay as they are: by nobody, as in MKD, as in KDCL, and as in PAMKD. Architectures
stand still. Accuracies are on the test images. (AFD teaches by maps of networks that are trained together: it is left out.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pamkd.data import Augment, Batches, derived_seed, generator, halves, load_dataset
from pamkd.methods.pamkd import Pamkd
from pamkd.methods.second_kdcl import SecondKdcl
from pamkd.methods.second_mkd import SecondMkd
from pamkd.methods.two_sets import TwoSets
from pamkd.reproduce.statistics import mean_std, paired
from pamkd.runs.logs import write_atomically, write_json
from pamkd.runs.schedule import cosine
from pamkd.spaces.darts import Darts
from pamkd.spaces.supernet import Supernet
from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner, Lesson

LEARNERS, WEAK = 3, 1
METHODS: dict[str, Callable[[], TwoSets] | None] = {"nobody": None, "MKD": SecondMkd, "KDCL": SecondKdcl, "PAMKD": Pamkd}


@dataclass(frozen=True)
class Size:
    epochs: int
    channels: int
    seeds: tuple[int, ...]
    batch: int = 64
    lr: float = 0.05


SIZES = {"small": Size(6, 4, tuple(range(5))), "smoke": Size(1, 2, (0, 1))}


def figure1(scale: str, out: Path, seeds: tuple[int, ...] = ()) -> list[Path]:
    """Run what is missing and write figure1.md and figure1.csv; one JSON file for each seed is kept."""
    if scale not in SIZES:
        raise ValueError(f"figure1 has the scales {', '.join(SIZES)}, not {scale}: the paper does not state its setting")
    size, found = SIZES[scale], {}
    for seed in seeds or size.seeds:
        path = out / scale / "figure1" / f"seed-{seed}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _run(size, seed))
        found[seed] = json.loads(path.read_text())
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
        learners.append(Learner.create(network, alphas, *(network.init_weights(generator(seed, name, k)) for name in "vw")))
    total = size.epochs * len(train)
    parts = Pamkd().parts
    for step, (batch, _) in enumerate(_steps(train, valid, total)):
        lr = cosine(size.lr, 0.0, step, total)
        for k, learner in enumerate(learners):
            if k != WEAK or step < total // 10:
                parts.train_v(learner, batch, lr)
    found = {"before": [_accuracy(network, learner.v, learner.alphas, check) for learner in learners]}
    for name, kind in METHODS.items():
        taught = [Learner.create(network, learner.alphas.detach().clone(), learner.v, learner.w) for learner in learners]
        parts = (kind or Pamkd)().parts
        for step, (batch, other) in enumerate(_steps(train, valid, total)):
            lesson = _lesson(parts, taught, batch, other, derived_seed(seed, "groups", step)) if kind else None
            for k, learner in enumerate(taught):
                parts.train_w(k, learner, batch, other, lesson, cosine(size.lr, 0.0, step, total))
        found[name] = [_accuracy(network, learner.w, learner.alphas, check) for learner in taught]
    return found


def _steps(train: Batches, valid: Batches, total: int) -> Any:
    pairs = zip(train.forever(), valid.forever(), strict=False)
    return ((Batch(*a), Batch(*b)) for _, (a, b) in zip(range(total), pairs, strict=False))


def _lesson(parts: Any, learners: list[Learner], train: Batch, valid: Batch, seed: int) -> Lesson:
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
    body = []
    for method in ("before", *METHODS):
        cells = [mean_std([run[method][k] for run in found.values()]) for k in range(LEARNERS)]
        difference = "–"
        if method not in ("before", "nobody"):
            good = [{seed: (run[name][0] + run[name][2]) / 2 for seed, run in found.items()} for name in (method, "nobody")]
            difference = str(paired(*good))
        body.append([{"before": "V, before", "nobody": "W, taught by nobody"}.get(method, f"W, {method}"), *cells, difference])
    lines = ["# Figure 1", "", " ".join(__doc__.split("\n\n")[1].split()), ""]
    lines += ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    lines += ["", f"Mean ± sample standard deviation over {len(found)} seeds; p by exact sign flips, two-sided."]
    paths = [folder / "figure1.md", folder / "figure1.csv"]
    write_atomically(paths[0], "\n".join(lines) + "\n")
    write_atomically(paths[1], "\n".join(",".join(f'"{cell}"' for cell in row) for row in (head, *body)) + "\n")
    return paths
