"""The report of finished, unfinished and damaged runs: what it says, that it is whole HTML, and that it loads nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from pamkd.cli import main
from pamkd.report import write_report
from pamkd.runs.search import Search

VOID = {"meta", "link", "br"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr"]
FLAGS += ["--virtual-time-budget=3000", "--dump-dom"]


class Page(HTMLParser):
    """Checks that tags nest, ids are unique and links lead somewhere; collects text, tags and every address in an attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.ids, self.addresses, self.charts = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)
        assert {address[1:] for address in self.addresses if address.startswith("#")} <= set(self.ids)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("href", "src", "xlink:href", "data", "action") if name in values]
        if values.get("role") == "img":
            self.charts.append([])
        elif self.charts and self.open[-1:] == ["svg"] and len(self.charts[-1]) < 2:
            self.charts[-1].append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def read(path) -> Page:
    text = path.read_text(encoding="ascii")
    page = Page(text)
    assert "script" not in page.tags
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    assert not re.search(r"url\(|@import|<base", text)
    assert "default-src 'none'" in html.unescape(text)
    assert all(chart == ["title", "desc"] for chart in page.charts)
    assert not re.search(r"\b(nan|inf|None|NaN)\b", page.text)
    assert not re.search(r'[ "MLCVH-](nan|inf)', text)
    return page


def test_whole_run(search_run, evaluation_run):
    run = search_run(warmup_v_epochs=1, warmup_w_epochs=1)
    genotype = json.loads((run / "genotype.json").read_text())
    evaluation_run(run / "evaluation", genotype)
    assert write_report(run) == run / "report.html"
    page = read(run / "report.html")
    result = json.loads((run / "evaluation" / "result.json").read_text())
    for part in (
        f"{100 * result['test_error_mean']:.2f} ± {100 * result['test_error_std']:.2f} %",
        "3,349,342",
        "528,000,000",
        "6 min 9 s",  # 6 epochs of 61.5 s
        f"learner {json.loads((run / 'result.json').read_text())['learner']}",
        " ".join(f"{op}:{state}" for op, state in genotype["normal"]),
        "Who teaches learner 0",
        "Who teaches learner 1",
        "Normal cell, learner 0",
        "Reduction cell, learner 1",
        "Entropy of the architecture weights",
        "fd_step",
        "dataset.fingerprint",
        "epoch 2: W trains too, epoch 3: architectures move",
    ):
        assert part in page.text, part
    assert "To know" not in page.text
    assert len(page.charts) == 4 + 4 + 7 + 3 + 2 + 4  # evaluation, cells, curves, flow, entropy and skips, heat maps


def test_command_and_out(search_run, tmp_path, capsys):
    run, out = search_run(), tmp_path / "new" / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert "Not evaluated yet" in read(out).text
    assert main(["report", str(run), "--out", str(tmp_path)]) == 2
    assert "needed is the name of an HTML file" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["nothing", "missing"])
def test_no_run(tmp_path, capsys, what):
    folder = tmp_path if what == "nothing" else tmp_path / what
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert str(folder) in error and "pamkd search" in error and error.count("\n") == 1


def test_one_learner(search_run):
    page = read(write_report(search_run(learners=1)))
    assert "One learner: nobody teaches." in page.text
    assert "Training loss of V" not in page.text


def test_unfinished_and_cut_short(search_run):
    run = search_run(done=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "epo')
    page = read(write_report(run))
    assert "2 of 6 epochs done" in page.text and "cut short" in page.text and "best so far" in page.text
    assert "Normal cell" in page.text


def test_no_epoch_yet(search_run):
    page = read(write_report(search_run(done=0)))
    assert "There are no metrics" in page.text and "No genotype yet" in page.text


def test_steps_without_an_epoch(search_run):
    run = search_run(done=1)
    path = run / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"kind": "step"' in line))
    page = read(write_report(run))
    assert "Training loss of W" in page.text and "No epoch is complete yet" in page.text


def test_not_a_number(search_run):
    run = search_run()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "epoch" and row["epoch"] >= 3:
            row["valid_loss"][1] = float("nan")
            row["train_loss"][1] = float("inf")
            row["mixtures"]["normal"][1][0][0] = float("nan")
            row["entropy"][1] = None
            row["flow"][0][1] = float("nan")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = read(write_report(run))
    assert "Learner 1: no finite validation loss in 3 epochs, first in epoch 4" in page.text


@pytest.mark.parametrize("value", ["{", "[]", '{"normal": 3}', "null"])
@pytest.mark.parametrize("name", ["manifest.json", "result.json", "genotype.json", "config.yaml"])
def test_damaged_file(search_run, name, value):
    run = search_run()
    (run / name).write_text(value)
    read(write_report(run))


@pytest.mark.parametrize("field", ["valid_loss", "flow", "flow_steps", "mixtures", "operations", "genotypes", "phase", "skips", "seconds"])
@pytest.mark.parametrize("value", [None, 3, "x", [], {}])
def test_damaged_field(search_run, field, value):
    run = search_run(epochs=2)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row | {field: value}) + "\n" for row in rows))
    read(write_report(run))


