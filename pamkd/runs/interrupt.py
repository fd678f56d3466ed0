"""Ending a run in good order when a signal arrives or its time is over."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pamkd.runs.errors import Interrupted

# SIGUSR1, SIGUSR2: what batch systems send some time before they kill (submitit: SIGUSR2, as NCCL may catch the other).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stop:
    """True once the run should end after the step in progress; `reason` says why, `signal` which signal it was (None: the time)."""

    def __init__(self, seconds: float | None) -> None:
        self.reason = ""
        self.signal: signal.Signals | None = None
        self._limit = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def __bool__(self) -> bool:
        if not self.reason and self._end is not None and time.monotonic() >= self._end:
            self.reason = f"time limit of {self._limit:.0f} s reached"
        return bool(self.reason)

    def interruption(self, where: str, out: Path | None) -> Interrupted:
        """What to raise in a run that has written its checkpoint into the folder `out`, if it has one; another process may have stopped."""
        why = f"{self.reason or 'another process was interrupted'} {where}"
        then = f"continue with --out {out} --resume" if out else "nothing is kept"
        return Interrupted(f"{why}; {then}", self.signal)


@contextmanager
def interruptible(seconds: float | None = None) -> Iterator[Stop]:
    """A `Stop` that becomes true when one of SIGNALS arrives or `seconds` are over, so that a checkpoint can be written.

    A second signal of the same kind acts at once.
    """
    stop = Stop(seconds)
    previous: dict[int, Any] = {}

    def handler(number: int, frame: Any) -> None:
        stop.signal = signal.Signals(number)
        stop.reason = f"interrupted ({stop.signal.name})"
        signal.signal(number, previous[number])

    try:
        for number in SIGNALS:
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: the caller's program keeps its own signals
        previous.clear()
    try:
        yield stop
    finally:
        for caught, old in previous.items():
            signal.signal(caught, old)


def seconds_of(duration: str) -> float | None:
    """Seconds of a duration such as 90, 45m, 3h55m or 1d12h; None where it is none."""
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", duration)
    if not parts or not duration:
        return None
    return sum(int(part or 0) * unit for part, unit in zip(parts.groups(), (86400, 3600, 60, 1), strict=True))
