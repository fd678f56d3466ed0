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
