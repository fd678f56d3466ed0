"""The summary of a run: what it found, what it cost, and what the reader has to know."""

from __future__ import annotations

import json

from pamkd.report.charts import table
from pamkd.report.markup import Markup, duration, el, join, millions, percent, plural, shown
from pamkd.report.run_folder import Run, entry, number, numbers, retained
from pamkd.spaces.architecture import Architecture
from pamkd.spaces.genotype import Genotype


def notices(run: Run) -> Markup:
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


def facts(run: Run) -> Markup:
    evaluation = run if run.is_evaluation else run.evaluation
    facts: list[tuple[str, str, str]] = []
    if evaluation is not None:
        facts += _evaluation_facts(evaluation)
    else:
        facts.append(("Test error", "–", "not evaluated"))
    if not run.is_evaluation:
        seconds = seconds_of(run)
        days = f" · {seconds / 86400:.2f} device days" if seconds >= 3600 else ""
        note = f"{plural(len(run.epochs), 'epoch')}, steps alone{days}"
        facts.append(("Search time", duration(seconds) if seconds else "–", note))
        _, learner = retained(run)
        if learner is not None:
            last = run.epochs[-1] if run.epochs else {}
            loss = numbers(run.result.get("valid_loss", last.get("valid_loss")), run.learners)
            accuracy = numbers(run.result.get("valid_accuracy", last.get("valid_accuracy")), run.learners)
            facts.append(
                ("Best learner" if run.result else "Best so far", f"learner {learner}", f"validation loss {shown(entry(loss, learner))}")
            )
            facts.append(("Validation accuracy", percent(entry(accuracy, learner)), f"of learner {learner}'s supernet"))
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
        note = f"mean ± sample std of {count} seeds" if std is not None else f"one seed ({seed_names(run)}), after the last epoch"
        facts.append(("Test error", f"{100 * mean:.2f}{spread} %", note))
    else:
        rows = [number(row.get("test_error")) for row in run.epochs]
        last = next((value for value in reversed(rows) if value is not None), None)
        facts.append(("Test error so far", percent(last), f"after epoch {run.epochs[-1]['epoch'] + 1}" if run.epochs else "no epoch done"))
    for name, title in (("parameters", "Parameters"), ("multiply_adds", "Multiply-adds")):
        if (value := size[name]) is not None:
            facts.append((title, millions(value), f"{value:,.0f}" + (" per image" if name == "multiply_adds" else "")))
    return facts


def seconds_of(run: Run) -> float:
    """Of the steps of complete epochs."""
    return sum(number(row.get("seconds")) or 0.0 for row in run.epochs)


def learner_table(run: Run) -> Markup:
    if not run.epochs:
        return join()
    row, count = run.epochs[-1], run.learners
    loss, accuracy, skips, entropy = (numbers(row.get(name), count) for name in ("valid_loss", "valid_accuracy", "skips", "entropy"))
    _, best = retained(run)
    rows = []
    for k in range(count):
        name = join(f"learner {k}", *([" ", el("b", "retained" if run.result else "best so far")] if k == best else []))
        rows.append((name, shown(loss[k]), percent(accuracy[k]), shown(skips[k]), shown(entropy[k], 3)))
    head = ("", "loss", "accuracy", "skips", "entropy")
    return table(head, rows, caption=f"Validation of W after epoch {row['epoch'] + 1}")


def seed_table(run: Run) -> Markup:
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
        cells = (percent(test), percent(number(row.get("train_error"))), trained, duration(seconds) if seconds else "–")
        rows.append((f"seed {seed}", *cells))
    return table(("", "test", "training", "epochs", "time"), rows, caption="Error by seed") if rows else join()


def genotype_text(genotype: Architecture | None) -> Markup:
    if genotype is None:
        return join()
    data = el("details", el("summary", "As JSON (genotype.json)"), el("pre", json.dumps(genotype.to_json())))
    note = el("p", "Operation:input state, two for each node.", class_="soft") if isinstance(genotype, Genotype) else join()
    return join(el("h3", "Genotype"), note, el("pre", genotype.describe()), data)


def seed_names(run: Run) -> str:
    seeds = run.config.get("seeds", run.config.get("seed", "unknown"))
    return ", ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)
