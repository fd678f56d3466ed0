"""Kernels compile ahead of time for A100 and H100 without spilling, and with the instructions that they are built on."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """Of one configuration of each kernel, in a process in which kernels are not interpreted."""
    path = tmp_path_factory.mktemp("resources") / "rows.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.resources", "--quick", "--jobs", "1", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def test_every_kernel_fits_both_chips_without_spills(rows):
    assert {row["capability"] for row in rows} == {80, 90}
    kernels = {row["kernel"] for row in rows}
    defined = {
        f"{path.stem}.{name}"
        for path in (ROOT / "kernels").glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)", path.read_text(), re.M)
    }
    assert kernels == defined
    assert all(row["spilled"] == 0 and 0 < row["registers"] <= 255 and 0 < row["occupancy"] <= 1 for row in rows)


def test_fused_loss_is_two_launches_each_way():
    """With tensors that have no memory: nothing reads a value on the host."""
    code = """
from bench._configurations import meta
from bench.resources import recording
import torch
from pamkd.kernels import grs_loss
e, groups = meta(1024, 512), meta(65536, 5, dtype=torch.int64)
with recording() as forward:
    loss, *kept = grs_loss.grs_loss(e, e, groups, groups, 0.01, False)
with recording() as backward:
    grs_loss.grs_loss_backward(loss, e, e, *kept, 0.01, False, True, True)
print(*[kernel.fn.__name__ for kernel, _, _ in forward], "|", *[kernel.fn.__name__ for kernel, _, _ in backward])
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "gram_kernel loss_kernel | reverse_index_kernel loss_backward_kernel", done.stderr


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


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.stem)
def test_offsets_have_64_bits(path):
    """Program numbers are widened before anything is computed with them: a tensor may pass 2^31 elements."""
    tree = ast.parse(path.read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "tl.program_id"]
    widened = [
        n.func.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "to" and ast.unparse(n.args[0]) == "tl.int64"
    ]
    assert all(any(call is value for value in widened) for call in calls)


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.stem)
def test_no_atomics_on_floating_point_numbers(path):
    """The only atomic operation counts finished programs."""
    text = path.read_text()
    assert text.count("tl.atomic") == text.count("tl.atomic_add(counter_ptr, 1,")
