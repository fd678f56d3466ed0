"""The page: what a run found first, then how it went, then what it was."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pamkd.report.cells import draw_cell, operation_name, state_name
from pamkd.report.charts import Line, Panel, Point, heat_map, line_chart, table, thin
from pamkd.report.markup import Markup, duration, el, join, millions, plural, significant
from pamkd.report.run_folder import Run, entry, matrix, number, numbers
from pamkd.report.style import style
from pamkd.spaces.genotype import Genotype
from pamkd.version import __version__

COLUMNS = 60  # of a heat map
POINTS = 150  # of a line of single steps
TABLE_ROWS = 60
CELLS = (("normal", "Normal cell"), ("reduce", "Reduction cell"))
# Only what the page carries may load: nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(run: Run) -> str:
    """The whole HTML document of a search or of an evaluation."""
    parts = _evaluation_page(run) if run.is_evaluation else _search_page(run)
    sections = [(name, title, content) for name, title, content in parts if content]
    links = el("nav", *(el("a", title, href=f"#{name}") for name, title, _ in sections), aria_label="Sections")
    title = f"{run.config.get('dataset', 'run')}: {run.folder.resolve().name}"
    body = [el("section", el("h2", title), content, id=name) for name, title, content in sections]
    head = (
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("link", rel="icon", href="data:,"),
        el("title", f"pamkd: {title}"),
        el("style", Markup(style())),
    )
    started = str(run.manifest.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    about = " · ".join([_what(run), f"seed {_seeds(run)}", *([f"started {started}"] if started else [])])
    top = el("header", el("h1", title), el("p", about, class_="soft"), links)
    foot = el("footer", f"Written by pamkd {__version__} from {run.folder.resolve()}. This page loads nothing from anywhere.")
    return "<!doctype html>\n" + el("html", el("head", *head), el("body", top, el("main", *body), foot), lang="en") + "\n"


def _what(run: Run) -> str:
    if run.is_evaluation:
        return "evaluation of an architecture"
    order = {"first": "first-order", "second": "second-order"}.get(run.config.get("order"), "")
    return f"{order} search in the space {run.config.get('space', '?')} with {plural(run.learners, 'learner')}".strip()


def _seeds(run: Run) -> str:
    seeds = run.config.get("seeds", run.config.get("seed", "unknown"))
    return ", ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)


Section = tuple[str, str, Markup]


def _search_page(run: Run) -> Iterator[Section]:
    yield "summary", "Summary", join(_notices(run), _facts(run), _learner_table(run), _genotype_text(_retained(run)[0]))
    if run.evaluation is not None:
        yield "evaluation", "Evaluation", join(_seed_table(run.evaluation), _evaluation_curves(run.evaluation))
    yield "cells", "Cells", _cells(run)
    yield "curves", "Loss and accuracy", _curves(run)
    yield "flow", "Knowledge flow", _flow(run)
    yield "weights", "Architecture weights", _weights(run)
    yield "epochs", "Values per epoch", _epoch_table(run)
    yield "configuration", "Configuration", _settings(run, run.evaluation, "config")
    yield "manifest", "Manifest", _settings(run, run.evaluation, "manifest")


def _evaluation_page(run: Run) -> Iterator[Section]:
    yield "summary", "Summary", join(_notices(run), _facts(run), _seed_table(run), _genotype_text(run.genotype))
    yield "cells", "Cells", _pair(run.genotype) if run.genotype else join()
    yield "curves", "Loss and error", _evaluation_curves(run)
    yield "configuration", "Configuration", _settings(run, None, "config")
    yield "manifest", "Manifest", _settings(run, None, "manifest")


# --- Summary


def _notices(run: Run) -> Markup:
    found = _unfinished(run) + run.problems
    evaluation = None if run.is_evaluation else run.evaluation
    if evaluation is not None:
        found += [f"Evaluation: {text}" for text in _unfinished(evaluation) + evaluation.problems]
        if run.genotype and evaluation.genotype and run.genotype != evaluation.genotype:
            found.append("The evaluated genotype is not the one that this search retained.")
    elif not run.is_evaluation:
        found.append(f"Not evaluated yet: there is no test error. Next: pamkd evaluate --run {run.folder}")
    if not run.is_evaluation:
        found += _gaps(run)
    if not found:
        return join()
    return el("div", el("b", "To know"), el("ul", *(el("li", text) for text in found)), class_="notice", role="note")


def _unfinished(run: Run) -> list[str]:
    epochs = run.config.get("epochs", "?")
    if run.result:
        return []
    if run.is_evaluation:
        seeds = run.config.get("seeds")
        total = f"{epochs} epochs for each of {plural(len(seeds), 'seed')}" if isinstance(seeds, list) else f"{epochs} epochs"
        return [f"Unfinished: {plural(len(run.epochs), 'epoch')} done of {total}."]
    return [f"The search is unfinished: {len(run.epochs)} of {epochs} epochs done; what it found so far may change."]


def _gaps(run: Run) -> list[str]:
    """Losses that the search phase should have and has not: NaN or infinite."""
    found = []
    for k in range(run.learners):
        bad = [row["epoch"] + 1 for row in run.epochs if numbers(row.get("valid_loss"), run.learners)[k] is None]
        if bad:
            found.append(
                f"Learner {k}: no finite validation loss in {plural(len(bad), 'epoch')}, first in epoch {bad[0]}; its curves have gaps."
            )
    return found


def _retained(run: Run) -> tuple[Genotype | None, int | None]:
    """The result's genotype and learner, else what the last epoch would give."""
    learner = run.result.get("learner")
    if run.genotype is not None:
        return run.genotype, learner if isinstance(learner, int) else None
    if not run.epochs:
        return None, None
    losses = numbers(run.epochs[-1].get("valid_loss"), run.learners)
    known = [k for k, loss in enumerate(losses) if loss is not None]
    if not known:
        return None, None
    best = min(known, key=losses.__getitem__)
    return _genotype(run.epochs[-1], best), best


