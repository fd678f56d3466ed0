"""What each Triton kernel takes of a GPU, in every configuration its launcher chooses, compiled ahead of time for A100 and H100.

No GPU is needed and nothing runs: launchers are called with tensors that have no memory, and each launch is compiled as it would be for
it. Fails where registers spill, where shared memory does not fit, or where an instruction is missing that a kernel is built on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bench._configurations import LAUNCHES
from pamkd.runs.logs import write_atomically

TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}

# Kernels that are built on matrix instructions, in every configuration.
ON_MATRIX_INSTRUCTIONS = {
    "pairwise_cosine.gram_kernel",
    "pairwise_cosine.gram_backward_kernel",
    "group_min_similarity.gather_kernel",
    "node_mixture.statistics_kernel",
    "node_mixture.mixture_kernel",
    "node_mixture_backward.sums_kernel",
    "node_mixture_backward.maps_kernel",
}
# Kernels that read 16 bytes at a time, where the width of their rows is a multiple of 16, or as many channels as there are in them.
READING_WIDE = {
    "pairwise_cosine.gram_kernel": "d",
    "group_min_similarity.gather_kernel": "d",
    "flat_update.squares_kernel": "size",
    "flat_update.sgd_kernel": "size",
    "flat_update.perturb_kernel": "size",
    "node_mixture.statistics_kernel": "VECTOR",
    "node_mixture.mixture_kernel": "VECTOR",
    "node_mixture_backward.sums_kernel": "VECTOR",
    "node_mixture_backward.maps_kernel": "VECTOR",
    "shared_branches.shared_kernel": "VECTOR",
}


@dataclass(frozen=True)
class Chip:
    """Limits of one multiprocessor (CUDA programming guide, technical specifications per compute capability)."""

    capability: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    shared: int = 164 * 1024
    shared_per_block: int = 163 * 1024
    reserved: int = 1024  # of shared memory, per block


CHIPS = (Chip(80), Chip(90, shared=228 * 1024, shared_per_block=227 * 1024))


@dataclass(frozen=True)
class Launch:
    """One launch: what Triton would compile for its arguments."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]  # arguments divisible by 16
    options: tuple[tuple[str, int], ...]

    @property
    def blocks(self) -> str:
        """The configuration, for people."""
        dtypes = {kind.removeprefix("*") for _, kind in self.signature if kind.startswith(("*fp", "*bf"))}
        shown = {k: v for k, v in self.constants if k.isupper()} | dict(self.options)
        return " ".join(["/".join(sorted(dtypes)), *(f"{k}={v}" for k, v in shown.items())])


@dataclass
class Resources:
    """What one compiled configuration takes. `spilled` are bytes of local memory per thread."""

    kernel: str
    configuration: str
    capability: int
    registers: int
    spilled: int
    shared: int
    occupancy: float  # of the warps that a multiprocessor holds
    matrix: str  # the matrix instruction, or none
    wide_access: bool  # a load or copy of 16 bytes
    problems: list[str] = field(default_factory=list)


@contextmanager
def recording() -> Iterator[list[tuple[JITFunction, tuple, dict[str, Any]]]]:
    """Launches are written down instead of made."""
    launches: list[tuple[JITFunction, tuple, dict[str, Any]]] = []
    run = JITFunction.run
    JITFunction.run = lambda self, *args, grid, warmup, **kwargs: launches.append((self, args, kwargs))
    try:
        yield launches
    finally:
        JITFunction.run = run


