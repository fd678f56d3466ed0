"""One member of a sweep as the job that runs it."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pamkd.reproduce.units import Unit
from pamkd.runs.errors import USER_ERRORS, Interrupted
from pamkd.runs.lock import held


@dataclass(frozen=True)
class Member:
    """A search and its evaluation in the folder of a sweep."""

    unit: Unit
    root: Path

    @property
    def name(self) -> str:
        return f"{self.unit.row.key} {self.unit.column} seed {self.unit.seed}"

    @property
    def key(self) -> str:
        """Unique in the sweep's folder: two members with one key are the same runs."""
        return str(self.unit.search.folder.relative_to(self.root))

    @property
    def lock(self) -> Path:
        """The file that whoever runs the member holds, so that no two processes write into one folder."""
        return self.root / "locks" / self.key.replace("/", "-")

    @property
    def done(self) -> bool:
        return self.unit.done

    @property
    def running(self) -> bool:
        """Whether a process of a machine that shares the folder runs it now."""
        try:
            with held(self.lock, wait=False):
                return False
        except BlockingIOError:
            return True

    def __call__(self) -> None:
        """Run what is still missing. Ends with status 2 for an error that is an answer to the user, with 130 when told to stop.

        submitit's signal (SIGUSR2) says that the time is over or that others need the machine: the run writes its checkpoint, then
        submitit puts the job into the queue again.
        """
        try:
            with held(self.lock, wait=True):
                self.unit.run()
        except Interrupted as error:
            print(f"pamkd: {error}", file=sys.stderr, flush=True)
            if error.signal in (signal.SIGUSR1, signal.SIGUSR2) and callable(signal.getsignal(error.signal)):
                signal.raise_signal(error.signal)
            raise SystemExit(130) from error
        except USER_ERRORS as error:
            print(f"pamkd: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from error

    def checkpoint(self) -> Any:
        """What submitit puts into the queue again: the same, which goes on from its checkpoints."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)
