"""Several searches on one page."""

from __future__ import annotations

import pytest

from pamkd.cli import main
from pamkd.report import write_comparison
from pamkd.report.compare import run_names
from tests.report.test_report import read


def test_page_names_every_run_and_what_differs(search_run, tmp_path):
    runs = [search_run("one"), search_run("two", seed=1, method="mkd"), search_run("three", done=2, learners=3)]
    page = read(write_comparison(runs, tmp_path / "page.html"))
    for name in ("one", "two", "three"):
        assert page.text.count(name) >= 4
    assert "mkd" in page.text and "2 of 6" in page.text and "6 of 6" in page.text
    assert "Options that differ" in page.text and "method" in page.text and "batch_size" not in page.text
    assert "max(0, L(V′" in page.text and "Weights with which the method" in page.text
    assert len(page.charts) >= 6 + 2 * (2 + 1)  # curves, and for each run who teaches whom


def test_a_run_that_has_just_begun(search_run, tmp_path):
    page = read(write_comparison([search_run("old"), search_run("new", done=0, seed=1)], tmp_path / "page.html"))
    assert "0 of 6" in page.text and "No genotype yet." in page.text


def test_command_line(search_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [str(search_run(name)) for name in ("a", "b")]
    assert main(["report", "--compare", *runs]) == 0
    assert (tmp_path / "comparison.html").is_file() and "comparison.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--compare", "a"], "--compare has 1 run"), ([], "either one run folder or --compare"), (["a", "--compare", "a"], "either one run")],
)
def test_mistakes_are_one_sentence(search_run, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    search_run("a")
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_evaluations_are_refused(search_run, evaluation_run, tmp_path):
    with pytest.raises(ValueError, match="is an evaluation"):
        write_comparison([search_run("a"), evaluation_run(tmp_path / "b", {})], tmp_path / "page.html")


def test_names_are_as_long_as_it_takes(tmp_path):
    assert run_names([tmp_path / "a" / "0", tmp_path / "a" / "1"]) == ["0", "1"]
    assert run_names([tmp_path / "a" / "0", tmp_path / "b" / "0"]) == ["a", "b"]
    assert run_names([tmp_path / "a" / "0", tmp_path / "b" / "0", tmp_path / "b" / "1"]) == ["a/0", "b/0", "b/1"]
    assert [name[:3] for name in run_names([tmp_path / "a", tmp_path / "a"])] == ["1: ", "2: "]
