"""Forward and backward of supernets and of an evaluation network: ours against the published composition.

`--space pcdarts s1 ...` (or `all`) times the search networks of those spaces instead of DARTS's.

Peers: the published composition in PyTorch (`bench.published`), contiguous and channels_last, and torch.compile of it, which
runs in its own process under a time limit. Before anything is timed, results must agree (`bench._networks`): in float64 all of
them to 1e-8. float32 gradients of two implementations of a network of ReLU and max pooling differ by 1e-3 because rounding
decides on which side of a kink a value lies; so the errors of all candidates against float64 are rows, and ours may be at most twice
the peers', averaged over seeds.

"Over floor" relates a time to multiply-adds (forward, input and weight gradients: three times the forward's) at the sgemm rate
measured in the same run. "kept at copy rate" is the time to write and read once what forward keeps for backward.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import published
from bench._harness import Bench, sgemm_rate
from bench._networks import (
    CANDIDATES,
    SIZES,
    SPACE_BATCH,
    SPACE_CASES,
    Step,
    candidate,
    inputs_of,
    multiply_adds,
    require_agreement,
    require_equal_in_float64,
    supernet_of,
)
from bench.roofline import our_pass
from pamkd.ops import mixed_cell
from pamkd.reference.cell_spec import CellSpec
from pamkd.spaces.darts import PRIMITIVES

MB = 1e6


def kept_bytes(step: Step) -> int:
    """Bytes that one forward pass keeps for backward, counted once per storage, without the leaves (weights, images)."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not x.is_leaf or not x.requires_grad:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        alive.append(x)
        return x

    alive: list[Tensor] = []  # so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step()
    return sum(storages.values())


def peak_bytes(case: str, name: str, threads: int) -> float:
    """Growth of the resident memory during one step, in a process of its own."""
    arguments = [sys.executable, "-m", "bench.supernet", "--peak-of", case, name, "--threads", str(threads)]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def print_peak(case: str, name: str) -> None:
    step = candidate(case, name, SIZES[case][2]).step
    candidate(case, name, 2).step()  # libraries and thread pools are in memory before the count begins

    def resident(key: str) -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # forgets the peak so far
    step()
    print(json.dumps(resident("VmHWM") - before))


def print_compiled() -> None:
    """Seconds of compiling and of a step of torch.compile of the published composition of the first case."""
    images, labels = inputs_of(SIZES["supernet"][2])
    compiled = torch.compile(published.Supernet(supernet_of("supernet")))
    alphas = torch.zeros(2, 14, len(PRIMITIVES), requires_grad=True)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        F.cross_entropy(compiled(images, alphas), labels).backward()
        seconds.append(time.perf_counter() - start)
    print(json.dumps([seconds[0], min(seconds[1:])]))


def compare_compiled(bench: Bench) -> None:
    limit, case = bench.options.compile_limit, "supernet, torch.compile"
    arguments = [sys.executable, "-m", "bench.supernet", "--compiled", "--threads", str(bench.options.threads)]
    try:
        done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        bench.row(case, "compile time", "s", 0.0, {f"not done after {limit:.0f} s": limit})
        return
    compile_seconds, seconds = json.loads(done.stdout.splitlines()[-1])
    ours = bench.time(case, candidate("supernet", "ours", SIZES["supernet"][2]).step, {})
    bench.row(case, "compile time", "s", 0.0, {"torch.compile": compile_seconds})
    bench.row(case, "time", "s", ours, {"torch.compile": seconds})


def compare(bench: Bench, case: str, rate: float, copy: float) -> None:
    if case != "supernet-64":  # the same network as "supernet"
        require_agreement(bench, case)
    channels, cells, batch = SIZES[case]
    steps = {name: candidate(case, name, batch).step for name in CANDIDATES}
    ours = steps.pop("ours")
    useful = 6 * batch * multiply_adds(case)
    seconds = bench.time(f"{case} C={channels} cells={cells} batch={batch}", ours, steps, floor=useful / rate)
    times = {row["peer_name"]: row["peer"] for row in bench.rows if row["metric"] == "time" and row["case"].startswith(f"{case} ")}
    bench.row(case, "share of sgemm", "1", useful / (seconds * rate), {name: useful / (value * rate) for name, value in times.items()})
    kept, kept_by = kept_bytes(ours), {name: kept_bytes(step) for name, step in steps.items()}
    bench.row(case, "kept", "MB", kept / MB, {name: value / MB for name, value in kept_by.items()})
    bench.row(case, "kept at copy rate", "s", 2 * kept / copy, {name: 2 * value / copy for name, value in kept_by.items()})
    peaks = {name: peak_bytes(case, name, bench.options.threads) / MB for name in CANDIDATES}
    bench.row(case, "peak", "MB", peaks.pop("ours"), peaks)


