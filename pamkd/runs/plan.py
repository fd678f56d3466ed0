"""`pamkd plan`: what a search will take of memory and time on this machine, from a few steps with small batches."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import OptionError
from pamkd.runs.memory import available, gigabytes
from pamkd.runs.numerics import check_device
from pamkd.runs.options import to_dict

ROOM = 0.9  # of what is available: the model's error


@dataclass(frozen=True)
class Line:
    """A quantity as a linear function of the batch size."""

    constant: float
    slope: float

    @classmethod
    def through(cls, points: dict[int, float]) -> Line:
        """Of two points, or one and the origin."""
        (small, low), (large, high) = min(({0: 0.0} | points if len(points) == 1 else points).items()), max(points.items())
        slope = (high - low) / (large - small)
        return cls(high - slope * large, slope)

    def __call__(self, batch: int) -> float:
        return self.constant + self.slope * batch


@dataclass(frozen=True)
class Plan:
    """Memory (bytes) and time (seconds) of a search with the options of `config`, and what is available (None: nobody knows)."""

    config: SearchConfig
    measured: tuple[int, ...]  # batch sizes
    images: tuple[int, int]  # to train and to validate
    stages: int
    memory: Line
    step: dict[str, Line]  # by phase, the mean over the stages
    check: Line  # validating a batch
    available: int | None

    @property
    def peak(self) -> float:
        return self.memory(self.config.batch_size)

    @property
    def fits(self) -> bool:
        return self.available is None or self.peak <= ROOM * self.available

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.images[0] // self.config.batch_size

    def epoch_seconds(self, phase: str) -> float:
        batch = self.config.batch_size
        return self.steps * self.step[phase](batch) + math.ceil(self.images[1] / batch) * self.check(batch)

    @property
    def seconds(self) -> float:
        """Of the whole search."""
        epochs = range(self.config.epochs // self.stages)
        return self.stages * sum(self.epoch_seconds(self.config.phase(epoch)) for epoch in epochs)

    def proposal(self) -> int | None:
        """The largest batch size that fits, a multiple of 8 where it can be; None where none does."""
        if self.available is None:
            return self.config.batch_size
        most = math.floor((ROOM * self.available - self.memory.constant) / self.memory.slope) if self.memory.slope > 0 else 0
        most = min(most, self.config.batch_size)
        most -= most % 8 if most >= 8 else 0
        return most if most >= smallest_batch(self.config) else None

    def text(self) -> str:
        config, batch = self.config, self.config.batch_size
        head = f"{config.method} in {config.space} on {config.dataset}: {config.learners} learners, batch {batch}"
        there = "" if self.available is None else f"; {gigabytes(self.available)} are available"
        peak = f"{gigabytes(self.peak)} at the peak: {gigabytes(self.memory.constant)} + {self.memory.slope / 1e6:.2f} MB for each image"
        rows = [("memory", peak + there)]
        rows += [(f"step ({phase})", f"{line(batch):.3g} s") for phase, line in self.step.items()]
        rows += [(f"epoch ({phase})", f"{clock(self.epoch_seconds(phase))}, {self.steps} steps and a validation") for phase in self.step]
        rows += [("search", f"{clock(self.seconds)}, {config.epochs} epochs")]
        if config.stacked_passes > 1:
            rows += [("stacked", f"up to {config.stacked_passes} passes at once where the space allows; --stacked False takes less memory")]
        rows += [("measured", f"steps with batches of {' and '.join(map(str, self.measured))}")]
        return "\n".join([head, *(f"  {name:17} {value}" for name, value in rows)])

    def warning(self) -> str:
        """One sentence for a search that does not fit."""
        assert self.available is not None
        batch = self.proposal()
        way = (
            f"--batch-size {batch} does ({gigabytes(self.memory(batch))})"
            if batch
            else f"no batch does: take fewer channels, cells or learners{', or --stacked False' if self.config.stacked_passes > 1 else ''}"
        )
        return (
            f"this search does not fit: it needs {gigabytes(self.peak)}, and {ROOM:.0%} of {gigabytes(self.available)} may be used; {way}"
        )


def plan(config: SearchConfig) -> Plan:
    """Measure steps at an eighth and a quarter of the batch size, each in a process of its own, and go on along a line.

    Raises ValueError where the steps themselves fail or do not fit.
    """
    check_device(config.device)
    there = available(config.device)
    least, batch = smallest_batch(config), config.batch_size
    small = max(least, -(-batch // 8))
    sizes = sorted({small, min(batch, max(2 * small, -(-batch // 4)))})
    found = {size: _probe(dataclasses.replace(config, batch_size=size, out=None, resume=False)) for size in sizes}

    def line(quantity: Any) -> Line:
        return Line.through({size: quantity(result) for size, result in found.items()})

    first = found[sizes[0]]
    phases = first["stages"][0]["step"]
    memory = {size: result["peak"] for size, result in found.items()}
    return Plan(
        config,
        tuple(sizes),
        tuple(first["images"]),
        len(first["stages"]),
        Line.through(memory if len(memory) > 1 else memory | {0: first["before"]}),
        {phase: line(lambda result, phase=phase: _mean([stage["step"][phase] for stage in result["stages"]])) for phase in phases},
        line(lambda result: _mean([stage["check"] for stage in result["stages"]])),
        there,
    )


def smallest_batch(config: SearchConfig) -> int:
    """The smallest batch size that the other options allow."""

    def allowed(size: int) -> bool:
        try:
            dataclasses.replace(config, batch_size=size)
        except OptionError:
            return False
        return True

    return next(size for size in range(min(2, config.batch_size), config.batch_size + 1) if allowed(size))  # BatchNorm: 2


def clock(seconds: float) -> str:
    """Seconds in the largest two units: 45 s, 3 min 20 s, 7 h 5 min, 2 d 3 h."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next(i for i, (_, size) in enumerate(units) if seconds >= size)
    (name, size), (below, part) = units[first], units[first + 1]
    whole = round(seconds / part)
    return f"{whole // (size // part)} {name} {whole % (size // part)} {below}"


def _probe(config: SearchConfig) -> dict[str, Any]:
    command = [sys.executable, "-m", "pamkd.runs.probe"]
    done = subprocess.run(command, input=json.dumps(to_dict(config)), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    killed = " (killed: most likely for want of memory)" if done.returncode == -9 else ""
    raise ValueError(f"steps with a batch of {config.batch_size} images failed{killed}: {said[-1]}")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
