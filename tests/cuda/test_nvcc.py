"""The CUDA kernels compile for the A100 and the H100 without spills, and access memory 16 bytes at a time."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")
ARCHITECTURES = (80, 90)
KERNELS = ("stencil_forward", "stencil_input", "stencil_weight", "stencil_weight_sum")

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def compile_for(architectures: tuple[int, ...], folder: Path) -> tuple[str, str]:
    """What ptxas says of csrc/cuda/stencil.cu for all architectures, and the PTX of the first."""
    command = [NVCC, "-std=c++20", "-O3", "-c", "-Xptxas", "-v", "--keep", "--keep-dir", folder, "-o", folder / "stencil.o"]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command += [f"-I{ROOT / 'csrc'}", *(word for path in include_paths() for word in ("-isystem", path))]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA", ROOT / "csrc/cuda/stencil.cu"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (ptx,) = folder.glob(f"*compute_{architectures[0]}.ptx")
    return done.stderr, ptx.read_text()


def test_no_spills_enough_registers_for_four_blocks_and_16_byte_accesses(tmp_path):
    report, ptx = compile_for(ARCHITECTURES, tmp_path)
    entries = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'(.*?)(?=Compiling|\Z)", report, re.S)
    # Three storage types; two strides, but for the sum of the weight gradient's rows.
    assert len(entries) == len(ARCHITECTURES) * 3 * (2 * len(KERNELS) - 1)
    for name, _, text in entries:
        assert any(kernel in name for kernel in KERNELS)
        assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", text), (name, text)
        assert int(re.search(r"Used (\d+) registers", text)[1]) <= 128, (name, text)
    entries = {text.split("(")[0]: text for text in ptx.split(".entry ")[1:]}
    moving = {name: text for name, text in entries.items() if "stencil_weight_sum" not in name}
    assert len(moving) == 18
    for name, text in moving.items():
        for access in (r"ld\.global\S*", r"ld\.shared", *(() if "stencil_weight" in name else (r"st\.global",))):
            assert re.search(access + r"\.v4\.[ubf]32", text), (name, access)
