"""Loss, accuracy and error over the epochs."""

from __future__ import annotations

import math
from typing import Any

from pamkd.report.charts import Line, Point, line_chart, thin
from pamkd.report.markup import Markup, el, join
from pamkd.report.run_folder import Run, number, numbers

POINTS = 150  # of a line of single steps


def search_curves(run: Run) -> Markup:
    if not run.epochs and not run.steps:
        return join()
    mutual, end, marks = run.learners > 1, epoch_end(run), phase_marks(run)
    learners = range(run.learners)

    def chart(title: str, unit: str, name: str, *, scale: float = 1.0, steps: bool = True, **more: Any) -> Markup:
        lines = [Line(f"learner {k}", by_epoch(run, name, k, scale), k) for k in learners]
        if steps:
            lines += [Line(f"learner {k}, steps", _by_step(run, name, k, scale), k, faint=True) for k in learners]
        if not any(y is not None for line in lines for _, y in line.points):
            return join()
        if not any(y is not None for line in lines if not line.faint for _, y in line.points):
            lines = [Line(f"learner {k}", _by_step(run, name, k, scale), k) for k in learners]
        return line_chart(title, unit, lines, end=end, marks=marks, **more)

    charts = [
        chart("Validation accuracy of W", "accuracy (%)", "valid_accuracy", scale=100),
        chart("Validation loss of W", "cross-entropy (nats)", "valid_loss"),
        chart("Training loss of W", "cross-entropy (nats)", "train_loss"),
    ]
    if mutual:
        charts += [
            chart("Training loss of V", "cross-entropy (nats)", "train_loss_v"),
            _steps_chart(run, "Validation loss of V′: who may teach", "cross-entropy (nats)", "valid_loss_v"),
            _steps_chart(run, "What students are taught: λ Σ h(d) G", "distillation loss", "distill_loss"),
        ]
    speed = Line("all learners", [(row["epoch"] + 1, number(row.get("images_per_s"))) for row in run.epochs], 5)
    if any(y is not None for _, y in speed.points):
        charts.append(line_chart("Speed", "training images per second", [speed], end=end, low=0))
    shown = [part for part in charts if part]
    note = "Strong lines: one value per epoch, on all validation images for W. Faint lines: single steps"
    size = math.ceil(len(run.steps) / POINTS)
    note += f", means of {size} logged ones." if size > 1 else "."
    return join(el("p", note, class_="soft"), el("div", *shown, class_="grid"))


def _steps_chart(run: Run, title: str, unit: str, name: str) -> Markup:
    lines = [Line(f"learner {k}", _by_step(run, name, k), k) for k in range(run.learners)]
    if not any(y is not None for line in lines for _, y in line.points):
        return join()
    return line_chart(title, unit, lines, end=epoch_end(run), marks=phase_marks(run), low=0 if name == "distill_loss" else None)


def evaluation_curves(run: Run) -> Markup:
    seeds = list(dict.fromkeys(row.get("seed") for row in run.epochs))
    if not seeds:
        return el("p", "No epoch of the evaluation is complete yet: no curves.", class_="none")

    def chart(title: str, unit: str, name: str, scale: float = 1.0, **more: Any) -> Markup:
        lines = []
        for i, seed in enumerate(seeds):
            rows = [row for row in run.epochs if row.get("seed") == seed]
            values = [(row["epoch"] + 1, number(row.get(name))) for row in rows]
            lines.append(Line(f"seed {seed}", thin([(x, None if y is None else scale * y) for x, y in values], 2 * POINTS), i))
        return line_chart(title, unit, lines, end=epoch_end(run), **more)

    charts = [
        chart("Test error", "error (%)", "test_error", 100, low=0),
        chart("Training error", "error (%)", "train_error", 100, low=0),
        chart("Test loss", "cross-entropy (nats)", "test_loss"),
        chart("Training loss", "cross-entropy (nats)", "train_loss"),
    ]
    return el("div", *charts, class_="grid")


def epoch_end(run: Run) -> float:
    """Right end of the epoch axis: the epochs done or begun."""
    return max((row["epoch"] + 1 for row in (*run.epochs, *run.steps)), default=1)


def _steps_per_epoch(run: Run) -> int:
    most = max((row["step"] + 1 for row in run.steps), default=1)
    for row in run.steps:
        place = number(row.get("global_step"))
        if row["epoch"] > 0 and place is not None:
            return max(most, round((place - row["step"]) / row["epoch"]))
    return most


def _by_step(run: Run, name: str, learner: int, scale: float = 1.0) -> list[Point]:
    steps, points = _steps_per_epoch(run), []
    for row in run.steps:
        value = numbers(row.get(name), run.learners)[learner]
        points.append((row["epoch"] + (row["step"] + 0.5) / steps, None if value is None else scale * value))
    return thin(points, POINTS)


def by_epoch(run: Run, name: str, learner: int, scale: float = 1.0) -> list[Point]:
    values = [(row["epoch"] + 1, numbers(row.get(name), run.learners)[learner]) for row in run.epochs]
    return [(x, None if value is None else scale * value) for x, value in values]


def phase_marks(run: Run) -> list[tuple[float, str]]:
    """Where a phase other than the first begins."""
    names = {"warmup-w": "W trains too", "search": "architectures move"}
    marks, before = [], None
    for row in run.epochs:
        phase = str(row.get("phase") or "–")
        if before is not None and phase != before:
            marks.append((row["epoch"], names.get(phase, phase)))
        before = phase
    return marks
