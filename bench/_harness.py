"""What all benchmarks share: agreement first, alternating timing in one process, medians with spread, one row schema."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pamkd.runs.logs import write_atomically
from pamkd.runs.manifest import commit

COLUMNS = ("bench", "case", "metric", "unit", "ours", "peer", "peer_name", "ratio", "floor", "device", "threads", "torch", "commit")

TERA = 1e12
# Bytes and operations per second: memory, float32, TF32, bfloat16.
CHIPS = {"A100": (1.55 * TERA, 19.5 * TERA, 156 * TERA, 312 * TERA), "H100": (3.35 * TERA, 67 * TERA, 495 * TERA, 990 * TERA)}
L2_FLUSH = 1 << 28  # bytes: several times the L2 of an H100, so that no timing finds its inputs there


class Bench:
    """Collects rows and prints them as they come; `finish()` writes the file of `--json`."""

    def __init__(self, name: str, parser: argparse.ArgumentParser, *, rounds: int, gpu: bool = False) -> None:
        parser.add_argument("--json", type=Path, help="write the rows to this file")
        parser.add_argument("--rounds", type=int, default=rounds, help="timings of each candidate, alternating")
        parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
        if gpu:
            parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where everything runs")
            # cuDNN takes TF32 unasked: peers would be faster than the float32 that they are compared in, and fail the comparison.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.options = parser.parse_args()
        self.device = torch.device(self.options.device if gpu else "cpu")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            parser.exit(2, f"bench.{name}: --device cuda needs a GPU, and PyTorch finds none on this machine: take --device cpu\n")
        torch.set_num_threads(self.options.threads)
        self.name, self.rows = name, []
        self._flushed = torch.empty(L2_FLUSH, dtype=torch.uint8, device=self.device) if self.device.type == "cuda" else None
        self._common = {"device": self.device_name, "threads": self.options.threads, "torch": torch.__version__, "commit": commit()}

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def require_close(self, what: str, ours: Tensor, peer: Tensor, *, rtol: float) -> None:
        """Largest difference relative to the largest value. Raises AssertionError, so that nothing wrong is timed."""
        error = ((ours.double() - peer.double()).abs().max() / peer.double().abs().max().clamp_min(1e-30)).item()
        if not error <= rtol:
            raise AssertionError(f"{what}: results differ by {error:.2e} of their largest value, more than {rtol:.0e}")

    def time(self, case: str, ours: Callable[[], Any], peers: Mapping[str, Callable[[], Any]], *, floor: float | None = None) -> float:
        """Seconds of ours against every peer, medians over the rounds; `floor` in seconds. Returns ours."""
        candidates = {"ours": ours, **peers}
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for function in candidates.values():
            for _ in range(3 if self.device.type == "cuda" else 1):
                function()
        for _ in range(self.options.rounds):
            for name, function in candidates.items():
                seconds[name].append(self._seconds(function))
        spread = {name: statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3 for name, values in seconds.items()}
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, (low, _, high) in spread.items():
            print(f"{case:44} {name:34} {1e3 * medians[name]:10.2f} ms  [{1e3 * low:.2f} .. {1e3 * high:.2f}]", flush=True)
        for name in peers:
            self._add(case, "time", "s", medians["ours"], medians[name], name, floor)
        return medians["ours"]

    def time_on_gpu(
        self, case: str, ours: Callable[[], Any], peers: Mapping[str, Callable[[], Any]], moved: float, operations: float
    ) -> None:
        """Times, and bytes moved and operations per second of ours beside the memory and the float32 rate of a chip of `CHIPS`."""
        chip = next((row for name, row in CHIPS.items() if name in self.device_name), None)
        floor = max(moved / chip[0], operations / chip[1]) if chip else None
        seconds = self.time(case, ours, peers, floor=floor)
        for what, unit, amount, limit in zip(("bandwidth", "rate"), ("B/s", "1/s"), (moved, operations), chip or (0, 0), strict=False):
            print(f"{case:44} {what} {amount / seconds:.3g}" + (f" of {limit:.3g}" if chip else "") + f" {unit}", flush=True)
            self._add(case, what, unit, amount / seconds, limit, "the chip's", None)

    def row(self, case: str, metric: str, unit: str, ours: float, peers: Mapping[str, float], *, floor: float | None = None) -> None:
        """A figure other than time, of which less is better."""
        for name, value in peers.items():
            print(f"{case:44} {metric} {ours:.6g} {unit}, {name} {value:.6g}", flush=True)
            self._add(case, metric, unit, ours, value, name, floor)

    def finish(self) -> None:
        print(f"\n{'case':44} {'metric':12} {'peer':34} {'ratio':>8} {'over floor':>11}")
        for row in self.rows:
            over = f"{row['ours'] / row['floor']:11.2f}" if row["floor"] else " " * 11
            print(f"{row['case']:44} {row['metric']:12} {row['peer_name']:34} {row['ratio']:8.2f} {over}")
        if self.options.json:
            write_atomically(self.options.json, json.dumps(self.rows, indent=1) + "\n")

    def _seconds(self, function: Callable[[], Any]) -> float:
        """Of one call. On a GPU between two events, after everything before it has ended and with nothing of use left in its L2."""
        if self._flushed is None:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self._flushed.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _add(self, case: str, metric: str, unit: str, ours: float, peer: float, peer_name: str, floor: float | None) -> None:
        values = (self.name, case, metric, unit, ours, peer, peer_name, peer / ours if ours else float("inf"), floor)
        self.rows.append(dict(zip(COLUMNS, values, strict=False)) | self._common)


def sgemm_rate(size: int = 1024, rounds: int = 200) -> float:
    """float32 operations per second of a square matrix product, on the threads in use; the best of the rounds."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
