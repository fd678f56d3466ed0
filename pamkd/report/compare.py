"""Several searches on one page: what each found and cost, their curves over each other, and who taught whom in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pamkd.report.charts import Line, Point, line_chart, table
from pamkd.report.curves import by_epoch, epoch_end
from pamkd.report.flow import knowledge_flow
from pamkd.report.markup import Markup, duration, el, join, millions, percent, shown
from pamkd.report.page import document
from pamkd.report.run_folder import Run, entry, number, numbers, retained
from pamkd.report.summary import seconds_of


def comparison(runs: Sequence[Run]) -> str:
    """The HTML document. Raises ValueError for less than two runs, or one that is no search."""
    if len(runs) < 2:
        raise ValueError(f"--compare has {len(runs)} run: needed are the folders of two searches or more")
    for run in runs:
        if run.is_evaluation:
            raise ValueError(f"{run.folder} is an evaluation: --compare takes the folders of searches")
    names = run_names([run.folder for run in runs])
    flows = [join(el("h3", name), knowledge_flow(run)) for name, run in zip(names, runs, strict=True)]
    architectures = [_architecture(name, run) for name, run in zip(names, runs, strict=True)]
    sections = [
        ("summary", "Summary", _summary(names, runs)),
        ("curves", "Curves", _curves(names, runs)),
        ("flow", "Knowledge flow", join(*flows)),
        ("architectures", "Architectures", join(*architectures)),
        ("options", "Options that differ", _options(names, runs)),
    ]
    return document(f"{len(runs)} searches compared", " · ".join(names), sections, "with pamkd report --compare.")


def run_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders, as many as it takes to tell them apart; without those at the end that all share."""
    parts = [folder.resolve().parts for folder in folders]
    while len(set(parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{i + 1}: {name}" for i, name in enumerate(names)]


def _summary(names: Sequence[str], runs: Sequence[Run]) -> Markup:
    head = ("", "method", "space", "learners", "epochs", "test error", "validation loss", "accuracy", "skips", "parameters", "search time")
    rows = []
    for name, run in zip(names, runs, strict=True):
        last, result = run.epochs[-1] if run.epochs else {}, run.evaluation.result if run.evaluation else {}
        _, best = retained(run)
        loss, accuracy, skips = (entry(numbers(last.get(part), run.learners), best) for part in ("valid_loss", "valid_accuracy", "skips"))
        size = number(result.get("parameters"))
        options = [str(run.config.get(option, "–")) for option in ("method", "space", "learners")]
        done = f"{len(run.epochs)} of {run.config.get('epochs', '?')}"
        cells = (percent(number(result.get("test_error_mean"))), shown(loss), percent(accuracy), shown(skips))
        rows.append((name, *options, done, *cells, "–" if size is None else millions(size), duration(seconds_of(run))))
    note = "Validation numbers are of the retained learner's supernet after the last epoch; the test error is that of its evaluation."
    return join(el("p", note, class_="soft"), table(head, rows, caption="Runs"))


def _curves(names: Sequence[str], runs: Sequence[Run]) -> Markup:
    end = max(epoch_end(run) for run in runs)

    def chart(title: str, unit: str, name: str, scale: float = 1.0) -> Markup:
        lines = [Line(label, _of_best(run, name, scale), i) for i, (label, run) in enumerate(zip(names, runs, strict=True))]
        return line_chart(title, unit, lines, end=end)

    charts = [
        chart("Validation accuracy", "accuracy (%)", "valid_accuracy", 100),
        chart("Validation loss", "cross-entropy (nats)", "valid_loss"),
        chart("Training loss", "cross-entropy (nats)", "train_loss"),
        chart("Entropy of the mixtures", "nats", "entropy"),
        chart("Skip connections", "in both cells", "skips"),
    ]
    spreads = [Line(label, _spread(run), i) for i, (label, run) in enumerate(zip(names, runs, strict=True)) if run.learners > 1]
    if spreads:
        charts.append(line_chart("How far the learners are apart", "largest difference of validation losses", spreads, end=end, low=0))
    return join(el("p", "Of each run, the learner that it retained.", class_="soft"), el("div", *charts, class_="grid"))


def _of_best(run: Run, name: str, scale: float) -> list[Point]:
    _, best = retained(run)
    return by_epoch(run, name, best, scale) if best is not None else []


def _spread(run: Run) -> list[Point]:
    points = []
    for row in run.epochs:
        known = [loss for loss in numbers(row.get("valid_loss"), run.learners) if loss is not None]
        points.append((row["epoch"] + 1, max(known) - min(known) if len(known) > 1 else None))
    return points


def _architecture(name: str, run: Run) -> Markup:
    genotype, _ = retained(run)
    return join(el("h3", name), el("pre", genotype.describe()) if genotype else el("p", "No genotype yet.", class_="none"))


def _options(names: Sequence[str], runs: Sequence[Run]) -> Markup:
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "out")
    rows = []
    for key in keys:
        values = [str(run.config.get(key, "–")) for run in runs]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return table(("option", *names), rows, numeric=False) if rows else el("p", "None: the runs have the same options.", class_="none")