def test_places_that_are_no_numbers(search_run):
    run = search_run(epochs=3)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    places = {0: "0", 1: float("inf")}  # as no search writes them: one that can be read, and one that cannot
    changed = [row | {"epoch": places.get(row["epoch"], row["epoch"])} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    page = read(write_report(run))
    assert f"{len(rows) // 3} of {len(rows)} lines of metrics.jsonl cannot be read" in page.text


def test_impossible_genotype(search_run):
    run = search_run()
    genotype = json.loads((run / "genotype.json").read_text())
    genotype["normal"][0] = ["skip_connect", 7]
    (run / "genotype.json").write_text(json.dumps(genotype))
    assert "The genotype cannot be used: no genotype: entry 0 of normal" in read(write_report(run)).text


def test_text_is_escaped(search_run):
    bad = '<script>alert("1")</script>&amp;'
    run = search_run("run<b>", data=Path(bad), done=1)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"command": bad, "started": bad, bad: {bad: [bad]}}))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[-1]["phase"] = bad
    rows[-1]["operations"]["normal"][0][0][0] = bad
    rows[-1]["genotypes"][0]["normal"][0][0] = bad
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = read(write_report(run))  # which asserts that there is no script element
    assert page.text.count(bad) >= 5 and "run<b>" in page.text and "b" not in page.tags[: page.tags.index("nav")]


def test_evaluation_alone(search_run, evaluation_run, tmp_path):
    genotype = json.loads((search_run() / "genotype.json").read_text())
    page = read(write_report(evaluation_run(tmp_path / "one", genotype, seeds=(3,))))
    assert "one seed (3)" in page.text and "Architecture weights" not in page.text
    page = read(write_report(evaluation_run(tmp_path / "two", genotype, done=7)))
    assert "Unfinished: 7 epochs done of 5 epochs for each of 3 seeds" in page.text and "Test error so far" in page.text


def test_other_genotype_evaluated(search_run, evaluation_run):
    run = search_run()
    genotype = json.loads((run / "genotype.json").read_text())
    evaluation_run(run / "evaluation", genotype | {"normal": genotype["reduce"], "reduce": genotype["normal"]})
    assert "The evaluated genotype is not the one that this search retained." in read(write_report(run)).text


def test_large_run_stays_small(search_run, evaluation_run):
    run = search_run(learners=4, epochs=70, steps=40)
    evaluation_run(run / "evaluation", json.loads((run / "genotype.json").read_text()), seeds=range(5), epochs=600)
    path = write_report(run)
    assert "60 of 70 epochs" in read(path).text
    assert path.stat().st_size < 1_000_000


def test_same_run_same_page(search_run):
    run = search_run()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_what_a_search_writes(tmp_path):
    """The numbers of the page are those of a search that really ran."""
    images, labels = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    data = TensorDataset(images, labels)
    options = {"epochs": 1, "channels": 2, "cells": 3, "batch_size": 8, "group_size": 2, "log_every": 1}
    result = Search(learners=2, out=tmp_path / "run", **options).run(data, data, classes=3)
    page = read(write_report(tmp_path / "run"))
    assert f"{100 * result.valid_accuracy[result.learner]:.2f} %" in page.text
    assert f"learner {result.learner} retained" in page.text
    assert " ".join(f"{op}:{state}" for op, state in result.genotype.reduce) in page.text
    assert len(page.charts) == 4 + 7 + 3 + 2 + 4


def browse(page, folder) -> tuple[str, str]:
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_browser(search_run, evaluation_run, tmp_path):
    """Nothing on the console, nothing wider than a phone, no text under 8 pixels there, no two texts of a chart overlapping."""
    run = search_run(learners=3, warmup_v_epochs=1)
    evaluation_run(run / "evaluation", json.loads((run / "genotype.json").read_text()))
    report = write_report(run)
    dom, console = browse(report, tmp_path / "one")
    assert console == "" and "<figure" in dom

    harness = tmp_path / "phone.html"
    text = report.read_text().replace("default-src 'none'", "").replace("<details>", "<details open>")
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)
    harness.write_text(
        f'<iframe id="f" style="width:375px;height:800px;border:0" srcdoc="{html.escape(text)}"></iframe><p id="out"></p>'
        """<script>f.onload = () => {
        const page = f.contentDocument, root = page.documentElement, small = [], overlap = [];
        for (const svg of page.querySelectorAll("svg[role=img]")) {
            const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect(), t]);
            const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
            boxes.forEach(([text, a, t], i) => {
                if (scale * parseFloat(getComputedStyle(t).fontSize) < 8) small.push(text);
                for (const [other, b] of boxes.slice(i + 1)) {
                    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                    const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                    if (x > 1 && y > 4) overlap.push(text + "/" + other);
                }
            });
        }
        out.textContent = JSON.stringify({width: root.scrollWidth, small, overlap});
        }</script>"""
    )
    dom, _ = browse(harness, tmp_path / "two")
    found = json.loads(html.unescape(re.search(r'<p id="out">(.*?)</p>', dom).group(1)))
    assert found == {"width": 375, "small": [], "overlap": []}
