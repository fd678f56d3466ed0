"""What a search says of its steps and epochs: rows of metrics, lines for people, TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pamkd.methods.method import StepReport, SupernetLearner
from pamkd.runs.logs import Metrics
from pamkd.runs.search_state import finite_or_none
from pamkd.spaces.architecture import architecture_from_json


def description(learner: SupernetLearner) -> dict[str, Any]:
    """What an epoch's row says of a learner's architecture."""
    network, alphas = learner.network, learner.alphas.detach()
    genotype, mixtures = network.genotype(alphas), network.mixtures(alphas)
    return {
        "genotype": genotype.to_json(),
        "skips": genotype.skips,
        "entropy": entropy(mixtures),
        "mixtures": [mix.tolist() for mix in mixtures],
        "operations": [network.candidates(bool(i)) for i in range(len(network.cell_types))],
    }


def entropy(mixtures: Sequence[Tensor]) -> float:
    """Of the operations on an edge, in nats, as shares of what the edge gives to all of them; mean over all edges."""
    mixes = torch.cat(list(mixtures))
    return torch.special.entr(mixes / mixes.sum(-1, keepdim=True)).sum(-1).mean().item()


def epoch_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == "epoch"]


def stopped(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the search ended at a collapse."""
    return any(row.get("stopped") for row in rows)


def step_row(report: StepReport, epoch: int, step: int, number: int) -> dict[str, Any]:
    place = {"kind": "step", "epoch": epoch, "step": step, "global_step": number}
    return place | {name: finite_or_none(value) for name, value in vars(report).items()}


def status(report: StepReport, epoch: int, epochs: int, phase: str, speed: float) -> str:
    teaches = [f"{j}→{k} {weight:.2f}" for k, row in enumerate(report.flow) for j, weight in enumerate(row) if weight > 0]
    parts = [f"epoch {epoch + 1}/{epochs} {phase}"]
    parts += [
        f"{label} {' '.join(f'{value:.3f}' for value in values)}"
        for label, values in (("train", report.train_loss), ("valid", report.valid_loss), ("acc", report.valid_accuracy))
        if math.isfinite(values[0])
    ]
    return "  ".join([*parts, " ".join(teaches), f"{speed:.0f} img/s"])


def summary(row: dict[str, Any], epochs: int) -> str:
    learners = " | ".join(
        f"learner {k}: loss {loss:.3f} accuracy {100 * accuracy:.1f} % skips {skips}"
        for k, (loss, accuracy, skips) in enumerate(zip(row["valid_loss"], row["valid_accuracy"], row["skips"], strict=True))
    )
    return f"epoch {row['epoch'] + 1}/{epochs} {row['phase']}  {learners}  {row['images_per_s']:.0f} img/s"


def write_tensorboard(metrics: Metrics, row: dict[str, Any]) -> None:
    scalars = {"lr": row["lr"], "images_per_s": row["images_per_s"]}
    for name in ("train_loss", "train_loss_v", "valid_loss", "valid_accuracy", "skips", "entropy"):
        scalars |= {f"{name}/learner_{k}": value for k, value in enumerate(row[name]) if value is not None}
    for k, weights in enumerate(row["flow"]):
        scalars |= {f"flow/{j}_teaches_{k}": value for j, value in enumerate(weights) if j != k}
    metrics.scalars(scalars, row["epoch"])
    for k, genotype in enumerate(row["genotypes"]):
        metrics.text(f"genotype/learner_{k}", str(architecture_from_json(genotype)), row["epoch"])
