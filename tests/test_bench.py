"""What the benchmarks' harness promises: a device that is not there is refused before anything is computed."""

from __future__ import annotations

import argparse
import sys

import pytest
import torch

from bench import grs, step, supernet
from bench._harness import Bench


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [grs, step, supernet])
def test_a_missing_gpu_is_refused_in_one_sentence(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cuda"])
    with pytest.raises(SystemExit) as end:
        module.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and "--device cuda needs a GPU" in said and len(said.splitlines()) == 1


def test_float32_is_float32_on_both_sides(monkeypatch):
    """cuDNN takes TF32 unasked."""
    monkeypatch.setattr(sys, "argv", ["bench"])
    cudnn, tf32 = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    try:
        cudnn.allow_tf32 = True
        Bench("some", argparse.ArgumentParser(), rounds=1, gpu=True)
        assert not cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = tf32


def test_rates_stand_beside_those_of_a_known_chip(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--rounds", "1"])
    bench = Bench("some", argparse.ArgumentParser(), rounds=1)
    monkeypatch.setattr(Bench, "device_name", "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(bench, "_seconds", lambda function: 0.5)
    bench.time_on_gpu("case", lambda: None, {"peer": lambda: None}, 3.1e11, 1e12)
    time, bandwidth, rate = bench.rows
    assert time["floor"] == pytest.approx(0.2) and time["ours"] == 0.5  # 3.1e11 bytes at 1.55e12 B/s
    assert (bandwidth["ours"], bandwidth["peer"]) == (6.2e11, 1.55e12) and (rate["ours"], rate["peer"]) == (2e12, 19.5e12)
