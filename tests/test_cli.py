"""The command line from outside: what it prints, where it writes, and one sentence for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from pamkd import cli
from pamkd.runs import checkpoint
from pamkd.runs.folder import CHECKPOINT

SMALL = "--epochs 2 --channels 2 --cells 3 --batch-size 64 --group-pairs 8 --threads 1 --log-every 1"


def start(*words: object, cwd) -> subprocess.Popen:
    command = [sys.executable, "-m", "pamkd", *(word for part in words for word in str(part).split())]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def pamkd(*words: object, cwd, status: int = 0) -> tuple[str, str]:
    process = start(*words, cwd=cwd)
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, out + err
    return out, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run on the digits."""
    folder = tmp_path_factory.mktemp("whole")
    out, _ = pamkd("search --preset demo --out run", SMALL, cwd=folder)
    return folder / "run", out


def test_search_prints_what_it_found(whole):
    run, out = whole
    assert "retained learner" in out and "run folder: run" in out
    genotype = json.loads((run / "genotype.json").read_text())
    for operation, _ in genotype["normal"]:
        assert operation in out
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["dataset"]["name"] == "digits" and len(manifest["dataset"]["fingerprint"]) >= 16


def test_a_reader_that_has_enough_is_no_error():
    code = "from pamkd import cli; cli.COMMANDS['doctor'] = (lambda argv: print('x' * 10**6), ''); exit(cli.main(['doctor']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_interrupt_that_no_run_waits_for_is_one_sentence(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "doctor", (interrupted, ""))
    assert cli.main(["doctor"]) == 130
    said = capsys.readouterr().err
    assert said.startswith("pamkd: interrupted") and said.count("\n") == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_run_resumes_to_the_same_result(whole, tmp_path, how):
    run, _ = whole
    process = start("search --preset demo --out run", SMALL, cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGTERM else -signal.SIGKILL)
    if how == signal.SIGTERM:
        assert "continue with --out run --resume" in err
    pamkd("search --out run --resume", cwd=tmp_path)
    for name in ("genotype.json", "result.json"):
        assert (tmp_path / "run" / name).read_text() == (run / name).read_text()
    (tensors, _), (undisturbed, _) = (checkpoint.load(folder / CHECKPOINT) for folder in (tmp_path / "run", run))
    assert tensors.keys() == undisturbed.keys() and all(torch.equal(tensors[name], undisturbed[name]) for name in tensors)


BAD = {
    "": 2,
    "serch": "unknown command 'serch'; commands are search, plan, evaluate",
    "search --preset nas": "unknown preset 'nas'; known are darts-cifar10",
    "search --group-size 1": "group_size is 1",
    "search --out nothing --resume": "there is no run in nothing",
    "search --config missing.yaml": "missing.yaml cannot be read",
    "search --dataset cifar10 --data nowhere": "nowhere",
    "search --dataset folder --data nowhere": "nowhere",
    "evaluate --genotype DARTS_V9": "DARTS_V9",
    "evaluate --run nowhere": "nowhere",
    "report nowhere": "nowhere",
    "replay nowhere": "there is no bundle nowhere",
}


@pytest.mark.parametrize("words", BAD)
def test_one_sentence_for_each_mistake(words, tmp_path):
    out, err = pamkd(words, cwd=tmp_path, status=2)
    assert "Traceback" not in out + err
    if words:
        assert BAD[words] in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["search --epochs many", "search --bogus 3", "search --dataset mnist"])
def test_wrong_option_is_named(words, tmp_path):
    out, err = pamkd(words, cwd=tmp_path, status=2)
    assert words.split()[1] in out + err and "Traceback" not in out + err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and f"usage: pamkd {command}" in said and "(default: " in said
    resumable = command in ("search", "plan", "evaluate")
    assert ("--resume" in said) == ("--max-time" in said) == ("--sync-batch-norm" in said) == resumable, "options that a command refuses"
