"""The tables and figures of the paper: rows, what the paper measured, and the settings that it states.

Test errors in %, "?" where the scan of the paper is not clear. Rows that the paper takes from other papers are left out but for
the searches that its methods are added to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

C100, C10, IMAGENET, IMAGENET16 = "cifar100", "cifar10", "imagenet", "imagenet16-120"


@dataclass(frozen=True)
class Row:
    """One search (and evaluation) for each column that `paper` names, and seed. `options` are those of `pamkd search`."""

    key: str  # space/what
    label: str
    space: str
    paper: dict[str, str]
    method: str = "pamkd"
    options: dict[str, Any] = field(default_factory=dict)
    parameters: str = ""  # millions, in the paper
    cost: str = ""  # GPU days of search, in the paper
    top5: str = ""  # error of a label not among the five likeliest, in the paper
    valid: dict[str, str] = field(default_factory=dict)  # validation errors beside the test errors of `paper`


@dataclass(frozen=True)
class Drawing:
    """Test errors of some rows side by side, `joined` to a curve where they stand along an axis."""

    title: str
    axis: str
    rows: dict[str, str]  # key: what stands below
    joined: bool = True


@dataclass(frozen=True)
class Table:
    title: str
    about: str
    columns: dict[str, str]  # dataset of the evaluation: heading
    rows: tuple[Row, ...]
    references: tuple[str, ...] = ("pamkd",)  # last parts of the keys of the rows that others of their space are compared with
    command: str = "pamkd reproduce"  # what writes it
    drawings: tuple[Drawing, ...] = ()


LABELS = {"darts": "Darts1st", "pdarts": "Pdarts", "pcdarts": "Pcdarts", "prdarts": "Prdarts", "drnas-nasbench201": "Drnas"}
NAMES = {
    "plain": "",
    "mkd": "MKD",
    "nes": "NES",
    "okddip": "OKDDip",
    "kdcl": "KDCL",
    "afd": "AFD",
    "one": "ONE",
    "cream": "Cream",
    "pamkd": "PAMKD (ours)",
    "2nd-mkd": "2nd-MKD",
    "2nd-kdcl": "2nd-KDCL",
    "no-1st": "No-1st",
}
# Learners where a method needs others than 2: DARTS alone is one search, OKDDip two peers and a leader, Cream one supernet.
LEARNERS = {"plain": 1, "okddip": 3, "cream": 1}


def row(space: str, method: str, paper: dict[str, str], parameters: str = "", cost: str = "") -> Row:
    label = " + ".join(filter(None, [LABELS.get(space, space.upper()), NAMES[method]]))
    options = {"learners": LEARNERS[method]} if method in LEARNERS else {}
    return Row(f"{space}/{method}", label, space, paper, method, options, parameters, cost)


def _table1() -> Table:
    order = ("plain", "mkd", "nes", "okddip", "kdcl", "afd", "one", "cream", "pamkd")
    figures = {
        "darts": """20.52±0.31 3.00±0.14 1.8 0.4|18.37±0.16 2.70±0.05 2.1 1.3|18.32±0.19 2.75±0.11 2.2 1.2|18.69±0.21 2.83±0.09 2.1 1.5
            |18.33±0.10 2.68±0.06 2.3 1.7|18.62±0.17 2.85±0.06 2.2 1.6|18.93±0.11 2.68±0.07 2.3 1.4|18.36±0.14 2.95±0.12 2.3 1.8
            |17.61±0.16 2.38±0.03 2.2 1.2""",
        "pdarts": """17.43±0.15 2.54±0.04 3.6 0.3|16.55±0.13 2.50±0.02 3.7 2.1|16.48±0.16 2.75±0.08 3.6 2.2|16.92±0.20 2.77±0.11 3.8 2.4
            |16.59±0.08 2.52±0.05 3.8 2.3|16.79±0.15 2.51±0.03 3.7 2.4|17.04±0.09 2.68±0.07 3.8 2.0|16.38±0.14 2.65±0.04 3.5 2.5
            |15.82±0.11 2.42±0.06 3.6 2.1""",
        "pcdarts": """17.01±0.06 2.57±0.07 4.0 0.1|16.38±0.13 2.56±0.03 4.2 0.6|16.36±0.11 2.69±0.06 4.2 0.7|16.59±0.14 2.72±0.09 4.4 0.8
            |16.33±0.09 2.61±0.08 4.3 0.9|16.71±0.16 2.59±0.07 4.3 0.8|16.92±0.18 2.66±0.04 4.0 0.8|16.63±0.10 2.74±0.05 4.3 1.0
            |15.89±0.07 2.46±0.05 4.1 0.6""",
        "prdarts": """16.48±0.06 2.37±0.03 3.4 0.2|16.35±0.08 2.35±0.02 3.3 0.8|16.59±0.06 2.48±0.06 3.6 0.9|16.83±0.04 2.51±0.07 3.5 1.0
            |16.39±0.07 2.42±0.05 3.6 0.8|16.47±0.06? 2.39±0.08 3.6 0.9|17.03±0.09? 2.48±0.09 3.4 1.1|16.80±0.05? 2.36±0.06? ? ?
            |16.05±0.04 2.28±0.03 3.3? 0.8?""",
    }
    rows = []
    for space, text in figures.items():
        for method, part in zip(order, text.split("|"), strict=True):
            first, second, parameters, cost = part.split()
            rows.append(row(space, method, {C100: first, C10: second}, parameters, cost))
    nothing = {C100: "–", C10: "–"}
    rows.insert(1, Row("darts/plain-2", "Darts1st, better of 2 searches", "darts", nothing, "plain", {"learners": 2}))  # a control
    about = "Search in four spaces with nine methods; the retained learner's architecture is trained from scratch and tested."
    return Table("Table 1", about, {C100: "Error-C100", C10: "Error-C10"}, tuple(rows))


def _table2() -> Table:
    order = ("plain", "mkd", "okddip", "pamkd")
    figures = {
        "s1": "29.93±0.41 4.66±0.71|29.53±0.66 4.38±0.59|29.18±0.49 4.01±0.36|22.32±0.23 2.43±0.11",
        "s2": "28.75±0.92 4.42±0.40|28.47±0.32 4.58±0.25|28.83±0.69 4.32±0.69|21.47±0.50 2.30±0.07",
        "s3": "29.01±0.24 4.12±0.85|28.58±0.42 4.07±0.62|27.62±0.23 3.89±0.58|20.61±0.27 2.27±0.04",
        "s4": "24.77±1.51 6.95±0.18|23.99±1.37 5.96±0.37|23.64±1.06 5.61±0.15|21.05±0.64 2.54±0.15",
    }
    rows = [
        row(space, method, dict(zip((C100, C10), part.split(), strict=True)))
        for space, text in figures.items()
        for method, part in zip(order, text.split("|"), strict=True)
    ]
    about = "Robustness: spaces made so that DARTS collapses."
    return Table("Table 2", about, {C100: "Error-C100", C10: "Error-C10"}, tuple(rows))


def _table3() -> Table:
    order = ("plain", "mkd", "nes", "okddip", "kdcl", "afd", "one", "cream", "pamkd")
    figures = {
        ("darts", C10): (["?"] * 9, ["?"] * 9),
        ("pdarts", C10): (
            ["24.3?", "24.4?", "24.4?", "24.5?", "24.5?", "24.5?", "24.5?", "24.3?", "23.9"],
            ["7.4?", "7.4?", "7.5?", "7.4?", "7.4?", "7.4?", "7.0?", "7.3?", "6.8"],
        ),
        ("pdarts", C100): (
            ["24.7", "23.8", "24.0", "24.3", "23.9", "23.8", "24.6", "24.5", "23.2"],
            ["7.5", "7.1", "7.3", "7.5", "7.2", "7.0", "7.6", "7.5", "6.7"],
        ),
        ("pcdarts", IMAGENET): (
            ["24.2", "23.2", "23.4", "23.6", "23.4", "23.2", "23.5", "23.9", "22.8"],
            ["7.3", "6.8", "7.0", "7.1", "7.1", "6.9", "7.1", "7.2", "6.4"],
        ),
    }
    rows = []
    for (space, searched), (first, fifth) in figures.items():
        for method, value, top5 in zip(order, first, fifth, strict=True):
            made = row(space, method, {IMAGENET: value})
            options = made.options | {"dataset": searched}
            rows.append(Row(f"{space}-{searched}/{method}", f"{made.label}, {searched}", space, made.paper, method, options, top5=top5))
    about = "Architectures found on the dataset named, trained on ImageNet."
    return Table("Table 3", about, {IMAGENET: "Top-1"}, tuple(rows))


def _table4() -> Table:
    order = ("plain", "mkd", "nes", "okddip", "kdcl", "afd", "one", "cream", "pamkd")
    tested = """5.64±0.00 26.49±0.00 53.66±0.00|9.42±0.74 31.04±3.58 55.41±0.27|12.45±0.42 29.52±3.52 54.28±0.13
        |10.28±0.44 29.27±4.88 61.36±0.52|10.64±0.58 30.73±3.92 60.95±0.26|12.01±0.64 28.75±2.70 58.18±0.77
        |6.50±0.21 29.41±2.61 59.14±2.49|5.63±0.26 25.98±0.53 59.28±0.31|5.17±0.07 25.75±0.07 52.41±0.09"""
    validated = """8.45±0.00 26.51±0.00 53.63±0.00|11.53±0.82 32.56±2.56 56.25±0.15|9.09±0.68 34.62±3.72 53.73±0.33
        |8.96±0.73 31.29±1.08 55.31±1.36|10.99±0.75 32.72±1.94 53.74±0.42|11.05±0.79 33.96±2.51 54.16±0.41
        |10.65±0.37 31.16±0.38 58.36±0.12|14.51±0.36 29.38±0.99 54.02±0.23|7.36±0.11 25.42±0.10 52.27±0.15"""
    columns = {C10: "Error-C10", C100: "Error-C100", IMAGENET16: "Error-ImageNet16-120"}
    rows = []
    for method, *parts in zip(order, tested.split("|"), validated.split("|"), strict=True):
        test, valid = (dict(zip(columns, part.split(), strict=True)) for part in parts)
        rows.append(replace(row("drnas-nasbench201", method, test), valid=valid))
    about = "NAS-Bench-201, errors: 100 less the accuracies that the paper prints, of DrNAS with each method."
    return Table("Table 4", about, columns, tuple(rows))


def _table5() -> Table:
    rows = (
        row("darts", "2nd-mkd", {C100: "18.25±0.10", C10: "2.66±0.07"}),
        row("darts", "2nd-kdcl", {C100: "18.03±0.14", C10: "2.68±0.06"}),
        row("darts", "pamkd", {C100: "17.61±0.16", C10: "2.38±0.03"}),
        row("pdarts", "2nd-mkd", {C100: "16.72±0.09", C10: "2.53±0.03"}),
        row("pdarts", "2nd-kdcl", {C100: "16.51±0.06", C10: "2.50±0.06"}),
        row("pdarts", "pamkd", {C100: "15.82±0.11", C10: "2.42±0.06"}),
    )
    about = "Ablation of scrutiny: the second stage with the objectives of MKD and KDCL."
    return Table("Table 5", about, {C100: "Error-C100", C10: "Error-C10"}, rows)


def _table6() -> Table:
    rows = (
        row("pdarts", "pamkd", {C100: "15.82±0.11"}),
        row("pdarts", "no-1st", {C100: "17.58±0.26"}),
        row("prdarts", "pamkd", {C100: "16.05±0.04", C10: "2.28±0.03"}),
        row("prdarts", "no-1st", {C100: "16.89±0.06", C10: "2.50±0.04"}),
        row("darts", "pamkd", {C10: "2.38±0.03"}),
        row("darts", "no-1st", {C10: "2.65±0.07"}),
    )
    return Table("Table 6", "Ablation of the first stage.", {C100: "Error-C100", C10: "Error-C10"}, rows)


def _figure2() -> Table:
    labels = {
        "pl": "pseudo-labels (PL)",
        "ts": "triple-wise (TS)",
        "ps": "pairwise (PS)",
        "l2w": "L2 on weights (L2W)",
        "l2e": "L2 on embeddings (L2E)",
        "grs": "GRS (ours)",
    }
    options = {
        name: {"transfer": name} if name != "grs" else {} for name in labels
    }  # grs is the default: its runs are those of other tables
    rows = tuple(Row(f"darts/{name}", label, "darts", {C100: "–"}, "pamkd", options[name]) for name, label in labels.items())
    about = "Knowledge transfers inside PAMKD. The paper draws bars and prints no numbers; it does not state lambda or the space."
    drawing = Drawing("Error of each transfer", "transfer", {f"darts/{name}": name.upper() for name in labels}, joined=False)
    return Table("Figure 2 (left)", about, {C100: "Error-C100"}, rows, references=("grs",), drawings=(drawing,))


def _figure3() -> Table:
    weights = [
        Row(f"pdarts/lambda-{value:g}", f"lambda {value:g}", "pdarts", {C100: "–"}, "pamkd", {"distill_weight": value})
        for value in (0.0, 0.1, 0.5, 1.0, 2.0, 3.0)
    ]
    counts = [Row(f"darts/k-{count}", f"K = {count}", "darts", {C100: "–"}, "pamkd", {"learners": count}) for count in (1, 2, 3)]
    about = "Error against lambda and the number of learners. The paper draws curves on 5,000 held-out images; here it is the test set."
    drawings = (
        Drawing("Error against lambda (P-DARTS)", "lambda", {each.key: each.key.rsplit("-", 1)[1] for each in weights}),
        Drawing("Error against the number of learners (DARTS)", "K", {each.key: each.key.rsplit("-", 1)[1] for each in counts}),
    )
    return Table("Figure 3", about, {C100: "Error-C100"}, (*weights, *counts), references=("lambda-1", "k-2"), drawings=drawings)


TABLES: dict[str, Table] = {
    "table1": _table1(),
    "table2": _table2(),
    "table3": _table3(),
    "table4": _table4(),
    "table5": _table5(),
    "table6": _table6(),
    "figure2": _figure2(),
    "figure3": _figure3(),
}
