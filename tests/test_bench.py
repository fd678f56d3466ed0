"""What the benchmarks promise: a device that is not there is refused before anything is computed; what `bench.roofline` counts."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import grs, roofline, stencils, step, supernet
from bench._harness import Bench
from bench._launches import Count

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [grs, stencils, step, supernet])
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


@pytest.mark.parametrize("stride", [1, 2])
def test_stencils_count_what_they_move(stride):
    """Elements of the composition's tensors."""
    x = torch.randn(2, 3, 7, 7)
    maps = stencils.composed(x, [torch.randn(3, 1, k, k) for k in stencils.SIZES], stencils.DILATIONS, stride, True)
    assert stencils.elements(2, 3, 7, stride) == (x.numel(), maps.numel())


def test_stencils_are_timed_on_a_gpu_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(SystemExit) as end:
        stencils.main()
    assert end.value.code == 2 and "take --device cuda" in capsys.readouterr().err


def test_a_supernet_takes_a_twentieth_of_the_launches_and_a_fifth_of_the_bytes():
    """16 channels, 8 cells, a batch of 64, against the published composition; in a process that does not interpret Triton's kernels."""
    code = """
import torch
from bench.roofline import passes_of
from pamkd.spaces.darts import Darts
for counted in passes_of(Darts(channels=16, cells=8), 64, torch.float32):
    print(counted.launches, counted.bytes)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (launches, moved), (published_launches, published_moved) = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    assert 20 * launches <= published_launches and 5 * moved <= published_moved


def test_lower_bounds():
    """The larger of bytes and operations; float32 products of ours are three of TF32."""
    moving, computing = Count(bytes=31 * 10**11), Count(bytes=1, products=156 * 10**10, others=195 * 10**9)
    assert roofline.bounds("A100", "float32", moving, moving) == pytest.approx((2.0, 2.0))
    assert roofline.bounds("A100", "float32", computing, computing) == pytest.approx((0.03 + 0.01, 0.08 + 0.01))
    assert roofline.bounds("A100", "bfloat16", computing, computing) == pytest.approx((0.005 + 0.01,) * 2)