def _genotype(row: dict[str, Any], learner: int) -> Genotype | None:
    try:
        return Genotype.from_json(entry(row, "genotypes", learner))
    except ValueError:
        return None


def _facts(run: Run) -> Markup:
    evaluation = run if run.is_evaluation else run.evaluation
    facts: list[tuple[str, str, str]] = []
    if evaluation is not None:
        facts += _evaluation_facts(evaluation)
    else:
        facts.append(("Test error", "–", "not evaluated"))
    if not run.is_evaluation:
        seconds = _seconds(run)
        days = f" · {seconds / 86400:.2f} device days" if seconds >= 3600 else ""
        note = f"{plural(len(run.epochs), 'epoch')}, steps alone{days}"
        facts.append(("Search time", duration(seconds) if seconds else "–", note))
        _, learner = _retained(run)
        if learner is not None:
            last = run.epochs[-1] if run.epochs else {}
            loss = numbers(run.result.get("valid_loss", last.get("valid_loss")), run.learners)
            accuracy = numbers(run.result.get("valid_accuracy", last.get("valid_accuracy")), run.learners)
            facts.append(
                ("Best learner" if run.result else "Best so far", f"learner {learner}", f"validation loss {_shown(entry(loss, learner))}")
            )
            facts.append(("Validation accuracy", _percent(entry(accuracy, learner)), f"of learner {learner}'s supernet"))
    items = [el("div", el("dt", name), el("dd", value), el("dd", note, class_="more")) for name, value, note in facts]
    return el("dl", *items, class_="facts")


def _evaluation_facts(run: Run) -> list[tuple[str, str, str]]:
    network = run.manifest.get("network")
    size = {name: number(run.result.get(name, entry(network, name))) for name in ("parameters", "multiply_adds")}
    mean, std = number(run.result.get("test_error_mean")), number(run.result.get("test_error_std"))
    errors = run.result.get("test_error")
    count = len(errors) if isinstance(errors, list) else 0
    facts = []
    if mean is not None:
        spread = f" ± {100 * std:.2f}" if std is not None else ""
        note = f"mean ± sample std of {count} seeds" if std is not None else f"one seed ({_seeds(run)}), after the last epoch"
        facts.append(("Test error", f"{100 * mean:.2f}{spread} %", note))
    else:
        rows = [number(row.get("test_error")) for row in run.epochs]
        last = next((value for value in reversed(rows) if value is not None), None)
        facts.append(("Test error so far", _percent(last), f"after epoch {run.epochs[-1]['epoch'] + 1}" if run.epochs else "no epoch done"))
    for name, title in (("parameters", "Parameters"), ("multiply_adds", "Multiply-adds")):
        if size[name] is not None:
            facts.append((title, millions(size[name]), f"{size[name]:,.0f}" + (" per image" if name == "multiply_adds" else "")))
    return facts


