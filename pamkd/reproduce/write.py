"""A table with the paper's figures beside ours, as Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pamkd.report.charts import table as html_table
from pamkd.report.markup import el, join
from pamkd.report.page import document
from pamkd.reproduce.paper import Row, Table
from pamkd.reproduce.statistics import mean_std, paired
from pamkd.reproduce.units import Measured
from pamkd.runs.logs import write_atomically

Found = Mapping[tuple[str, str], Sequence[Measured]]  # by row key and column


def write_table(path: Path, table: Table, columns: Sequence[str], rows: Sequence[Row], found: Found, notes: Sequence[str]) -> list[Path]:
    """path.md, path.csv and path.html; `columns` are the datasets that were run. Returns the three paths."""
    head, body = cells(table, columns, rows, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_suffix(suffix) for suffix in (".md", ".csv", ".html")]
    lines = [f"# {table.title}", "", table.about, "", *(_line(cells) for cells in (head, ["---"] * len(head), *body)), ""]
    write_atomically(paths[0], "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *body])
    write_atomically(paths[1], text.getvalue())
    content = join(html_table(head, body, caption=table.about), el("ul", *(el("li", note) for note in notes)))
    title, about = (f"{table.title} of the paper", "The paper's figures beside ours") if table.columns else (table.title, table.about)
    page = document(title, about, [("table", table.title, content)], f"with {table.command}.")
    write_atomically(paths[2], page)
    return paths


def cells(table: Table, columns: Sequence[str], rows: Sequence[Row], found: Found) -> tuple[list[str], list[list[str]]]:
    """Heading and rows; without the paper's figures where `table` has no columns. Costs are means over the seeds of all columns."""
    papers = bool(table.columns)
    ours = "ours: " if papers else ""
    head = ["row", *(f"paper: {name}" for name in table.columns.values())]
    for column in columns:
        head += [f"{ours}error {column} (%)", "seeds", f"difference to {table.reference}", f"validation loss {column}"]
    five = any(row.top5 for row in table.rows)
    if five:
        head += ["paper: Top-5", *(f"{ours}top-5 error {column} (%)" for column in columns)]
    costs = ["paper: param. (M)", f"{ours}param. (M)", "paper: GPU days", f"{ours}search (s)", f"{ours}evaluation (s)"]
    head += [cost for cost in costs if papers or not cost.startswith("paper")]
    body = []
    for row in rows:
        line = [row.label, *(row.paper.get(column, "–") for column in table.columns)]
        everything: list[Measured] = []
        for column in columns:
            measured = found.get((row.key, column), [])
            everything += measured
            line += [mean_std([m.test_error for m in measured]), str(len(measured)), _difference(table, row, column, rows, found)]
            line.append(mean_std([m.valid_loss for m in measured], 4))
        if five:
            line.append(row.top5)
            line += [mean_std([m.test_error_top5 for m in found.get((row.key, column), [])]) for column in columns]
        means = [
            f"{statistics.mean([getattr(m, name) for m in everything]) / scale:.{digits}f}" if everything else "–"
            for name, scale, digits in (("parameters", 1e6, 3), ("search_seconds", 1, 0), ("evaluation_seconds", 1, 0))
        ]
        line += [row.parameters or "–", means[0], row.cost or "–", *means[1:]] if papers else means
        body.append(line)
    return head, body


def _difference(table: Table, row: Row, column: str, rows: Sequence[Row], found: Found) -> str:
    """Paired with the reference row of the same space."""
    reference = next((other for other in rows if other.key.endswith("/" + table.reference) and _group(other) == _group(row)), None)
    if reference is None or reference is row:
        return "–"
    errors = [{m.seed: m.test_error for m in found.get((each.key, column), [])} for each in (row, reference)]
    return str(paired(*errors))


def _group(row: Row) -> str:
    return row.key.split("/")[0]


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
