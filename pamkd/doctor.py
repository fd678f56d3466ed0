"""`pamkd doctor`: what is installed and built, and every operation on every device against its float64 reference."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pamkd import _ext
from pamkd.ops._library import EXAMPLES, IMPLEMENTATIONS, Example, implementation
from pamkd.version import __version__

# Largest difference from float64, relative to the largest value of a result or gradient, that counts as right. GPUs may run
# their matrix products in TF32 where a program allows it, so these are not test tolerances but signs of health.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
EAGER = "eager composition"
PACKAGES = ("torch", "torchvision", "triton", "numpy", "safetensors", "tyro", "scikit-learn", "tensorboard", "onnx", "onnxruntime")


@dataclass(frozen=True)
class DoctorConfig:
    """Check every operation on every device of this machine; the exit status is 1 when one fails."""

    json: bool = False
    """Print one JSON object instead of text."""
    rounds: int = 5
    """Timings of each operation, alternating with eager PyTorch."""


def doctor(config: DoctorConfig) -> int:
    """Print the findings; 0 when everything works, else 1. Raises ValueError for less than one round."""
    if config.rounds < 1:
        raise ValueError(f"rounds is {config.rounds}: needed is 1 or more")
    found: dict[str, Any] = {"versions": versions(), "build": build(), "devices": devices(), "implementations": implementations()}
    found["operations"] = [
        check(name, example, device, dtype, config.rounds)
        for device in found["devices"]
        for name, example in EXAMPLES.items()
        for dtype in TOLERANCE
    ]
    failed = [row for row in found["operations"] if row["problem"]]
    found["ok"] = not failed and _ext.PROBLEM is None
    print(json.dumps(found, indent=2) if config.json else _text(found))
    return 0 if found["ok"] else 1


def versions() -> dict[str, str | None]:
    result: dict[str, str | None] = {"pamkd": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = None
    return result


def build() -> dict[str, str]:
    """What the extension was built from, which instruction set it uses here, or why it does not work."""
    try:
        from pamkd import _host
    except ImportError as error:
        return {"extension": _ext.PROBLEM or "works", "host functions": f"cannot be imported ({error}); {_ext.REBUILD}"}
    return {"extension": _ext.PROBLEM or "works", "instruction set": _host.cpu_level()} | _host.build_facts()


def devices() -> dict[str, str]:
    """PyTorch device -> its name."""
    found = {"cpu": platform.processor() or platform.machine()}
    for i in range(torch.cuda.device_count()):
        found[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    return found


def implementations() -> dict[str, dict[str, str]]:
    """Operation -> type of device -> what computes it, also on types of device that this machine does not have."""
    return {name: {device: implementation(name, device) or EAGER for device in ("cpu", "cuda")} for name in IMPLEMENTATIONS}


def check(name: str, example: Example, device: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """One operation forward and backward: largest relative error against float64 on the CPU, time against eager."""
    kernel = implementation(name, torch.device(device).type) or EAGER
    row: dict[str, Any] = {"operation": name, "device": device, "dtype": str(dtype).removeprefix("torch."), "implementation": kernel}
    row |= {"error": None, "ms": None, "eager_ms": None, "problem": None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the table says which implementation is used
            truth = _run(example.reference, _arguments(example, "cpu", torch.float64))
            arguments = _arguments(example, device, dtype)
            results = _run(example.operation, arguments)
            row["error"] = max(_error(ours.cpu(), exact) for ours, exact in zip(results, truth, strict=True))
            if not row["error"] <= TOLERANCE[dtype]:
                row["problem"] = f"error {row['error']:.1e} is more than {TOLERANCE[dtype]:.0e}"
            both = [functools.partial(_run, function, arguments) for function in (example.operation, example.reference)]
            row["ms"], row["eager_ms"] = _times(both, rounds)
    except Exception as error:
        row["problem"] = " ".join(str(error).split()) or type(error).__name__
    return row


def _arguments(example: Example, device: str, dtype: torch.dtype) -> list[Any]:
    def moved(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        if argument.is_floating_point():
            return argument.detach().to(device, dtype).requires_grad_()
        return argument.to(device)

    return [moved(argument) for argument in example.arguments()]


def _run(function: Callable[..., Any], arguments: list[Any]) -> list[Tensor]:
    """The (first) result and the gradients of its sum of squares."""
    result = function(*arguments)
    result = result[0] if isinstance(result, tuple) else result
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    return [result.detach(), *torch.autograd.grad(result.square().sum(), leaves)]


def _error(ours: Tensor, truth: Tensor) -> float:
    return ((ours.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()


def _times(functions: Sequence[Callable[[], list[Tensor]]], rounds: int) -> list[float]:
    """Median milliseconds of each, alternating."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()[-1].sum().item()  # waits for the device
            seconds.append(time.perf_counter() - start)
    return [1e3 * statistics.median(seconds) for seconds in times]


def _text(found: dict[str, Any]) -> str:
    lines = ["versions: " + ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())]
    lines += [f"{name}: {value}" for name, value in found["build"].items()]
    lines += [f"device {name}: {value}" for name, value in found["devices"].items()]
    lines += [
        f"{name} uses " + ", ".join(f"{kernel} on {device}" for device, kernel in devices.items())
        for name, devices in found["implementations"].items()
    ]
    if not any(device.startswith("cuda") for device in found["devices"]):
        lines.append("no CUDA device here: the kernels for cuda were not run by this check (docs/gpu.md says what ever was)")
    lines.append(f"\n{'operation':22} {'device':7} {'dtype':8} {'implementation':18} {'error':>9} {'ms':>9} {'eager ms':>9}")
    for row in found["operations"]:
        figures = "".join(f"{'-' if row[key] is None else format(row[key], form):>10}" for key, form in FIGURES.items())
        place = f"{row['operation']:22} {row['device']:7} {row['dtype']:8} {row['implementation']:18}"
        lines.append(place + figures + (f"  FAILED: {row['problem']}" if row["problem"] else ""))
    lines.append("\neverything works" if found["ok"] else "\nsomething does not work; see above")
    return "\n".join(lines)


FIGURES = {"error": ".1e", "ms": ".2f", "eager_ms": ".2f"}
