"""Ending a run in good order when a signal arrives."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives, so that the step in progress ends and a checkpoint is written.

    A second signal of the same kind acts at once.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def handler(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: the caller's program keeps its own signals
        previous.clear()
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
