"""Run folders as a search and an evaluation write them, through the same functions, with invented numbers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from pamkd.runs.config import SearchConfig
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.logs import Metrics, write_json
from pamkd.runs.manifest import manifest
from pamkd.runs.options import CONFIG_NAME, save_config
from pamkd.spaces.darts import Darts


def write_search(folder: Path, *, done: int | None = None, steps: int = 4, **options) -> Path:
    """A search of which `done` epochs (default: all) are over; finished if all are."""
    config = SearchConfig(**{"learners": 2, "epochs": 6, "batch_size": 16, "out": folder} | options)
    done, count = config.epochs if done is None else done, config.learners
    random = torch.Generator().manual_seed(config.seed)
    supernet = Darts(channels=2, cells=3, classes=3, image_channels=1)
    folder.mkdir(parents=True)
    save_config(config, folder / CONFIG_NAME)
    facts = {"seed": config.seed, "supernet": {"weights": supernet.layout.count, "alphas": 224}, "image": [1, 8, 8]}
    facts["dataset"] = {"name": config.dataset, "fingerprint": "sha256:0", "classes": ["a", "b", "c"], "train": 64, "valid": 64}
    write_json(folder / "manifest.json", manifest("cpu") | facts)
    metrics = Metrics(folder)
    goal = torch.randn(count, 2, 14, 8, generator=random)

    def noise() -> float:
        return 0.1 * torch.rand((), generator=random).item()

    def gaps(losses: list) -> list:
        return [[max(0.0, (a or 0.0) - (b or 0.0)) for b in losses] for a in losses]

    row = None
    for epoch in range(done):
        phase = config.phase(epoch)
        for step in range(steps):
            losses = [2.3 * math.exp(-(epoch + step / steps) / 8) + noise() for _ in range(count)]
            nothing = [None] * count
            search, w = phase == "search", phase != "warmup-v"
            metrics.write(
                {"kind": "step", "epoch": epoch, "step": step * config.log_every, "global_step": config.log_every * (epoch * steps + step)}
                | {"train_loss": losses if w else nothing, "train_loss_v": losses if count > 1 else nothing}
                | {"valid_loss": losses if search else nothing, "valid_accuracy": [math.exp(-x) for x in losses] if search else nothing}
                | {"valid_loss_v": losses if count > 1 and w else nothing, "distill_loss": [noise() for _ in losses] if w else nothing}
                | {"flow": gaps(losses)}
            )
        alphas = [(epoch + 1) / config.epochs * goal[k] for k in range(count)]
        genotypes = [supernet.genotype(a) for a in alphas]
        mixtures = [supernet.mixtures(a) for a in alphas]
        losses = [2.2 * math.exp(-epoch / 8) + noise() for _ in range(count)]
        row = {
            "kind": "epoch",
            "epoch": epoch,
            "phase": phase,
            "train_loss": losses if phase != "warmup-v" else [None] * count,
            "train_loss_v": losses if count > 1 else [None] * count,
            "valid_loss": losses,
            "valid_accuracy": [math.exp(-x) for x in losses],
            "flow": gaps(losses),
            "flow_steps": [[float(g > 0) * 0.75 for g in gap] for gap in gaps(losses)],
            "genotypes": [g.to_json() for g in genotypes],
            "skips": [g.skips for g in genotypes],
            "entropy": [torch.special.entr(torch.cat(pair)).sum(-1).mean().item() for pair in mixtures],
            "mixtures": {"normal": [n.tolist() for n, _ in mixtures], "reduce": [r.tolist() for _, r in mixtures]},
            "operations": {name: [supernet.candidates(name == "reduce")] * count for name in ("normal", "reduce")},
            "lr": 0.025,
            "seconds": 61.5,
            "images_per_s": 900.0 + 100 * noise(),
        }
        metrics.write(row)
    metrics.close()
    if done == config.epochs:
        best = min(range(count), key=row["valid_loss"].__getitem__)
        found = {"learner": best, "valid_loss": row["valid_loss"], "valid_accuracy": row["valid_accuracy"]}
        write_json(folder / "genotype.json", row["genotypes"][best])
        write_json(folder / "result.json", found | {"genotype": row["genotypes"][best], "epochs": done})
    return folder


def write_evaluation(folder: Path, genotype: dict, *, seeds=(0, 1, 2), epochs: int = 5, done: int | None = None) -> Path:
    """An evaluation of which `done` (seed, epoch) pairs (default: all) are over; finished if all are."""
    config = dataclasses.replace(EvaluateConfig(), seeds=tuple(seeds), epochs=epochs, out=folder)
    folder.mkdir(parents=True)
    save_config(config, folder / CONFIG_NAME)
    size = {"parameters": 3_349_342, "multiply_adds": 528_000_000}
    write_json(folder / "manifest.json", manifest("cpu") | {"seeds": list(seeds), "network": size})
    metrics, errors = Metrics(folder), []
    places = [(seed, epoch) for seed in seeds for epoch in range(epochs)]
    for seed, epoch in places[:done]:
        error = 0.5 * math.exp(-4 * (epoch + 1) / epochs) + 0.001 * seed
        metrics.write(
            {"kind": "epoch", "seed": seed, "epoch": epoch, "train_loss": 2 * error, "train_error": error / 2, "test_loss": 3 * error}
            | {"test_error": error, "lr": 0.025, "drop_path": 0.1, "seconds": 12.0, "images_per_s": 800.0}
        )
        errors += [error] if epoch == epochs - 1 else []
    metrics.close()
    if len(errors) == len(seeds):
        values = torch.tensor(errors, dtype=torch.float64)
        found = {"test_error": errors, "test_error_mean": values.mean().item()}
        found |= {"test_error_std": values.std().item() if len(seeds) > 1 else None, "seeds": list(seeds), "epochs": epochs}
        write_json(folder / "genotype.json", genotype)
        write_json(folder / "result.json", found | size | {"genotype": genotype})
    return folder


@pytest.fixture
def search_run(tmp_path):
    """`search_run(**options)`: writes a search into a new folder, see `write_search`."""
    return lambda name="run", **options: write_search(tmp_path / name, **options)


@pytest.fixture
def evaluation_run(tmp_path):
    return lambda folder, genotype, **options: write_evaluation(folder, genotype, **options)
