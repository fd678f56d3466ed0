"""What became of the architectures: derived cells as graphs, mixture weights as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pamkd.report.cells import draw_cell, operation_name, state_name
from pamkd.report.charts import Line, Panel, chosen_epochs, heat_map, line_chart
from pamkd.report.curves import by_epoch, epoch_end, phase_marks
from pamkd.report.markup import Markup, el, join
from pamkd.report.run_folder import Run, entry, genotype_of, number, numbers, retained
from pamkd.spaces.architecture import Architecture
from pamkd.spaces.genotype import Genotype

CELLS = (("normal", "Normal cell"), ("reduce", "Reduction cell"))
CELL_TYPES = (*CELLS, ("cell", "Cell"))


def cells(run: Run) -> Markup:
    genotype, best = retained(run)
    if genotype is None:
        return el("p", "No genotype yet: the first is derived at the end of the first epoch.", class_="none")
    whose = f"The genotype of learner {best}" if best is not None else "The genotype"
    state = "retained by the search" if run.genotype is not None else "which is the best so far"
    intro = ""
    if isinstance(genotype, Genotype):
        intro = "Edges have the colour of the state that they carry; in the reduction cell, operations on c[k−2] and c[k−1] have stride 2."
    parts = [el("p", f"{whose}, {state}. {intro}"), cell_pair(genotype)]
    row = run.epochs[-1] if run.epochs else {}
    for k in range(run.learners):
        other = genotype_of(row, k)
        if k != best and other is not None:
            parts.append(el("details", el("summary", f"Learner {k} after epoch {row['epoch'] + 1}"), cell_pair(other)))
    return join(*parts)


def cell_pair(genotype: Architecture) -> Markup:
    if not isinstance(genotype, Genotype):
        return el("pre", genotype.describe())
    concat = {"normal": genotype.normal_concat, "reduce": genotype.reduce_concat}
    return el("div", *(draw_cell(title, getattr(genotype, name), concat[name]) for name, title in CELLS), class_="pair")


def architecture_weights(run: Run) -> Markup:
    count = run.learners
    if not run.epochs:
        return join()
    end, marks, learners = epoch_end(run), phase_marks(run), range(count)
    charts = []
    for title, unit, name in (
        ("Entropy of the architecture weights", "mean over edges (nats)", "entropy"),
        ("Skip connections in the genotype", "number in both cells", "skips"),
    ):
        lines = [Line(f"learner {k}", by_epoch(run, name, k), k) for k in learners]
        charts.append(line_chart(title, unit, lines, end=end, low=0 if name == "skips" else None, whole=name == "skips", marks=marks))
    parts = [
        el("p", "Softmax of the alphas. Falling entropy: edges decide. Many skip connections: the search may be collapsing."),
        el("div", *charts, class_="grid"),
    ]
    rows = [row for row in run.epochs if isinstance(row.get("mixtures"), dict)]
    if not rows:
        return join(*parts, el("p", "The architecture weights themselves were not recorded.", class_="none"))
    chosen = [rows[i] for i in chosen_epochs(len(rows))]
    known = [v for row in chosen for name in row["mixtures"] for k in learners for v in _all_numbers(entry(row, "mixtures", name, k))]
    low, high = min(known, default=0.0), max(known, default=1.0)
    _, best = retained(run)
    note = "Framed: the operation that the genotype keeps, on an edge that it keeps."
    if len(chosen) < len(rows):
        note += f" {len(chosen)} of {len(rows)} epochs are shown."
    parts.append(el("p", note + " One colour scale for all maps.", class_="soft"))
    for k in sorted(learners, key=lambda k: k != best):
        maps = [heat for name, title in CELL_TYPES if (heat := _weight_map(title, name, k, chosen, low, high))]
        summary = el("summary", f"Learner {k}" + (" (retained)" if k == best and run.result else ""))
        is_open = "open" if k == best or (best is None and k == 0) else None
        parts.append(el("details", summary, el("div", *maps, class_="pair"), open=is_open))
    return join(*parts)


def _all_numbers(mix: Any) -> list[float]:
    return [v for edge in mix if isinstance(edge, list) for v in edge if number(v) is not None] if isinstance(mix, list) else []


def _weight_map(title: str, name: str, learner: int, rows: Sequence[dict[str, Any]], low: float, high: float) -> Markup | None:
    operations = entry(rows[0], "operations", name, learner)
    if not isinstance(operations, list) or not all(isinstance(edge, list) and edge for edge in operations):
        return None
    genotype = genotype_of(rows[-1], learner)
    kept = _kept(getattr(genotype, name)) if isinstance(genotype, Genotype) else {}
    places = _places(len(operations))
    panels = []
    for i, candidates in enumerate(operations):
        mixes = [_by_operation(row, name, learner, i) for row in rows]
        values = [[mix.get(o) for mix in mixes] for o in candidates]
        place = places[i] if places else None
        label = f"edge {i}" if place is None else f"{state_name(place[1])} → node {place[0]}"
        operation = None if place is None else kept.get(place)
        marked = candidates.index(operation) if operation in candidates else None
        panels.append(Panel(label, [operation_name(o) for o in candidates], values, marked))
    return heat_map(f"{title}, learner {learner}", "weight", panels, [row["epoch"] for row in rows], low=low, high=high)


def _by_operation(row: dict[str, Any], name: str, learner: int, edge: int) -> dict[str, float | None]:
    """Weight of every operation that the edge had in this epoch; a later stage of a search has fewer."""
    candidates = entry(row, "operations", name, learner, edge)
    candidates = candidates if isinstance(candidates, list) else []
    return dict(zip(candidates, numbers(entry(row, "mixtures", name, learner, edge), len(candidates)), strict=True))


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
