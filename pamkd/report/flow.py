"""The knowledge flow: who taught whom, with what weight, how often."""

from __future__ import annotations

from typing import Any

from pamkd.report.charts import Line, Panel, chosen_epochs, heat_map, line_chart, table
from pamkd.report.curves import epoch_end, phase_marks
from pamkd.report.markup import Markup, el, join, significant
from pamkd.report.run_folder import Run, matrix

INTRO = {
    "pamkd": "h(d) = max(0, L(V′ of the student) − L(V′ of the teacher)) on the validation batch: "
    "a learner is taught by those that do better.",
    "no-1st": "h(d) = max(0, L(W of the student) − L(W of the teacher)) on the validation batch, with the weights that are trained.",
}


def knowledge_flow(run: Run) -> Markup:
    count = run.learners
    if count == 1:
        return el("p", "One learner: nobody teaches.", class_="none")
    if not run.epochs or count == 0:
        return el("p", "Nothing recorded yet: the flow is summed at the end of each epoch.", class_="none") if count else join()
    weights = [matrix(row.get("flow"), count, count) for row in run.epochs]
    shares = [matrix(row.get("flow_steps"), count, count) for row in run.epochs]
    end, marks = epoch_end(run), phase_marks(run)
    charts = []
    pairs = [(k, j) for k in range(count) for j in range(count) if j != k]
    high = max((w[k][j] or 0.0 for w in weights for k, j in pairs), default=0.0)
    method = run.config.get("method", "pamkd")
    if not high and method not in INTRO:
        return el("p", f"With the method {method} nobody teaches.", class_="none")
    for k in range(count):
        lines = [
            Line(f"learner {j}", [(row["epoch"] + 1, w[k][j]) for row, w in zip(run.epochs, weights, strict=True)], j)
            for j in range(count)
            if j != k
        ]
        charts.append(line_chart(f"Who teaches learner {k}", "mean weight", lines, end=end, low=0, high=high or 1.0, marks=marks))
    chosen = chosen_epochs(len(run.epochs))
    rows = [f"{j} → {k}" for k, j in pairs]
    values = [[None if (s := shares[i][k][j]) is None else 100 * s for i in chosen] for k, j in pairs]
    epochs = [run.epochs[i]["epoch"] for i in chosen]
    note = "Teacher → student; " + ("" if len(chosen) == len(run.epochs) else f"{len(chosen)} of {len(run.epochs)} epochs shown; ")
    note += "light: seldom, strong: in every step."
    charts.append(heat_map("How often they teach", "% of steps", [Panel("", rows, values)], epochs, low=0, high=100, note=note))
    intro = INTRO.get(method, "Weights with which the method lets learners teach each other.")
    return join(el("p", intro), _flow_table(weights, shares, high), el("div", *charts, class_="grid"))


def _flow_table(weights: list[Any], shares: list[Any], high: float) -> Markup:
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
    return table(head, rows, caption="Taught with mean weight, in how many steps")
