"""The paper's tables as commands: rows, settings, runs that are shared and continued, statistics, and what is written."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import json
import re
import shlex
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from pamkd.cli import main
from pamkd.reproduce import ReproduceConfig, reproduce, units
from pamkd.reproduce.command import _scale
from pamkd.reproduce.neighbours import nearest_rows
from pamkd.reproduce.paper import C10, C100, TABLES
from pamkd.reproduce.scales import SCALES, Machine, columns, evaluation_config, search_config
from pamkd.reproduce.statistics import Paired, mean_std, paired
from pamkd.reproduce.units import Measured, Unit, gather
from pamkd.reproduce.write import cells, write_table
from pamkd.runs import evaluate_presets
from pamkd.runs.config import SearchConfig
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.lookup import find_cell, open_table
from pamkd.runs.method import method_of
from pamkd.runs.options import parse, save_config
from pamkd.spaces.topology import every_topology


def test_rows_of_the_paper():
    assert [len(TABLES[name].rows) for name in ("table1", "table2", "table3", "table4", "table5", "table6")] == [37, 16, 36, 9, 6, 6]
    figures = {row.key: row.paper for row in TABLES["table1"].rows}
    assert figures["darts/pamkd"] == {C100: "17.61±0.16", C10: "2.38±0.03"} and figures["pdarts/cream"][C10] == "2.65±0.04"
    for name, table in TABLES.items():
        keys = [row.key for row in table.rows]
        assert len(set(keys)) == len(keys), name
        for row in table.rows:
            assert set(row.paper) <= set(table.columns)


def test_the_paper_scale_is_the_paper():
    rows = {row.key: row for row in TABLES["table1"].rows}
    config = search_config(SCALES["paper"], rows["darts/pamkd"], C100, 3, Machine())
    assert (config.dataset, config.order, config.epochs, config.batch_size, config.channels, config.cells) == (C100, "first", 50, 64, 16, 8)
    assert (config.learners, config.seed, config.method) == (2, 3, "pamkd")
    assert search_config(SCALES["paper"], rows["darts/okddip"], C10, 0, Machine()).learners == 3
    weights = {}
    for key in ("darts/pamkd", "pdarts/pamkd", "pcdarts/pamkd", "prdarts/pamkd", "pcdarts/mkd"):
        configs = (search_config(SCALES["paper"], rows[key], column, 0, Machine()) for column in (C100, C10))
        weights[key] = [method_of(config).weight for config in configs]
    assert weights == {
        "darts/pamkd": [0.5, 0.5],
        "pdarts/pamkd": [1.0, 1.0],
        "pcdarts/pamkd": [0.1, 0.5],
        "prdarts/pamkd": [0.5, 0.5],
        "pcdarts/mkd": [1.0, 1.0],
    }
    evaluation = evaluation_config(SCALES["paper"], rows["darts/pamkd"], C100, 3, Machine())
    assert (evaluation.epochs, evaluation.channels, evaluation.cells, evaluation.seeds) == (600, 36, 20, (3,))
    assert SCALES["paper"].seeds == tuple(range(10))


# Sec. 4.2: lambda of PAMKD; where it says nothing (S1 to S4, ImageNet, NAS-Bench-201) the 0.5 of most.
LAMBDA = {("pcdarts", C100): 0.1, ("pdarts", C100): 1.0, ("pdarts", C10): 1.0}
LAMBDA_ONE = ("no-1st", "mkd", "kdcl", "afd", "one", "okddip", "2nd-mkd", "2nd-kdcl", "cream")


def test_every_row_at_the_scale_paper():
    """Cells, epochs, learners, lambda, epsilon, R, order and the searched dataset of all rows of all tables and figures."""
    for name, table in TABLES.items():
        for row in table.rows:
            for column in row.paper:
                search = search_config(SCALES["paper"], row, column, 7, Machine())
                evaluation = evaluation_config(SCALES["paper"], row, column, 7, Machine())
                method, where = method_of(search), (name, row.key, column)
                searched = row.options.get("dataset", column)
                assert (search.dataset, evaluation.dataset) == (searched, column), where
                assert (search.method, search.seed, search.order, evaluation.seeds) == (row.method, 7, "first", (7,)), where
                stages = {"pdarts": (5, 75), "drnas-nasbench201": (5, 50)}  # of three depths, and of five cells in each of three
                assert (search.cells, search.epochs) == stages.get(row.space, (8, 50)), where
                if "/k-" not in row.key and row.key != "darts/plain-2":
                    assert search.learners == {"plain": 1, "cream": 1, "okddip": 3}.get(row.method, 2), where
                if row.method == "pamkd":
                    expected = LAMBDA.get((row.space, searched), 0.5)
                    assert method.weight == row.options.get("distill_weight", expected), where
                    if "transfer" not in row.options:
                        assert (method.transfer.epsilon, method.transfer.group_size, method.transfer.reduction) == (0.01, 5, "sum"), where
                elif row.method in LAMBDA_ONE:
                    assert method.weight == 1.0, where
                if column in (C10, C100) and "nasbench" not in row.space:
                    assert evaluation.epochs == 600 and search.train_portion == 0.5, where


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    rows = ("darts/pamkd", "darts/no-1st")
    return out, reproduce(ReproduceConfig("table6", scale="smoke", rows=rows, out=out, threads=1))


def test_smoke_table(smoke):
    _, paths = smoke
    assert [path.name for path in paths] == ["table6.md", "table6.csv", "table6.html"]
    head, *rows = csv.reader(paths[1].open())
    assert [row[0] for row in rows] == ["Darts1st + PAMKD (ours)", "Darts1st + No-1st"]
    named = [dict(zip(head, row, strict=True)) for row in rows]
    assert named[0]["paper: Error-C10"] == "2.38±0.03" and named[0]["seeds"] == "2"
    assert "±" in named[1]["ours: error digits (%)"] and "p = " in named[1]["difference to pamkd"]
    assert (
        float(named[0]["ours: search (s)"]) >= 0 and "<table>" in paths[2].read_text() and "| Darts1st + No-1st |" in paths[0].read_text()
    )


def test_runs_are_shared_and_not_repeated(smoke, capsys):
    """Table 5 needs the PAMKD runs that table 6 made; nothing is run twice."""
    out, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert len(before) == 2 * 2 * 2  # rows, seeds, search and evaluation
    reproduce(ReproduceConfig("table5", scale="smoke", rows=("darts/pamkd",), out=out, threads=1))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == before
    assert main(["reproduce", "table6", "--scale", "smoke", "--rows", "darts/*", "--out", str(out), "--list"]) == 0
    assert capsys.readouterr().out.count("done    darts/") == 4


def test_two_commands_do_not_run_one_unit_at_once(tmp_path, monkeypatch):
    """As two tables do that share a run: the second waits, and finds it done."""
    row, machine = TABLES["table1"].rows[0], ReproduceConfig("table1").machine
    configs = (make(SCALES["smoke"], row, "digits", 0, machine) for make in (search_config, evaluation_config))
    unit, begun = Unit.of(row, "digits", 0, *configs, tmp_path), []

    def done(config):
        begun.append(type(config))
        time.sleep(0.2)
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "result.json").write_text("{}")

    for name in ("search", "evaluate"):
        monkeypatch.setattr(units, name, done)
    commands = [threading.Thread(target=unit.run) for _ in range(2)]
    for command in commands:
        command.start()
    for command in commands:
        command.join()
    assert begun == [SearchConfig, EvaluateConfig]


def test_figure3_is_drawn_as_curves(tmp_path):
    """Means and seeds of each row at their heights; what has not run leaves a gap, and columns that the paper has not are left out."""
    table = TABLES["figure3"]
    errors = {"pdarts/lambda-0": (3.0, 5.0), "pdarts/lambda-1": (8.0, 6.0), "darts/k-2": (4.0,), "darts/k-3": (4.0,)}
    found = {(key, C10): [Measured(i, error, 0.0, 1.0, 5e6, 1.0, 1.0) for i, error in enumerate(seen)] for key, seen in errors.items()}
    paths = write_table(tmp_path / "figure3", table, (C10,), table.rows, found, [])
    first, second = re.findall(r"<svg.*?</svg>", paths[2].read_text(), re.S)[:2]
    assert first.count('r="4"') == 2 and first.count('r="2"') == 4 and second.count('r="4"') == 2
    assert ">0.1</text>" in first and ">3</text>" in second and "lambda" in first
    (low, high) = [float(y) for y in re.findall(r'cy="([\d.]+)" r="4"', first)]
    seeds = [float(y) for y in re.findall(r'cy="([\d.]+)" r="2"', first)]
    assert low > high and (low - high) / 3 == pytest.approx((seeds[0] - seeds[1]) / 2, abs=0.2), "means are 3 apart, seeds 2"
    head, *rows = csv.reader(paths[1].open())
    assert not any(name.startswith("paper") for name in head)
    assert [row[head.index("difference to lambda-1 or k-2")][:5] for row in rows] == ["-3.00", "–", "–", "–", "–", "–", "–", "–", "+0.00"]


def test_top5_errors_stand_beside_those_of_the_paper():
    table = TABLES["table3"]
    key = "pcdarts-imagenet/pamkd"
    found = {(key, C10): [Measured(seed, 23.0, 6.0 + seed, 1.0, 5e6, 1.0, 1.0) for seed in (0, 1)]}
    head, body = cells(table, (C10,), table.rows, found)
    (line,) = (dict(zip(head, entries, strict=True)) for entries in body if entries[0].startswith("Pcdarts + PAMKD"))
    assert (line["paper: Top-1"], line["paper: Top-5"], line["ours: top-5 error cifar10 (%)"]) == ("22.8", "6.4", "6.50±0.71")
    head, _ = cells(TABLES["table1"], (C10,), TABLES["table1"].rows, {})
    assert "paper: Top-5" not in head


def test_cells_of_table4_are_looked_up(tmp_path, capsys):
    """What a search found, in a table that knows all cells, beside both errors of the paper; and the commands that do it."""
    table = tmp_path / "cells.csv"
    cells_of = {str(cell): i for i, cell in enumerate(every_topology())}
    lines = (f"{cell},{i / 1000},{i / 500}" for cell, i in cells_of.items())
    table.write_text("\n".join(["architecture,cifar10_valid,cifar10_test", *lines]) + "\n")
    row = next(row for row in TABLES["table4"].rows if row.method == "plain")
    options = {"space": row.space, "method": "plain", "learners": 1, "order": "first", "epochs": 1, "channels": 2, "cells": 1}
    search = SearchConfig(batch_size=256, tensorboard=False, threads=1, **options)
    unit = Unit.of(row, C10, 0, search, EvaluateConfig(), tmp_path, table)
    assert not unit.done
    unit.run()
    assert unit.done and not unit.evaluation.folder.exists()
    number = cells_of[str(find_cell(EvaluateConfig(run=unit.search.folder)))]
    head, body = cells(TABLES["table4"], (C10,), [row], gather([unit], open_table(table)))
    line = dict(zip(head, body[0], strict=True))
    assert line["ours: error cifar10 (%)"] == f"{100 - number / 500:.2f}" and line["paper: Error-C10"] == "5.64±0.00"
    assert line["ours: validation error cifar10 (%)"] == f"{100 - number / 1000:.2f}" and line["paper: validation Error-C10"] == "8.45±0.00"
    assert line["ours: param. (M)"] == line["ours: evaluation (s)"] == "–"
    words = ["--scale", "paper", "--rows", "*/mkd", "--seeds", "0", "--list", "--out", str(tmp_path), "--table", str(table)]
    assert main(["reproduce", "table4", *words]) == 0
    said = capsys.readouterr().out
    assert said.count(f"--table {table}") == 3 and "pamkd evaluate" not in said
    assert main(["reproduce", "table1", *words]) == 2 and "needed is None, except for table4" in capsys.readouterr().err


def test_list_runs_nothing(tmp_path, capsys):
    paths = reproduce(ReproduceConfig("figure2", scale="small", out=tmp_path, list=True))
    said = capsys.readouterr().out
    assert said.count("to run ") == 6 * 5 and "--transfer l2w" in said and "--transfer grs" not in said and "pamkd evaluate --run" in said
    assert not list(tmp_path.rglob("config.yaml")) and "–" in paths[0].read_text()


@pytest.mark.parametrize(
    ("what", "rows", "more"),
    [
        ("table3", "pcdarts-imagenet/okddip", {"scale": "paper"}),
        ("table3", "pdarts-cifar100/mkd", {"scale": "paper"}),
        ("table4", "*/cream", {"scale": "paper"}),
        ("table6", "prdarts/no-1st", {"scale": "paper"}),
        ("figure3", "pdarts/lambda-0.1", {}),
        ("table1", "darts/plain", {"data": Path("some pictures")}),
    ],
)
def test_listed_commands_give_the_same_runs(what, rows, more, tmp_path, capsys):
    config = ReproduceConfig(what, rows=(rows,), seeds=(3,), list=True, out=tmp_path, threads=1, **more)
    reproduce(config)
    (row,) = (row for row in TABLES[what].rows if fnmatch.fnmatchcase(row.key, rows))
    scale = _scale(config)
    for line, column in zip(capsys.readouterr().out.splitlines(), columns(scale, row), strict=True):
        search, evaluation = (shlex.split(part)[2:] for part in line.split(f"{column} seed 3: ")[1].split("&&"))
        found = parse(SearchConfig, search, {}, "pamkd search")
        assert dataclasses.replace(found, out=None) == search_config(scale, row, column, 3, config.machine)
        found.folder.mkdir(parents=True)
        save_config(found, found.folder / "config.yaml")
        run = parse(EvaluateConfig, evaluate_presets.arguments(evaluation), evaluate_presets.PRESETS, "pamkd evaluate")
        expected = evaluation_config(scale, row, column, 3, config.machine)
        assert run.run == found.out and dataclasses.replace(run, run=None, out=None) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("table9", "'table9' is no table or figure that can be reproduced; those are figure1, figure2, figure3, table1"),
        ("table5 --space dats", "space is 'dats': needed is one of darts"),
        ("table5 --rows nas/*", "no row of table5 matches nas/*"),
        ("figure1 --rows ensemble", "no row of figure1 matches ensemble"),
        ("figure1 --space pdarts", "leave --space pdarts away"),
        ("figure1 --threads -1", "threads is -1: needed is 0"),
    ],
)
def test_mistakes_are_one_sentence(words, message, tmp_path, capsys):
    assert main(["reproduce", *words.split(), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_statistics():
    assert mean_std([1.0, 2.0, 4.0]) == "2.33±1.53" and mean_std([5.0]) == "5.00" and mean_std([]) == "–"
    found = paired({0: 1.0, 1: 2.0, 2: 5.0}, {1: 3.0, 2: 3.0, 7: 0.0})
    assert found.differences == (-1.0, 2.0)
    for differences in ((1.0, 2.0, 3.0), (-1.0, 2.0, 0.5, 0.0), (-0.3, 0.1, 0.7, -0.2, 0.9, 0.4)):
        pair = (np.array(differences), np.zeros(len(differences)))
        exact = stats.permutation_test(pair, lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", n_resamples=np.inf)
        assert Paired(differences).p == pytest.approx(exact.pvalue)
    assert Paired((1.0,) * 5).p == 2 / 32 and Paired((1.0,) * 31).p == 2**-30  # of whose flips there are two milliards
    assert Paired(()).p == 1
    assert str(Paired((-1.0, 2.0, -4.0))) == "-1.00 (2 lower, 1 higher; p = 0.75)"
    assert str(Paired((0.0, 2.0))) == "+1.00 (0 lower, 1 higher, 1 equal; p = 1.00)"


def test_nearest_rows():
    embedding = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [0.1, 1.0], [-1.0, 0.0]])
    assert nearest_rows(embedding, 2).tolist() == [[1, 3], [0, 3], [3, 1], [2, 1], [2, 3]]


def test_figure2_shows_neighbours(tmp_path):
    rows = ("darts/grs", "darts/pl")
    paths = reproduce(ReproduceConfig("figure2", scale="smoke", rows=rows, seeds=(0,), out=tmp_path, threads=1))
    assert "of the query's class: grs" in paths[0].read_text()
    with Image.open(tmp_path / "smoke" / "figure2.png") as picture:
        assert picture.size == (9 * 8 * 4 + 2 * 6, 8 * (8 * 4 + 6) - 6)


def test_figure1_has_a_bar_for_each_learner(tmp_path, capsys):
    """Before, nobody, MKD, KDCL, AFD and three settings of PAMKD, three learners each, all different; what is done is kept."""
    words = {"scale": "smoke", "seeds": (0,), "out": tmp_path, "threads": 1}
    reproduce(ReproduceConfig("figure1", **words, rows=("nob*",)))
    few = json.loads((tmp_path / "smoke" / "figure1" / "seed-0.json").read_text())
    assert list(few) == ["before", "nobody"]
    paths = reproduce(ReproduceConfig("figure1", **words))
    seed = tmp_path / "smoke" / "figure1" / "seed-0.json"
    assert few.items() <= json.loads(seed.read_text()).items(), "what was there stays"
    head, *rows = csv.reader(paths[1].open())
    assert len(head) == 6 and [row[0] for row in rows][:5] == ["V, before", "W, taught by nobody", "W, MKD", "W, KDCL", "W, AFD"]
    assert len({tuple(row[1:4]) for row in rows}) == len(rows) == 8
    assert paths[2].suffix == ".html" and paths[2].read_text().count('class="dot c') == 8 * 3
    before = seed.stat().st_mtime_ns
    reproduce(ReproduceConfig("figure1", **words))
    assert seed.stat().st_mtime_ns == before
    assert main(["reproduce", "figure1", "--scale", "smoke", "--seeds", "0", "7", "--list", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("done    ") == 7 and said.count("to run ") == 7 and not seed.with_name("seed-7.json").exists()
    assert main(["reproduce", "figure1", "--scale", "paper", "--seeds", "0", "--rows", "mkd", "--list", "--out", str(tmp_path)]) == 0
    assert "3 learners on cifar100, 16 channels, 8 cells, 50 epochs" in capsys.readouterr().out


def test_a_folder_of_images_instead_of_digits(tmp_path, capsys):
    """Other folders than those of digits; and a space whose channels must be divisible takes more of them."""
    words = ["--scale", "smoke", "--rows", "darts/pamkd", "--space", "drnas", "--list", "--out", str(tmp_path)]
    assert main(["reproduce", "table5", *words, "--data", "pictures"]) == 0
    said = capsys.readouterr().out
    assert "--dataset folder --data pictures --image-size 16" in said and "--channels 12" in said and "--epochs 2" in said
    assert str(tmp_path / "smoke-pictures") in said
    again = [*words, "--data"]
    folders = set()
    for place in ("a/pictures", "b/pictures", "a/../b/pictures"):
        main(["reproduce", "table5", *again, place])
        folders.add(re.search(r"--run (\S+)", capsys.readouterr().out)[1])
    assert len(folders) == 2, "two folders of images never share a run"
