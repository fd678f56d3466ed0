"""What tests/cuda_host notices: missing and divergent barriers, uninitialised and too little shared memory."""

from __future__ import annotations

import subprocess

import pytest

from tests.cuda_host.build import COMPILER, build

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++, which compiles the device code for the CPU")


def run(kernel: str, seed: int = 0) -> subprocess.CompletedProcess:
    return subprocess.run([build("machine"), kernel, str(seed)], capture_output=True, text=True, check=False)


def integers(done: subprocess.CompletedProcess) -> list[int]:
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("seed", range(3))
def test_right_kernels_give_right_results(seed):
    lanes = [i % 32 for i in range(64)]
    sums = [sum(range(32)) if i < 32 else sum(range(32, 64)) for i in range(64)]
    below = [i + 1 if lane < 31 else i for i, lane in enumerate(lanes)]
    assert integers(run("shuffle", seed)) == [s * 10000 + b * 100 + i // 32 * 32 for i, (s, b) in enumerate(zip(sums, below, strict=True))]
    assert integers(run("count", seed)) == [64 * 65 // 2] * 64
    assert integers(run("neighbour", seed)) == [(i + 1) % 64 for i in range(64)]


def test_missing_barrier_reads_poison_in_some_order():
    results = [integers(run("unwaited", seed)) for seed in range(3)]
    assert all(-1 in values for values in results)  # 0xffffffff, what shared memory holds before it is written
    assert results[0] != results[1]


@pytest.mark.parametrize("kernel", ["divergent", "early_return", "half_a_warp"])
def test_divergence_is_an_error(kernel):
    done = run(kernel)
    assert done.returncode == 3 and "barrier divergence" in done.stderr


def test_memory_beyond_the_launch_is_an_error():
    done = run("beyond")
    assert done.returncode not in (0, 3) and "use-after-poison" in done.stderr
