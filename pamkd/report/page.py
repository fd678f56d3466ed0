"""The page: what a run found first, then how it went, then what it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pamkd.report.architectures import architecture_weights, cell_pair, cells
from pamkd.report.curves import evaluation_curves, search_curves
from pamkd.report.flow import knowledge_flow
from pamkd.report.markup import Markup, el, join, plural
from pamkd.report.run_folder import Run, retained
from pamkd.report.style import style
from pamkd.report.summary import facts, genotype_text, learner_table, notices, seed_names, seed_table
from pamkd.report.tables import epoch_table, settings
from pamkd.version import __version__

# Only what the page carries may load: nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


Section = tuple[str, str, Markup]


def page(run: Run) -> str:
    """The whole HTML document of a search or of an evaluation."""
    parts = _evaluation_page(run) if run.is_evaluation else _search_page(run)
    started = str(run.manifest.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    about = " · ".join([_what(run), f"seed {seed_names(run)}", *([f"started {started}"] if started else [])])
    title = f"{run.config.get('dataset', 'run')}: {run.folder.resolve().name}"
    return document(title, about, parts, f"from {run.folder.resolve()}.")


def document(title: str, about: str, parts: Iterable[Section], source: str) -> str:
    """A page of sections (anchor, heading, content); those without content are left out. ASCII: the rest as references."""
    sections = [(name, heading, content) for name, heading, content in parts if content]
    links = el("nav", *(el("a", heading, href=f"#{name}") for name, heading, _ in sections), aria_label="Sections")
    body = [el("section", el("h2", heading), content, id=name) for name, heading, content in sections]
    head = (
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("link", rel="icon", href="data:,"),
        el("title", f"pamkd: {title}"),
        el("style", Markup(style())),
    )
    top = el("header", el("h1", title), el("p", about, class_="soft"), *([links] if len(sections) > 1 else []))
    foot = el("footer", f"Written by pamkd {__version__} {source} This page loads nothing from anywhere.")
    text = "<!doctype html>\n" + el("html", el("head", *head), el("body", top, el("main", *body), foot), lang="en") + "\n"
    # Character references: the page reads the same whatever encoding a file system or a web server assumes.
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _what(run: Run) -> str:
    if run.is_evaluation:
        return "evaluation of an architecture"
    order = {"first": "first-order", "second": "second-order"}.get(str(run.config.get("order")), "")
    method = run.config.get("method", "pamkd")
    return f"{order} {method} search in the space {run.config.get('space', '?')} with {plural(run.learners, 'learner')}".strip()


def _search_page(run: Run) -> Iterator[Section]:
    yield "summary", "Summary", join(notices(run), facts(run), learner_table(run), genotype_text(retained(run)[0]))
    if run.evaluation is not None:
        yield "evaluation", "Evaluation", join(seed_table(run.evaluation), evaluation_curves(run.evaluation))
    yield "cells", "Cells", cells(run)
    yield "curves", "Loss and accuracy", search_curves(run)
    yield "flow", "Knowledge flow", knowledge_flow(run)
    yield "weights", "Architecture weights", architecture_weights(run)
    yield "epochs", "Values per epoch", epoch_table(run)
    yield "configuration", "Configuration", settings(run, run.evaluation, "config")
    yield "manifest", "Manifest", settings(run, run.evaluation, "manifest")


def _evaluation_page(run: Run) -> Iterator[Section]:
    yield "summary", "Summary", join(notices(run), facts(run), seed_table(run), genotype_text(run.genotype))
    yield "cells", "Cells", cell_pair(run.genotype) if run.genotype else join()
    yield "curves", "Loss and error", evaluation_curves(run)
    yield "configuration", "Configuration", settings(run, None, "config")
    yield "manifest", "Manifest", settings(run, None, "manifest")
