"""How kernels are launched: compiled once for many calls, on the device of their tensors, in grids that CUDA can hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pamkd.ops import _library, mixed_cell_cuda
from pamkd.ops.mixed_cell_plan import Branch

ROOT = Path(__file__).resolve().parents[2]

# Triton's own way from arguments to a compiled kernel, for an A100 that is not there; nothing is launched.
COMPILING = """
from collections import Counter
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 80, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(Driver())
run, seen = JITFunction.run, Counter()
def compiled(kernel, *values, grid, warmup, **options):
    seen[kernel.fn.__name__, id(run(kernel, *values, grid=grid, warmup=True, **options))] += 1
JITFunction.run = compiled
"""


def calls_of_kernels(code: str, tmp_path: Path) -> dict[str, list[int]]:
    """Kernel -> how often each of its compiled versions would have been launched."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    code = COMPILING + code + "\nfor (name, _), count in seen.items(): print(name, count)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        name, count = line.split()
        found.setdefault(name, []).append(int(count))
    return found


def test_learning_rates_margins_and_sizes_of_batches_compile_nothing_anew(tmp_path):
    code = """
from pamkd.kernels import flat_update, grs_hinge, pairwise_cosine
weights = torch.randn(2, 4096)
for rate in (0.025, 0.0, 1.0, 1e-3):
    flat_update.sgd_update(weights, weights, weights, rate, 0.9, 3e-4, 5.0)
    flat_update.perturb(weights, weights, rate)
for count in (1, 7, 64):
    similarity = torch.randn(count, count, 2)
    grs_hinge.grs_hinge(similarity, similarity, 0.01 * count)
    pairwise_cosine.pairwise_cosine(torch.randn(1, count, 64))
"""
    once = {"squares_kernel": [8], "sgd_kernel": [4], "perturb_kernel": [4], "hinge_kernel": [3], "gram_kernel": [3]}
    assert calls_of_kernels(code, tmp_path) == once


def test_seeds_share_a_compiled_kernel():
    """Whatever is drawn, and from wherever a batch is cut: Triton specialises the same."""
    code = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from bench._configurations import meta
from bench.resources import described, recording
from pamkd.ops import mixed_cell_cuda
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
spec = CellSpec(16, (("noise", "skip_connect", "sep_conv_3x3"),), inputs=1, nodes=1)
given = meta(8, 16, 8, 8), None, meta(spec.num_weights), meta(1, 3)
backend, found = make_backend(GPUTarget("cuda", 80, 32)), []
for drawn in ((0,), (1, 0.5), (16, 0.3, 2**-32), (2**31, 0.0, 0.0, 1), (2**63, 0.9, 1 - 2**-32, 16), (2**64 - 1, 0.0, 0.4, 2**31 - 1)):
    disturbance = Disturbance(*drawn)
    with recording() as made:
        nodes, *kept = mixed_cell_cuda.forward(*given, spec.encode(), True, disturbance)
        mixed_cell_cuda.backward(nodes, *given, nodes, *kept, spec.encode(), True, False, True, True, disturbance)
    keys = []
    for kernel, args, options in made:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        keys.append((kernel.fn.__name__, str(bind(*args, **options)[1]), described(kernel, args, options)))
    found.append(keys)
assert all(keys == found[0] for keys in found[1:]), found
print(sum(dict(launch.constants).get("DRAWN", False) for _, _, launch in found[0]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "7", done.stderr  # two mixtures, two sums, two maps, one of what leaves the state


def test_the_device_of_the_tensors_is_current_while_a_kernel_is_launched(monkeypatch):
    current, registered = [], {}

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(_library.LIB, "impl", lambda name, function, key: registered.setdefault((name, key), function))
    _library.implement_on_cuda("some", lambda factor, *rest: [*current, factor])
    tensor = torch.ones(3)
    found = registered["some", "CUDA"](2.0, None, tensor, torch.zeros(1))
    assert found[0] is tensor and found[1:] == [2.0] and not current


def test_every_implementation_on_cuda_in_python_is_launched_so():
    files = [path for path in (ROOT / "pamkd/ops").glob("*.py") if path.stem != "_library"]
    assert not [path.name for path in files if re.search(r'LIB\.impl\([^)]*"CUDA"', path.read_text())]


@pytest.mark.parametrize(("sets", "images", "calls"), [(4, 1024, [15, 1]), (2, 1024, [16]), (1, 65535, [1] * 16)])
def test_second_halves_of_many_images_take_several_launches(sets, images, calls, monkeypatch):
    """A grid's third dimension holds 65535 images of all sets and convolutions."""
    seen = []
    monkeypatch.setattr(torch.ops.pamkd, "stencils_input", lambda *given: seen.append(given))
    branches = [Branch(3, i, size=3, taps=i, pointwise=0) for i in range(16)]
    maps = torch.empty(16, sets, images, 2, 2, 1, device="meta")
    weights = torch.empty(sets, 400, device="meta")
    mixed_cell_cuda.to_states(maps, maps, weights, 0, branches, 1, torch.empty_like(maps), paired=True)
    assert [len(kernels) for _, _, _, kernels, *_ in seen] == calls
    assert all(len(grad) == len(x) == len(kernels) == len(dx) for grad, x, _, kernels, *_, dx in seen)
    assert [offset for given in seen for offset in given[5]] == list(range(16))
