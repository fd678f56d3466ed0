"""Errors that are answers to a user: one sentence on the command line, no traceback."""

from __future__ import annotations

from signal import Signals

from pamkd.trilevel.finite import Diverged


class OptionError(Exception):
    """An option has a value that cannot be used. (No ValueError: the command-line parser would put that into a box of its own.)"""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not belong here."""


class Interrupted(RuntimeError):
    """A signal (None: the time limit) ended a run; what it had done is in its checkpoint."""

    def __init__(self, message: str, signal: Signals | None = None) -> None:
        super().__init__(message)
        self.signal = signal


class MissingExtra(RuntimeError):
    """An optional package is needed and not installed."""


USER_ERRORS = (ValueError, OSError, OptionError, Diverged, CheckpointError, MissingExtra)
