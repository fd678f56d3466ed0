"""Sweeps: what a YAML file means, and its members on this machine and on a SLURM that the test plays, through failures and preemption."""

from __future__ import annotations

import csv
import json
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pamkd.cli import main
from pamkd.runs.options import read_config
from pamkd.sweep import command
from pamkd.sweep.grid import read_grid

ROOT = Path(__file__).resolve().parents[2]
TINY = {"epochs": 1, "channels": 2, "cells": 3, "batch_size": 10, "lr": 0.05, "threads": 1, "log_every": 1}


def written(path: Path, **values) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def pictures(root: Path) -> Path:
    """24 pictures to train with and 8 to test with, of 8x8 pixels in two classes."""
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in ("dark", "light"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 100, (8, 8), dtype=np.uint8) + (100 if label == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def test_grid(tmp_path):
    path = written(
        tmp_path / "grid.yaml",
        seeds=[0, 3],
        methods=["plain", "okddip", {"pamkd": {"lambda": 2.0}}, "mkd"],
        spaces=["pdarts"],
        datasets=[{"cifar10": {"data": "somewhere"}}],
        search={"preset": "{space}-{dataset}", "epochs": 33, "device": "cpu", "workers": 2},
        evaluate={"epochs": 7},
        reference="mkd",
    )
    units = read_grid(path).units(tmp_path)
    assert len(units) == 4 * 2 and len({unit.search.out for unit in units}) == 8
    searches = {(unit.search.method, unit.seed): unit.search for unit in units}
    one = searches["pamkd", 3]
    assert (one.space, one.dataset, one.distill_weight, one.epochs, one.warmup_w_epochs, one.seed) == ("pdarts", "cifar10", 2, 33, 10, 3)
    assert str(one.data) == "somewhere"
    assert [searches[method, 0].learners for method in ("plain", "okddip", "mkd")] == [1, 3, 2]
    assert searches["mkd", 0].distill_weight is None  # the preset's is PAMKD's
    evaluation = units[0].evaluation
    assert (evaluation.drop_path, evaluation.epochs, evaluation.seeds, evaluation.workers) == (0.3, 7, (0,), 2)
    assert str(evaluation.data) == "somewhere"
    assert [row.key for row in read_grid(path).table().rows][2] == "pdarts/pamkd lambda=2.0"


BAD = {
    "seed: [1]": "unknown key 'seed'; known are cluster, datasets",
    "- 3": "holds a list",
    "seeds: 3": "seeds is 3; needed is a list of different whole numbers",
    "seeds: [1, 1]": "seeds is [1, 1]",
    "methods: []": "methods is []; needed is a list of names",
    "methods: [{pamkd: 3}]": "needed is a list of names, or of `name: {option: value}`",
    "methods: [plain, plain]": "methods has 'plain' twice",
    "methods: [dml]": "darts/dml on digits: search: method is 'dml': needed is one of pamkd",
    "spaces: [nas]": "space is 'nas': needed is one of darts",
    "datasets: [mnist]": "option dataset is 'mnist'; what it takes is told by pamkd search --help",
    "search: 3": "search is 3; needed are lines `option: value`",
    "search: {epoch: 3}": "unknown option 'epoch'; known are dataset",
    "search: {epochs: many}": "option epochs is 'many'; what it takes",
    "search: {seed: 3}": "search has the option 'seed', which the sweep sets itself",
    "search: {preset: nas}": "unknown preset 'nas'; known are darts-cifar10",
    "search: {group_size: 40}": "batch_size is 64: needed is at least 2 * group_size = 80",
    "search: {cells: 1}": "cells is 1: a supernet needs at least 3",
    "{spaces: [pdarts], search: {epochs: 10}}": "epochs is 10: needed is a multiple of 3",
    "evaluate: {epochs: 0}": "evaluate: epochs is 0: needed is 1 or more",
    "evaluate: {seeds: [1]}": "evaluate has the option 'seeds', which the sweep sets itself",
    "reference: mkd": "reference is 'mkd'; needed is one of the methods: pamkd",
    "cluster: k8s": "cluster is 'k8s'; needed is local or slurm",
    "parallel: 0": "parallel is 0; needed is a whole number, 1 or more",
    "retries: true": "retries is True; needed is a whole number, 0 or more",
    "time: soon": "time is 'soon'; needed is a duration such as 45m",
    "resources: {gpu: 1}": "resources: ",
    "resources: {gpus_per_node: many}": "resources: ",
    "{cluster: slurm, time: 1h}": "cluster slurm: ",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_files_are_one_sentence(text, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--list"]) == 2
    out, err = capsys.readouterr()
    assert BAD[text] in err and "bad.yaml" in err and len((out + err).strip().splitlines()) == 1
    assert main(["sweep", str(tmp_path / "none.yaml")]) == 2 and "cannot be read" in capsys.readouterr().err


def preempt(root: Path) -> None:
    """When the search of the first member has made a step, send its process submitit's signal."""
    while not any("step" in path.read_text() for path in root.glob("runs/plain-darts-digits-*/seed-0/metrics.jsonl")):
        time.sleep(0.02)
    controller = next(job["job"] for key, job in json.loads((root / "jobs.json").read_text()).items() if "digits" in key)
    (process,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(process), signal.SIGUSR2)


@pytest.fixture
def swept(tmp_path, monkeypatch, capsys):
    """A sweep on this machine: one member is preempted, one fails once, two always; returns its file, its folder and what it said."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = pictures(tmp_path / "pictures")
    broken, whole = folder / "train" / "dark" / "3.png", (folder / "train" / "dark" / "3.png").read_bytes()
    broken.write_bytes(b"no picture")
    path = written(
        tmp_path / "tiny.yaml",
        methods=["plain"],
        datasets=[{"digits": {"batch_size": 40}}, *({"folder": {"data": str(tmp_path / name)}} for name in ("pictures", "no", "never"))],
        search=TINY,
        evaluate={"channels": 2, "cells": 3, "epochs": 1, "auxiliary": 0.0, "batch_size": 8},
        parallel=2,
        retries=1,
    )
    say = command._say

    def mended(text):
        say(text)
        if text.startswith("failed") and "pictures" in text:
            broken.write_bytes(whole)

    monkeypatch.setattr(command, "_say", mended)
    root = tmp_path / "out"
    preemption = threading.Thread(target=preempt, args=(root,), daemon=True)
    preemption.start()
    assert main(["sweep", str(path), "--out", str(root)]) == 1
    preemption.join(timeout=1)
    assert not preemption.is_alive()
    return path, root, capsys.readouterr()


FAKES = {
    # The job array is run at once, one after the other; each job's state is what its process ended with.
    "sbatch": """
script = open(sys.argv[1]).read()
count = int(script.split("array=0-")[1].split("%")[0]) + 1 if "array=" in script else 0
(home / "script").write_text(script)
for task in range(max(count, 1)):
    names = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)} if count else {}
    subprocess.Popen(["bash", sys.argv[1]], env=os.environ | names | {"SLURM_JOB_ID": "7"}, stdout=-3, stderr=-3, start_new_session=True)
print("Submitted batch job 7")
""",
    "srun": """
task = os.environ.get("SLURM_ARRAY_TASK_ID")
name = "7" if task is None else f"7_{task}"
words = sys.argv[1:]
logs = [words[words.index(option) + 1] for option in ("--output", "--error")]
logs = [log.replace("%A_%a", name).replace("%j", name).replace("%t", "0") for log in logs]
with open(logs[0], "a") as out, open(logs[1], "a") as err:
    status = subprocess.call(words[words.index("--error") + 2 :], stdout=out, stderr=err)
(home / name).write_text("COMPLETED" if status == 0 else "FAILED")
""",
    "sacct": """
print("JobID|State|NodeList")
for name in ("7", "7_0", "7_1"):
    print(f"{name}|{(home / name).read_text() if (home / name).exists() else 'RUNNING'}|here")
""",
}


@pytest.mark.timeout(280)
def test_sweep(swept, tmp_path, monkeypatch, capsys):
    path, root, said = swept
    for sentence in ("4 members: 0 done, 0 running, 4 to run", "done    darts/plain digits batch_size=40 seed 0", "2 of 4 members failed"):
        assert sentence in said.err
    failed = [line for line in said.err.splitlines() if line.startswith("failed")]
    assert sum("and is tried again" in line for line in failed) == 3 and sum("for good" in line for line in failed) == 2
    assert "3.png" in said.err and "jobs/" in said.err and str(tmp_path / "never") in said.err  # the ends of the logs
    logs = [log.read_text() for log in (root / "jobs").glob("*_log.*")]
    assert any("interrupted (SIGUSR2)" in log for log in logs) and any("Requeued job" in log for log in logs)
    (metrics,) = root.glob("runs/plain-darts-digits-*/seed-0/metrics.jsonl")
    steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if row["kind"] == "step"]
    assert steps == list(range(len(steps))) and len(steps) == 718 // 40  # each once
    head, row = csv.reader((root / "table.csv").open())
    values = dict(zip(head, row, strict=True))
    assert float(values["error digits batch_size=40 (%)"]) > 0 and values[f"error folder data={tmp_path / 'never'} (%)"] == "–"
    assert "2 searches compared" in (root / "comparison.html").read_text()

    # The same file on a cluster: what is done stays, the others are one job array.
    fakes = tmp_path / "bin"
    fakes.mkdir()
    for name, text in FAKES.items():
        head = f"#!{sys.executable}\nimport os, pathlib, subprocess, sys\nhome = pathlib.Path({str(fakes)!r})\n"
        (fakes / name).write_text(head + text)
        (fakes / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{fakes}:{os.environ['PATH']}")
    monkeypatch.setitem(command.POLL, "slurm", 0.2)
    values = read_config(path) | {"cluster": "slurm", "time": "3h", "retries": 0, "resources": {"slurm_partition": "short"}}
    written(path, **values)
    assert main(["sweep", str(path), "--out", str(root), "--wait"]) == 1
    said = capsys.readouterr().err
    assert "4 members: 2 done, 0 running, 2 to run" in said and said.count("for good") == 2 and "7_1_0_log.err:\n" in said
    script = (fakes / "script").read_text()
    for line in ("--array=0-1%2", "--time=180", "--partition=short", "--signal=USR2@90"):
        assert line in script
    assert main(["sweep", str(path), "--out", str(root), "--list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("done   ") == 2 and listed.count("failed ") == 2 and "pamkd search --out" in listed
