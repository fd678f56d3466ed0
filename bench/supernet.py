"""Forward and backward of the DARTS supernet and of an evaluation network: ours against the published composition.

Peers: the published composition in PyTorch (`bench.published`), contiguous and channels_last, and torch.compile of it, which
runs in its own process under a time limit. Outputs and all gradients must agree first. "Over floor" relates a time to
multiply-adds (forward, input and weight gradients: three times the forward's) at the sgemm rate measured in the same run,
and memory to what any implementation must keep: the inputs and outputs of the cells.
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
from torch import Tensor, nn

from bench import published
from bench._harness import Bench, sgemm_rate
from pamkd.ops import mixed_cell
from pamkd.reference.cell_spec import CellSpec
from pamkd.spaces.darts import PRIMITIVES, Darts
from pamkd.spaces.evaluation_network import EvaluationNetwork
from pamkd.spaces.genotype import named
from pamkd.spaces.published import published_state_dict

MB = 1e6
CASES = {"supernet": (16, 8, 32), "supernet-64": (16, 8, 64), "supernet-large": (36, 20, 16)}  # channels, cells, batch
CANDIDATES = ("ours", "published", "published channels_last")
Step = Callable[[], tuple[Tensor, ...]]


def inputs_of(batch: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 32, 32, generator=random), torch.randint(0, 10, (batch,), generator=random)


def supernet_step(candidate: str, channels: int, cells: int, batch: int) -> tuple[Step, nn.Module | None]:
    """A function that returns (logits, gradient of alphas, flat gradient of the weights, the published names sorted)."""
    supernet = Darts(channels=channels, cells=cells)
    random = torch.Generator().manual_seed(0)
    weights, alphas = supernet.init_weights(random), supernet.init_alphas(random).requires_grad_()
    images, labels = inputs_of(batch)
    if candidate == "ours":
        weights.requires_grad_()

        def ours() -> tuple[Tensor, ...]:
            logits = supernet.forward(weights, alphas, images).logits
            return logits, *torch.autograd.grad(F.cross_entropy(logits, labels), (alphas, weights))

        def in_published_order() -> tuple[Tensor, ...]:
            logits, to_alphas, flat = ours()
            state = published_state_dict(supernet, flat)
            return logits, to_alphas, *(state[name] for name, _ in network.named_parameters())

        network = published.Supernet(channels, cells)
        ours.comparable = in_published_order
        return ours, None
    network = published.Supernet(channels, cells)
    network.load_state_dict(published_state_dict(supernet, weights))
    images = _formatted(network, images, candidate)
    parameters = list(network.parameters())

    def peer() -> tuple[Tensor, ...]:
        logits = network(images, alphas)
        return logits, *torch.autograd.grad(F.cross_entropy(logits, labels), (alphas, *parameters))

    peer.comparable = peer
    return peer, network


def evaluation_step(candidate: str, channels: int, cells: int, batch: int) -> tuple[Step, nn.Module]:
    genotype = named("DARTS_V2")
    torch.manual_seed(0)
    ours = EvaluationNetwork(genotype, channels=channels, cells=cells)
    images, labels = inputs_of(batch)
    network = ours
    if candidate != "ours":
        network = published.EvaluationNetwork(genotype, channels, cells)
        network.load_state_dict(ours.state_dict())
        images = _formatted(network, images, candidate)
    parameters = list(network.parameters())

    def step() -> tuple[Tensor, ...]:
        logits = network(images)
        logits = logits if isinstance(logits, Tensor) else logits.logits
        return logits, *torch.autograd.grad(F.cross_entropy(logits, labels), parameters)

    step.comparable = step
    return step, network


def _formatted(network: nn.Module, images: Tensor, candidate: str) -> Tensor:
    if candidate.endswith("channels_last"):
        network.to(memory_format=torch.channels_last)
        return images.contiguous(memory_format=torch.channels_last)
    return images


STEPS = dict.fromkeys(CASES, supernet_step) | {"evaluation": evaluation_step}
SIZES = CASES | {"evaluation": (36, 20, 16)}


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


def peak_bytes(case: str, candidate: str, threads: int) -> float:
    """Growth of the resident memory during one step, in a process of its own."""
    arguments = [sys.executable, "-m", "bench.supernet", "--peak-of", case, candidate, "--threads", str(threads)]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def print_peak(case: str, candidate: str) -> None:
    channels, cells, batch = SIZES[case]
    step, _ = STEPS[case](candidate, channels, cells, batch)
    small, _ = STEPS[case](candidate, channels, cells, 2)
    small()  # libraries and thread pools are in memory before the count begins

    def resident(key: str) -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # forgets the peak so far
    step()
    print(json.dumps(resident("VmHWM") - before))


def print_compiled(case: str) -> None:
    """Seconds of compiling and of a step of torch.compile of the published composition."""
    channels, cells, batch = SIZES[case]
    supernet_images, labels = inputs_of(batch)
    network = published.Supernet(channels, cells)
    alphas = torch.zeros(2, 14, len(PRIMITIVES), requires_grad=True)
    compiled = torch.compile(network)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        F.cross_entropy(compiled(supernet_images, alphas), labels).backward()
        seconds.append(time.perf_counter() - start)
    print(json.dumps([seconds[0], min(seconds[1:])]))


def compiled_row(bench: Bench, case: str, ours: float, limit: float) -> None:
    arguments = [sys.executable, "-m", "bench.supernet", "--compile-of", case, "--threads", str(bench.options.threads)]
    try:
        done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        bench.row(case, "compile time", "s", 0.0, {f"torch.compile: not done after {limit:.0f} s": limit})
        return
    compile_seconds, seconds = json.loads(done.stdout.splitlines()[-1])
    bench.row(case, "compile time", "s", 0.0, {"torch.compile": compile_seconds})
    bench.row(case, "time", "s", ours, {"torch.compile": seconds})


def compare(bench: Bench, case: str, rate: float) -> float:
    channels, cells, batch = SIZES[case]
    made = {candidate: STEPS[case](candidate, channels, cells, batch) for candidate in CANDIDATES}
    steps = {candidate: step for candidate, (step, _) in made.items()}
    ours = steps.pop("ours")
    for name, peer in steps.items():
        for i, (a, b) in enumerate(zip(ours.comparable(), peer.comparable(), strict=True)):
            bench.require_close(f"{case}, {name}, result {i}", a, b.reshape(a.shape), rtol=1e-4)
    network = made["published"][1]
    images = inputs_of(1)[0]
    useful = 6 * batch * published.multiply_adds(network, images, *([torch.zeros(2, 14, len(PRIMITIVES))] if case != "evaluation" else []))
    seconds = bench.time(f"{case} C={channels} cells={cells} batch={batch}", ours, steps, floor=useful / rate)
    times = {row["peer_name"]: row["peer"] for row in bench.rows if row["metric"] == "time" and row["case"].startswith(f"{case} ")}
    shares = {name: useful / (value * rate) for name, value in times.items()}
    bench.row(case, "share of sgemm", "1", useful / (seconds * rate), shares)
    bench.row(case, "kept", "MB", kept_bytes(ours) / MB, {name: kept_bytes(peer) / MB for name, peer in steps.items()})
    peaks = {candidate: peak_bytes(case, candidate, bench.options.threads) / MB for candidate in CANDIDATES}
    bench.row(case, "peak", "MB", peaks.pop("ours"), peaks)
    return seconds


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
    parser.add_argument("--cases", nargs="+", default=[*SIZES, "linear"], choices=[*SIZES, "linear"])
    parser.add_argument("--compile-limit", type=float, default=600, help="seconds for torch.compile; 0 leaves it out")
    parser.add_argument("--peak-of", nargs=2, metavar=("CASE", "CANDIDATE"), help=argparse.SUPPRESS)
    parser.add_argument("--compile-of", metavar="CASE", help=argparse.SUPPRESS)
    bench = Bench("supernet", parser, rounds=7)
    options = bench.options
    if options.peak_of:
        return print_peak(*options.peak_of)
    if options.compile_of:
        return print_compiled(options.compile_of)
    rate, copy = sgemm_rate(), copy_rate()
    print(f"sgemm {rate / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s read and written, {options.threads} threads")
    for case in options.cases:
        if case == "linear":
            linear_cost(bench)
            continue
        seconds = compare(bench, case, rate)
        if case == "supernet" and options.compile_limit:
            compiled_row(bench, case, seconds, options.compile_limit)
    bench.finish()


if __name__ == "__main__":
    main()