def _seconds(run: Run) -> float:
    return sum(number(row.get("seconds")) or 0.0 for row in run.epochs)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _shown(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else significant(value, digits)


def _learner_table(run: Run) -> Markup:
    if not run.epochs:
        return join()
    row, count = run.epochs[-1], run.learners
    loss, accuracy, skips, entropy = (numbers(row.get(name), count) for name in ("valid_loss", "valid_accuracy", "skips", "entropy"))
    _, best = _retained(run)
    rows = []
    for k in range(count):
        name = join(f"learner {k}", *([" ", el("b", "retained" if run.result else "best so far")] if k == best else []))
        rows.append((name, _shown(loss[k]), _percent(accuracy[k]), _shown(skips[k]), _shown(entropy[k], 3)))
    head = ("", "loss", "accuracy", "skips", "entropy")
    return table(head, rows, caption=f"Validation of W after epoch {row['epoch'] + 1}")


def _seed_table(run: Run) -> Markup:
    errors, seeds = run.result.get("test_error"), run.config.get("seeds")
    last = {row.get("seed"): row for row in run.epochs}
    names = seeds if isinstance(seeds, list) else list(last)
    rows = []
    for i, seed in enumerate(names):
        row = last.get(seed, {})
        done = number(entry(errors, i))
        seconds = sum(number(r.get("seconds")) or 0.0 for r in run.epochs if r.get("seed") == seed)
        test = done if done is not None else number(row.get("test_error"))
        epoch = row.get("epoch")
        trained = "–" if epoch is None else str(epoch + 1)
        cells = (_percent(test), _percent(number(row.get("train_error"))), trained, duration(seconds) if seconds else "–")
        rows.append((f"seed {seed}", *cells))
    return table(("", "test", "training", "epochs", "time"), rows, caption="Error by seed") if rows else join()


def _genotype_text(genotype: Genotype | None) -> Markup:
    if genotype is None:
        return join()
    data = el("details", el("summary", "As JSON (genotype.json)"), el("pre", json.dumps(genotype.to_json())))
    return join(
        el("h3", "Genotype"), el("p", "Operation:input state, two for each node.", class_="soft"), el("pre", genotype.describe()), data
    )


# --- Cells


def _pair(genotype: Genotype) -> Markup:
    concat = {"normal": genotype.normal_concat, "reduce": genotype.reduce_concat}
    return el("div", *(draw_cell(title, getattr(genotype, name), concat[name]) for name, title in CELLS), class_="pair")


def _cells(run: Run) -> Markup:
    genotype, best = _retained(run)
    if genotype is None:
        return el("p", "No genotype yet: the first is derived at the end of the first epoch.", class_="none")
    whose = f"The genotype of learner {best}" if best is not None else "The genotype"
    state = "retained by the search" if run.genotype is not None else "which is the best so far"
    intro = "Edges have the colour of the state that they carry; in the reduction cell, operations on c[k−2] and c[k−1] have stride 2."
    parts = [el("p", f"{whose}, {state}. {intro}"), _pair(genotype)]
    row = run.epochs[-1] if run.epochs else {}
    for k in range(run.learners):
        other = _genotype(row, k)
        if k != best and other is not None:
            parts.append(el("details", el("summary", f"Learner {k} after epoch {row['epoch'] + 1}"), _pair(other)))
    return join(*parts)


# --- Curves


def _end(run: Run) -> float:
    """Right end of the epoch axis: the epochs done or begun."""
    return max(1, *(row["epoch"] + 1 for row in (*run.epochs, *run.steps)))


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


def _by_epoch(run: Run, name: str, learner: int, scale: float = 1.0) -> list[Point]:
    values = [(row["epoch"] + 1, numbers(row.get(name), run.learners)[learner]) for row in run.epochs]
    return [(x, None if value is None else scale * value) for x, value in values]


def _marks(run: Run) -> list[tuple[float, str]]:
    """Where a phase other than the first begins."""
    names = {"warmup-w": "W trains too", "search": "architectures move"}
    marks, before = [], None
    for row in run.epochs:
        phase = str(row.get("phase") or "–")
        if before is not None and phase != before:
            marks.append((row["epoch"], names.get(phase, phase)))
        before = phase
    return marks


def _curves(run: Run) -> Markup:
    if not run.epochs and not run.steps:
        return join()
    mutual, options = run.learners > 1, {"end": _end(run), "marks": _marks(run)}
    learners = range(run.learners)

    def chart(title: str, unit: str, name: str, *, scale: float = 1.0, steps: bool = True, **more: Any) -> Markup:
        lines = [Line(f"learner {k}", _by_epoch(run, name, k, scale), k) for k in learners]
        if steps:
            lines += [Line(f"learner {k}, steps", _by_step(run, name, k, scale), k, faint=True) for k in learners]
        if not any(y is not None for line in lines for _, y in line.points):
            return join()
        if not any(y is not None for line in lines if not line.faint for _, y in line.points):
            lines = [Line(f"learner {k}", _by_step(run, name, k, scale), k) for k in learners]
        return line_chart(title, unit, lines, **options, **more)

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
        charts.append(line_chart("Speed", "training images per second", [speed], end=options["end"], low=0))
    shown = [part for part in charts if part]
    note = "Strong lines: one value per epoch, on all validation images for W. Faint lines: single steps"
    size = math.ceil(len(run.steps) / POINTS)
    note += f", means of {size} logged ones." if size > 1 else "."
    return join(el("p", note, class_="soft"), el("div", *shown, class_="grid"))


def _steps_chart(run: Run, title: str, unit: str, name: str) -> Markup:
    lines = [Line(f"learner {k}", _by_step(run, name, k), k) for k in range(run.learners)]
    if not any(y is not None for line in lines for _, y in line.points):
        return join()
    return line_chart(title, unit, lines, end=_end(run), marks=_marks(run), low=0 if name == "distill_loss" else None)


def _evaluation_curves(run: Run) -> Markup:
    seeds = list(dict.fromkeys(row.get("seed") for row in run.epochs))
    if not seeds:
        return el("p", "No epoch of the evaluation is complete yet: no curves.", class_="none")

    def chart(title: str, unit: str, name: str, scale: float = 1.0, **more: Any) -> Markup:
        lines = []
        for i, seed in enumerate(seeds):
            rows = [row for row in run.epochs if row.get("seed") == seed]
            values = [(row["epoch"] + 1, number(row.get(name))) for row in rows]
            lines.append(Line(f"seed {seed}", thin([(x, None if y is None else scale * y) for x, y in values], 2 * POINTS), i))
        return line_chart(title, unit, lines, end=_end(run), **more)

    charts = [
        chart("Test error", "error (%)", "test_error", 100, low=0),
        chart("Training error", "error (%)", "train_error", 100, low=0),
        chart("Test loss", "cross-entropy (nats)", "test_loss"),
        chart("Training loss", "cross-entropy (nats)", "train_loss"),
    ]
    return el("div", *charts, class_="grid")


# --- Knowledge flow


def _flow(run: Run) -> Markup:
    count = run.learners
    if count == 1:
        return el("p", "One learner: nobody teaches.", class_="none")
    if not run.epochs or count == 0:
        return el("p", "Nothing recorded yet: the flow is summed at the end of each epoch.", class_="none") if count else join()
    weights = [matrix(row.get("flow"), count, count) for row in run.epochs]
    shares = [matrix(row.get("flow_steps"), count, count) for row in run.epochs]
    end, marks = _end(run), _marks(run)
    charts = []
    pairs = [(k, j) for k in range(count) for j in range(count) if j != k]
    high = max((w[k][j] or 0.0 for w in weights for k, j in pairs), default=0.0)
    for k in range(count):
        lines = [
            Line(f"learner {j}", [(row["epoch"] + 1, w[k][j]) for row, w in zip(run.epochs, weights, strict=True)], j)
            for j in range(count)
            if j != k
        ]
        charts.append(line_chart(f"Who teaches learner {k}", "mean weight h(d)", lines, end=end, low=0, high=high or 1.0, marks=marks))
    chosen = _columns(len(run.epochs))
    rows = [f"{j} → {k}" for k, j in pairs]
    values = [[None if (s := shares[i][k][j]) is None else 100 * s for i in chosen] for k, j in pairs]
    epochs = [run.epochs[i]["epoch"] for i in chosen]
    note = "Teacher → student; " + ("" if len(chosen) == len(run.epochs) else f"{len(chosen)} of {len(run.epochs)} epochs shown; ")
    note += "light: seldom, strong: in every step."
    charts.append(heat_map("How often they teach", "% of steps", [Panel("", rows, values)], epochs, low=0, high=100, note=note))
    intro = (
        "h(d) = max(0, L(V′ of the student) − L(V′ of the teacher)) on the validation batch: a learner is taught by those that do better."
    )
    return join(el("p", intro), _flow_table(weights, shares, high), el("div", *charts, class_="grid"))


def _flow_table(weights: list, shares: list, high: float) -> Markup:
    """Means over the epochs: students are rows, teachers columns."""
    count = len(weights[0])
    rows = []
    for k in range(count):
        cells: list[object] = [f"learner {k}"]
        for j in range(count):
            w = [epoch[k][j] for epoch in weights if epoch[k][j] is not None]
            s = [epoch[k][j] for epoch in shares if epoch[k][j] is not None]
            if j == k or not w or not s:
                cells.append("–")
            else:
                cells.append(f"{significant(sum(w) / len(w), 2)} ({100 * sum(s) / len(s):.0f} %)")
        rows.append(cells)
    head = ("", *(f"by {j}" for j in range(count)))
    return table(head, rows, caption="Taught with mean weight h(d), in how many steps")


# --- Architecture weights


def _columns(count: int) -> list[int]:
    """Indices of at most COLUMNS epochs, evenly spread, first and last among them."""
    if count <= COLUMNS:
        return list(range(count))
    return [round(i * (count - 1) / (COLUMNS - 1)) for i in range(COLUMNS)]


def _weights(run: Run) -> Markup:
    count = run.learners
    if not run.epochs:
        return join()
    end, marks, learners = _end(run), _marks(run), range(count)
    charts = []
    for title, unit, name in (
        ("Entropy of the architecture weights", "mean over edges (nats)", "entropy"),
        ("Skip connections in the genotype", "number in both cells", "skips"),
    ):
        lines = [Line(f"learner {k}", _by_epoch(run, name, k), k) for k in learners]
        charts.append(line_chart(title, unit, lines, end=end, low=0 if name == "skips" else None, whole=name == "skips", marks=marks))
    parts = [
        el("p", "Softmax of the alphas. Falling entropy: edges decide. Many skip connections: the search may be collapsing."),
        el("div", *charts, class_="grid"),
    ]
    rows = [row for row in run.epochs if isinstance(row.get("mixtures"), dict)]
    if not rows:
        return join(*parts, el("p", "The architecture weights themselves were not recorded.", class_="none"))
    chosen = [rows[i] for i in _columns(len(rows))]
    known = [v for row in chosen for name in row["mixtures"] for k in learners for v in _all_numbers(entry(row, "mixtures", name, k))]
    low, high = min(known, default=0.0), max(known, default=1.0)
    _, best = _retained(run)
    note = "Framed: the operation that the genotype keeps, on an edge that it keeps."
    if len(chosen) < len(rows):
        note += f" {len(chosen)} of {len(rows)} epochs are shown."
    parts.append(el("p", note + " One colour scale for all maps.", class_="soft"))
    for k in sorted(learners, key=lambda k: k != best):
        maps = [heat for name, title in CELLS if (heat := _weight_map(title, name, k, chosen, low, high))]
        summary = el("summary", f"Learner {k}" + (" (retained)" if k == best and run.result else ""))
        is_open = "open" if k == best or (best is None and k == 0) else None
        parts.append(el("details", summary, el("div", *maps, class_="pair"), open=is_open))
    return join(*parts)


def _all_numbers(mix: Any) -> list[float]:
    return [v for edge in mix if isinstance(edge, list) for v in edge if number(v) is not None] if isinstance(mix, list) else []


def _weight_map(title: str, name: str, learner: int, rows: Sequence[dict[str, Any]], low: float, high: float) -> Markup | None:
    operations = entry(rows[-1], "operations", name)
    if not isinstance(operations, list) or not all(isinstance(edge, list) and edge for edge in operations):
        return None
    genotype = _genotype(rows[-1], learner)
    kept = _kept(getattr(genotype, name)) if genotype is not None else {}
    places = _places(len(operations))
    panels = []
    for i, candidates in enumerate(operations):
        mixes = [numbers(entry(row, "mixtures", name, learner, i), len(candidates)) for row in rows]
        values = [[mix[o] for mix in mixes] for o in range(len(candidates))]
        node, state = places[i] if places else (None, None)
        label = f"{state_name(state)} → node {node}" if places else f"edge {i}"
        operation = kept.get((node, state))
        marked = candidates.index(operation) if operation in candidates else None
        panels.append(Panel(label, [operation_name(o) for o in candidates], values, marked))
    return heat_map(f"{title}, learner {learner}", "weight", panels, [row["epoch"] for row in rows], low=low, high=high)


def _places(edges: int) -> list[tuple[int, int]] | None:
    """(node, state) of each edge of a cell in which every node takes two inputs and all nodes before; None for another number."""
    places: list[tuple[int, int]] = []
    node = 0
    while len(places) < edges:
        places += [(node, state) for state in range(2 + node)]
        node += 1
    return places if len(places) == edges else None


def _kept(genes: Sequence[tuple[str, int]]) -> dict[tuple[int, int], str]:
    return {(i // 2, state): operation for i, (operation, state) in enumerate(genes)}


# --- Tables


def _epoch_table(run: Run) -> Markup:
    if not run.epochs:
        return join()
    count, head = run.learners, ["epoch", "phase"]
    names = (("loss", "valid_loss", 1), ("acc. %", "valid_accuracy", 100), ("skips", "skips", 1), ("entropy", "entropy", 1))
    head += [f"{label} {k}" for k in range(count) for label, _, _ in names]
    step = math.ceil(len(run.epochs) / TABLE_ROWS)
    chosen = [row for i, row in enumerate(run.epochs) if i % step == 0 or i == len(run.epochs) - 1]
    rows = []
    for row in chosen:
        columns = [[None if v is None else scale * v for v in numbers(row.get(name), count)] for _, name, scale in names]
        rows.append((row["epoch"] + 1, row.get("phase") or "–", *(_shown(column[k]) for k in range(count) for column in columns)))
    note = "Validation values of W; the number names the learner." + (
        "" if step == 1 else f" Every {step}th epoch; all are in metrics.jsonl."
    )
    return join(
        el("p", note, class_="soft"), el("details", el("summary", f"{len(rows)} rows"), table(head, rows, caption="Values per epoch"))
    )


def _settings(run: Run, evaluation: Run | None, name: str) -> Markup:
    parts = []
    for title, source in (("Search" if evaluation else "", run), ("Evaluation", evaluation)):
        values = getattr(source, name) if source is not None else {}
        if values:
            rows = [(key, _plain(value)) for key, value in _flat(values)]
            head = [el("h3", title)] if title else []
            parts.append(el("div", *head, table(("name", "value"), rows, numeric=False), class_="plain"))
        elif source is not None:
            parts.append(el("p", f"{title or 'Run'}: not recorded.", class_="none"))
    return el("div", *parts, class_="pair")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:20]))
        return shown + (f", … ({len(value)} in all)" if len(value) > 20 else "")
    return str(value)
