"""Plans: what they make of measurements, what they propose, and where they warn."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pamkd.cli import main
from pamkd.data import generator
from pamkd.runs import memory
from pamkd.runs.config import SearchConfig
from pamkd.runs.plan import Line, Plan, clock, smallest_batch
from pamkd.runs.search import Search, build_supernet
from tests.runs.conftest import Pictures

ROOT = Path(__file__).resolve().parents[2]


def made_up(available, **options):
    config = SearchConfig(**{"epochs": 6, "warmup_w_epochs": 2, "batch_size": 64} | options)
    step = {"warmup-w": Line(1.0, 0.5), "search": Line(2.0, 1.0)}
    return Plan(config, (8, 16), (1000, 1000), 1, Line(1e9, 1e7), step, Line(0.0, 0.25), available)


def test_time_and_proposal():
    line = Line.through({8: 20.0, 16: 36.0})
    assert (line.constant, line.slope, line(64)) == (4.0, 2.0, 132.0) and Line.through({8: 20.0})(16) == 40.0
    whole = made_up(int(2e9))
    assert whole.peak == 1.64e9 and whole.fits and whole.steps == 15 and whole.proposal() == 64
    assert whole.epoch_seconds("search") == 15 * 66 + 16 * 16
    assert whole.seconds == 2 * (15 * 33 + 256) + 4 * (15 * 66 + 256)
    short = made_up(int(1.5e9))
    assert not short.fits and short.proposal() == 32 and short.memory(32) <= 0.9 * 1.5e9  # 35 would fit
    assert "needs 1.64 GB, and 90% of 1.50 GB may be used; --batch-size 32 does (1.32 GB)" in short.warning()
    assert made_up(int(1.2e9)).proposal() is None and "no batch does" in made_up(int(1.2e9)).warning()  # two groups need 10 images
    assert made_up(None).fits and smallest_batch(SearchConfig()) == 10 and smallest_batch(SearchConfig(learners=1)) == 2
    assert [clock(seconds) for seconds in (3.21, 200, 7500, 200_000)] == ["3.2 s", "3 min 20 s", "2 h 5 min", "2 d 8 h"]


def test_command_warns_before_a_run_that_does_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(
        "pamkd.runs.plan._probe", lambda config: pytest.fail("not reached") if config.batch_size > 20 else FOUND[config.batch_size]
    )
    monkeypatch.setattr("pamkd.runs.plan.available", lambda device: 1_300_000_000)
    assert main(["plan", "--batch-size", "64"]) == 1
    out, err = capsys.readouterr()
    assert "1.64 GB at the peak: 1.00 GB + 10.00 MB for each image; 1.30 GB are available" in out and "--batch-size 16 does" in err
    assert main(["plan", "--batch-size", "16"]) == 0 and capsys.readouterr().err == ""
    assert main(["plan", "--batch-size", "4"]) == 2 and "batch_size is 4: needed is" in capsys.readouterr().err


def result(batch):
    return {"images": [700, 700], "before": 10**9, "peak": 10**9 + batch * 10**7, "stages": [{"step": {"search": batch / 8}, "check": 0.1}]}


FOUND = {batch: result(batch) for batch in (10, 16, 20)}


def test_failed_steps_are_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["plan", "--dataset", "folder", "--data", str(tmp_path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert "steps with a batch of 10 images failed" in err and "nowhere" in err and len((out + err).strip().splitlines()) == 1


@pytest.mark.parametrize("space", ["darts", "nasbench201", "pcdarts"])
def test_what_a_pass_keeps_is_linear_in_the_batch(space):
    supernet = build_supernet(SearchConfig(space=space, channels=4, cells=3), classes=3, image_channels=1)
    weights, alphas = supernet.init_weights(generator(0)), supernet.init_alphas(generator(0))
    two, four = (memory.kept_bytes(supernet, weights, alphas, torch.randn(n, 1, 16, 16)) for n in (2, 4))
    assert 1.5 * two < four <= 2 * two
    assert two > 2 * 3 * 4 * 4 * 16 * 16  # a state of each cell at least


def test_search_warns_where_memory_is_short(tiny, monkeypatch):
    data = Pictures(28, seed=0), Pictures(24, seed=1)
    with pytest.warns(UserWarning, match=r"a batch of 8 images needs at least .* GB of memory, and 0.00 GB are available: pamkd plan"):
        monkeypatch.setattr(memory, "available", lambda device: 1000)
        Search(SearchConfig(tensorboard=False, **tiny | {"epochs": 1})).run(*data)


def test_limits_of_control_groups(tmp_path):
    """The least of this group's and its parents' limits, less what is used, idle file pages not counted; of both versions."""
    for folder, limit, used, idle in (("", "max", 0, 0), ("a", 1000, 600, 100), ("a/b", 2000, 100, 0)):
        group = tmp_path / "two" / folder
        group.mkdir(exist_ok=True, parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {idle}\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    assert sorted(memory._control_groups(own, tmp_path / "two")) == [500, 1900]
    first = tmp_path / "one" / "memory" / "job"
    first.mkdir(parents=True)
    for name, text in (("limit_in_bytes", "700"), ("usage_in_bytes", "300"), ("stat", "inactive_file 9\ntotal_inactive_file 50")):
        (first / f"memory.{name}").write_text(text)
    own.write_text("3:cpu,cpuacct:/job\n2:memory:/job\n")
    assert list(memory._control_groups(own, tmp_path / "one")) == [450]
    assert memory.available("cpu") is None or 0 < memory.available("cpu") <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