def described(kernel: JITFunction, args: tuple, kwargs: dict[str, Any]) -> Launch:
    """As Triton specialises: None and 1 become constants, multiples of 16 and memory of PyTorch's allocator are known to be aligned."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in kernel.arg_names}
    signature, constants, aligned = [], [], []
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature.append((name, "constexpr"))
            constants.append((name, value))
            continue
        if isinstance(value, Tensor):
            signature.append((name, TYPES[value.dtype]))
            aligned.append(name)
        elif isinstance(value, int):
            signature.append((name, parameter.annotation_type or ("i32" if -(2**31) <= value < 2**31 else "i64")))
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.append(name)
        else:
            signature.append((name, parameter.annotation_type or "fp32"))
    options = tuple((k, v) for k, v in kwargs.items() if k not in kernel.arg_names)
    return Launch(kernel.fn.__module__, kernel.fn.__name__, tuple(signature), tuple(constants), tuple(aligned), options)


def compiled(launch: Launch, chip: Chip) -> Resources:
    kernel: JITFunction = getattr(sys.modules[launch.module], launch.kernel)
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned}
    source = ASTSource(kernel, dict(launch.signature), constexprs=dict(launch.constants), attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", chip.capability, 32), options=dict(launch.options))
    registers, spilled = usage(result.asm["cubin"])
    ptx, shared, warps = result.asm["ptx"], result.metadata.shared, result.metadata.num_warps
    found = Resources(
        kernel=f"{launch.module.rpartition('.')[2]}.{launch.kernel}",
        configuration=launch.blocks,
        capability=chip.capability,
        registers=registers,
        spilled=spilled,
        shared=shared,
        occupancy=occupancy(chip, registers, shared, warps),
        matrix=next((name for name in ("wgmma", "mma") if re.search(rf"\b{name}\.(mma_async\.)?sync", ptx)), "none"),
        wide_access=bool(re.search(r"ld\.global[\w.:]*\.(v4\.b32|v2\.b64)|cp\.async\.c[ag]\.shared\.global [^;]*, 0x10", ptx)),
    )
    if spilled:
        found.problems.append(f"{spilled} bytes per thread spill")
    if shared > chip.shared_per_block:
        found.problems.append(f"{shared} bytes of shared memory do not fit in {chip.shared_per_block}")
    if found.kernel in ON_MATRIX_INSTRUCTIONS and found.matrix == "none":
        found.problems.append("no matrix instruction")
    if reads_wide(launch, found.kernel) and not found.wide_access:
        found.problems.append("no access of 16 bytes")
    return found


def reads_wide(launch: Launch, kernel: str) -> bool:
    """Whether a kernel of `READING_WIDE` can: a block of a cell's maps must also have so many numbers for each thread."""
    constants = dict(launch.constants)
    if "VECTOR" not in constants:
        return READING_WIDE.get(kernel) in launch.aligned
    each = constants["BLOCK"] * constants["TILE"] // (32 * dict(launch.options)["num_warps"])
    return kernel in READING_WIDE and 1 < constants["VECTOR"] <= each


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack (which is where registers spill to) per thread."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def occupancy(chip: Chip, registers: int, shared: int, warps: int) -> float:
    """Resident warps over what the chip holds. Registers are given out per warp in units of 256, shared memory of 128 bytes."""
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = chip.registers // per_warp // warps
    by_shared = chip.shared // (-(-(shared + chip.reserved) // 128) * 128)
    return min(by_registers, by_shared, chip.blocks, chip.warps // warps) * warps / chip.warps


def launches(names: list[str], parts: int | None = None) -> list[Launch]:
    """All different launches, or those of the first parts, with the switch for TF32 in both positions."""
    found: dict[Launch, None] = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        with recording() as made:
            for name in names:
                list(itertools.islice(LAUNCHES[name](), parts))
        found |= dict.fromkeys(described(*launch) for launch in made)
    torch.set_float32_matmul_precision("highest")
    return list(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operations", nargs="*", default=list(LAUNCHES), help=f"of {', '.join(LAUNCHES)}; all by default")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilations at a time")
    parser.add_argument("--quick", action="store_true", help="one configuration of each kernel, as the tests do")
    options = parser.parse_args()
    found = launches(options.operations, 1 if options.quick else None)
    if options.quick:
        found = list({(launch.module, launch.kernel): launch for launch in reversed(found)}.values())
    todo = [(launch, chip) for launch in found for chip in CHIPS]
    rows: list[Resources] = []
    print(f"{'kernel':52} {'sm':>3} {'regs':>5} {'spill':>5} {'shared':>7} {'occ.':>5} {'matrix':6} {'16 B':5} configuration")
    with ProcessPoolExecutor(options.jobs) as pool:
        for row in pool.map(compiled, *zip(*todo, strict=True)):
            rows.append(row)
            print(
                f"{row.kernel:52} {row.capability:3} {row.registers:5} {row.spilled:5} {row.shared:7} {row.occupancy:5.0%} "
                f"{row.matrix:6} {'yes' if row.wide_access else 'no':5} {row.configuration}"
                + "".join(f"  FAILED: {problem}" for problem in row.problems),
                flush=True,
            )
    failed = [row for row in rows if row.problems]
    print(f"{len(rows)} configurations, {len(failed)} failed")
    if options.json:
        write_atomically(options.json, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