def compare_space(bench: Bench, case: str) -> None:
    """The search network of a space, halfway through a search. (float32 errors are those of the case "supernet": the arithmetic is.)"""
    require_equal_in_float64(bench, case, candidate(case, "published", 2, torch.float64).results())
    ours, *peers = (candidate(case, name, SPACE_BATCH).step for name in CANDIDATES)
    network = supernet_of(case)
    named = f"{case} C={network.channels} cells={len(network.cells)} batch={SPACE_BATCH}"
    bench.time(named, ours, dict(zip(CANDIDATES[1:], peers, strict=True)))


def compare_on_gpu(bench: Bench, case: str) -> None:
    """Ours and the published composition on a GPU; the supernets beside the bytes and operations that `bench.roofline` counts."""
    channels, cells, batch = SIZES[case]
    truth = candidate(case, "published", 2, torch.float64).results()[0]
    steps = {}
    for name in CANDIDATES:
        bench.require_close(f"{case}, {name}: logits", candidate(case, name, 2, device=bench.device).results()[0].cpu(), truth, rtol=1e-3)
        steps[name] = candidate(case, name, batch, device=bench.device).step
    what, ours = f"{case} C={channels} cells={cells} batch={batch}", steps.pop("ours")
    if case == "evaluation":
        bench.time(what, ours, steps)
    else:
        count = our_pass(supernet_of(case), batch, torch.float32)
        bench.time_on_gpu(what, ours, steps, count.bytes, count.products + count.others)


def copy_rate() -> float:
    """Bytes per second, read and written, of a copy from memory."""
    source, target = torch.empty(2, 1 << 25)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def cell_step(spec: CellSpec, batch: int, size: int) -> Step:
    random = torch.Generator().manual_seed(0)
    state = (torch.randn(batch, spec.channels, size, size, generator=random).contiguous(memory_format=torch.channels_last) for _ in "01")
    tensors = [
        x.requires_grad_()
        for x in (*state, torch.randn(spec.num_weights, generator=random) * 0.2, torch.rand(spec.edges, spec.columns, generator=random))
    ]

    def step() -> tuple[Tensor, ...]:
        y = mixed_cell(*tensors, spec)
        return torch.autograd.grad(y, tensors, torch.ones_like(y))

    return step


def linear_cost(bench: Bench) -> None:
    """One normal cell, C=16: time of each size against the smallest, scaled. A ratio of 1 is linear."""

    def measure(what: str, sizes: tuple[int, ...], unit: Callable[[int], float], step: Callable[[int], Step]) -> None:
        steps = {size: step(size) for size in sizes}
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for function in steps.values():
            function()
        for _ in range(bench.options.rounds):
            for size, function in steps.items():
                start = time.perf_counter()
                function()
                seconds[size].append(time.perf_counter() - start)
        first = min(seconds[sizes[0]]) / unit(sizes[0])
        for size in sizes[1:]:
            bench.row(f"cell, {what} {size}", "time", "s", min(seconds[size]), {f"linear from {what} {sizes[0]}": first * unit(size)})

    def normal(nodes: int) -> CellSpec:
        return CellSpec(16, (PRIMITIVES,) * sum(range(2, 2 + nodes)), nodes=nodes)

    measure("batch", (8, 16, 32, 64), float, lambda batch: cell_step(normal(4), batch, 32))
    measure("side", (16, 32, 64), lambda side: side**2, lambda side: cell_step(normal(4), 8, side))
    measure("nodes", (1, 2, 3, 4), lambda nodes: sum(range(2, 2 + nodes)), lambda nodes: cell_step(normal(nodes), 16, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [*SIZES, "compile", "linear"]
    parser.add_argument("--cases", nargs="+", default=cases, choices=cases)
    spaces = [*dict.fromkeys(space for space, *_ in SPACE_CASES.values())]
    parser.add_argument("--space", nargs="+", choices=[*spaces, "all"], help="instead: the supernets of these search spaces")
    parser.add_argument("--compile-limit", type=float, default=120, help="seconds for torch.compile")
    parser.add_argument("--peak-of", nargs=2, metavar=("CASE", "CANDIDATE"), help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    bench = Bench("supernet", parser, rounds=7, gpu=True)
    options = bench.options
    if options.peak_of:
        return print_peak(*options.peak_of)
    if options.compiled:
        return print_compiled()
    if bench.device.type == "cuda":
        if options.space:
            parser.error("--space is timed on the CPU: take --device cpu")
        for case in SIZES:
            if case in options.cases:
                compare_on_gpu(bench, case)
        return bench.finish()
    if options.space:
        for case, (space, *_) in SPACE_CASES.items():
            if space in options.space or "all" in options.space:
                compare_space(bench, case)
        return bench.finish()
    rate, copy = sgemm_rate(), copy_rate()
    print(f"sgemm {rate / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s read and written, {options.threads} threads")
    for case in options.cases:
        if case == "linear":
            linear_cost(bench)
        elif case == "compile":
            compare_compiled(bench)
        else:
            compare(bench, case, rate, copy)
    bench.finish()


if __name__ == "__main__":
    main()
