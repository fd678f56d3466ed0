"""Long tables: values per epoch, configuration and manifest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pamkd.report.charts import table
from pamkd.report.markup import Markup, el, join, shown
from pamkd.report.run_folder import Run, numbers

TABLE_ROWS = 60


def epoch_table(run: Run) -> Markup:
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
        rows.append((row["epoch"] + 1, row.get("phase") or "–", *(shown(column[k]) for k in range(count) for column in columns)))
    note = "Validation values of W; the number names the learner." + (
        "" if step == 1 else f" Every {step}th epoch; all are in metrics.jsonl."
    )
    return join(
        el("p", note, class_="soft"), el("details", el("summary", f"{len(rows)} rows"), table(head, rows, caption="Values per epoch"))
    )


def settings(run: Run, evaluation: Run | None, name: str) -> Markup:
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
