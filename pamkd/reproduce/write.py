"""A table with the paper's figures beside ours, as Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pamkd.report.charts import table as html_table
from pamkd.report.markup import Markup, el, join
from pamkd.report.page import document
from pamkd.reproduce.drawing import against
from pamkd.reproduce.paper import Drawing, Row, Table
from pamkd.reproduce.statistics import mean_std, paired
from pamkd.reproduce.units import Measured
from pamkd.runs.logs import write_atomically

Found = Mapping[tuple[str, str], Sequence[Measured]]  # by row key and column


def write_table(path: Path, table: Table, columns: Sequence[str], rows: Sequence[Row], found: Found, notes: Sequence[str]) -> list[Path]:
    """path.md, path.csv and path.html; `columns` are the datasets that were run. Returns the three paths."""
    head, body = cells(table, columns, rows, found)
    drawn = [
        against(f"{drawing.title}, {column}", "test error (%)", drawing.axis, entries, joined=drawing.joined)
        for drawing in table.drawings
        for column in columns
        if (entries := _drawn(drawing, column, rows, found))
    ]
    return write_files(path, table, head, body, notes, el("div", *drawn, class_="pair") if drawn else join())


def write_files(
    path: Path, table: Table, head: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str], drawn: Markup
) -> list[Path]:
    """The three files of a table of these cells; what is drawn stands on the page alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_suffix(suffix) for suffix in (".md", ".csv", ".html")]
    lines = [f"# {table.title}", "", table.about, "", *(_line(cells) for cells in (head, ["---"] * len(head), *body)), ""]
    write_atomically(paths[0], "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *body])
    write_atomically(paths[1], text.getvalue())
    numbers = join(html_table(head, body), el("ul", *(el("li", note) for note in notes)))
    sections = [("drawing", "Drawing", drawn), ("table", "Table", numbers)]
    title = f"{table.title} of the paper" if table.columns else table.title
    write_atomically(paths[2], document(title, table.about, sections, f"with {table.command}."))
    return paths


def cells(table: Table, columns: Sequence[str], rows: Sequence[Row], found: Found) -> tuple[list[str], list[list[str]]]:
    """Heading and rows; without the paper's figures where it has none for any row. Costs are means over the seeds of all columns."""
    papers = bool(table.columns)
    ours = "ours: " if papers else ""
    head = ["row", *(f"paper: {name}" for name in table.columns.values())]
    for column in columns:
        head += [f"{ours}error {column} (%)", "seeds", f"difference to {' or '.join(table.references)}", f"validation loss {column}"]
    five = any(row.top5 for row in table.rows)
    if five:
        head += ["paper: Top-5", *(f"{ours}top-5 error {column} (%)" for column in columns)]
    valid = {name: title for name, title in table.columns.items() if any(name in row.valid for row in table.rows)}
    head += [f"paper: validation {title}" for title in valid.values()]
    head += [f"ours: validation error {name} (%)" for name in valid if name in columns]
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
        line += [row.valid.get(name, "–") for name in valid]
        for name in valid:
            if name in columns:
                line.append(mean_std([m.valid_error for m in found.get((row.key, name), []) if not math.isnan(m.valid_error)]))
        means = [
            _mean([getattr(m, name) / scale for m in everything], digits)
            for name, scale, digits in (("parameters", 1e6, 3), ("search_seconds", 1, 0), ("evaluation_seconds", 1, 0))
        ]
        line += [row.parameters or "–", means[0], row.cost or "–", *means[1:]] if papers else means
        body.append(line)
    silent = {i for i, name in enumerate(head) if name.startswith("paper") and all(line[i] == "–" for line in body)}
    head, *body = ([entry for i, entry in enumerate(line) if i not in silent] for line in (head, *body))
    return head, body


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean of those that are known."""
    known = [value for value in values if not math.isnan(value)]
    return f"{statistics.mean(known):.{digits}f}" if known else "–"


def _drawn(drawing: Drawing, column: str, rows: Sequence[Row], found: Found) -> list[tuple[str, list[float]]]:
    """Name and test errors of each row of the drawing that is in the table."""
    chosen = [row.key for row in rows if row.key in drawing.rows]
    return [(drawing.rows[key], [m.test_error for m in found.get((key, column), [])]) for key in chosen]


def _difference(table: Table, row: Row, column: str, rows: Sequence[Row], found: Found) -> str:
    """Paired with the reference row of the same space."""
    ends = tuple(f"/{name}" for name in table.references)
    reference = next((other for other in rows if other.key.endswith(ends) and _group(other) == _group(row)), None)
    if reference is None or reference is row:
        return "–"
    errors = [{m.seed: m.test_error for m in found.get((each.key, column), [])} for each in (row, reference)]
    return str(paired(*errors))


def _group(row: Row) -> str:
    return row.key.split("/")[0]


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
