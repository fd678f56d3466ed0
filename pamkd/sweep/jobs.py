"""Members of a sweep as submitit jobs, on SLURM or on this machine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pamkd.runs.errors import MissingExtra
from pamkd.runs.interrupt import seconds_of
from pamkd.runs.logs import write_json
from pamkd.sweep.grid import Grid
from pamkd.sweep.member import Member

REQUEUES = 10_000  # each goes on from a checkpoint, so none is in vain
LONG = 10 * 365 * 24 * 60  # minutes: no limit on this machine
LOG_LINES = 12


class Jobs:
    """Submits members, and remembers in `root`/jobs.json which job each has.

    Raises MissingExtra without submitit, ValueError for resources that it does not know and without SLURM where that is asked for.
    """

    def __init__(self, grid: Grid, root: Path) -> None:
        self._submitit = _submitit()
        self._folder, self._record, self._cluster = root / "jobs", root / "jobs.json", grid.cluster
        self._known: dict[str, dict[str, Any]] = json.loads(self._record.read_text()) if self._record.is_file() else {}
        self._handles: dict[str, Any] = {}
        self._executor = self._made(grid)

    def _made(self, grid: Grid) -> Any:
        options = {"slurm_array_parallelism": grid.parallel} if self._cluster == "slurm" else {}
        seconds = None if grid.time is None else seconds_of(grid.time)
        minutes = LONG if seconds is None else max(1, int(seconds) // 60)
        if self._cluster == "slurm" and grid.time is None:
            raise ValueError(f"sweep file {grid.path}: cluster slurm needs the time of a job, such as `time: 3h55m`")
        try:
            executor = self._submitit.AutoExecutor(self._folder, grid.cluster, **{f"{grid.cluster}_max_num_timeout": REQUEUES})
            executor.update_parameters(name=grid.path.stem, timeout_min=minutes, **options | dict(grid.resources))
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ValueError(f"sweep file {grid.path}: resources: {' '.join(str(error).split())}") from error
        except RuntimeError as error:
            raise ValueError(f"sweep file {grid.path}: cluster slurm: {error}") from error
        return executor

    def submit(self, members: Sequence[Member]) -> None:
        """On SLURM as one job array. Ctrl-C reaches the processes that this starts in their runs only, as a request to stop.

        Raises ValueError where the cluster refuses.
        """
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if self._cluster == "local" else None
        try:
            if len(members) == 1 or self._cluster == "local":
                jobs = [self._executor.submit(member) for member in members]
            else:
                with self._executor.batch():
                    jobs = [self._executor.submit(member) for member in members]
        except RuntimeError as error:
            raise ValueError(f"the cluster refuses the jobs: {' '.join(str(error).split())}") from error
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)
        for member, job in zip(members, jobs, strict=True):
            self._handles[member.key] = job
            self._known[member.key] = {"job": job.job_id, "cluster": self._cluster, "failed": False}
        write_json(self._record, self._known)

    def alive(self, member: Member) -> bool:
        """Whether its job waits or runs."""
        job = self._job(member)
        return (job is not None and not job.done()) or member.running

    def state(self, member: Member) -> str:
        if member.done:
            return "done"
        if member.running:
            return "running"
        if self._known.get(member.key, {}).get("failed"):
            return "failed"
        if self.alive(member):
            return "pending"
        return "begun" if member.unit.search.folder.is_dir() else "to run"

    def failed(self, member: Member) -> None:
        self._known.setdefault(member.key, {"job": None})["failed"] = True
        write_json(self._record, self._known)

    def stop(self, members: Sequence[Member]) -> list[Member]:
        """Tell the processes that this command started to write their checkpoints and end; returns the members that they run."""
        own = [member for member in members if member.key in self._handles]
        for job in (self._handles[member.key] for member in own):
            if not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller passes it on
        return own

    def log(self, member: Member) -> str:
        """The end of what the last job wrote, with the name of the file."""
        from submitit.core.utils import JobPaths

        job = self._known.get(member.key, {}).get("job")
        if job is None:
            return "no log"
        path = JobPaths(self._folder, job, 0).stderr
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        return "\n".join([f"{path}:", *(f"  {line}" for line in lines[-LOG_LINES:])])

    def _job(self, member: Member) -> Any:
        """The job of this process, or on SLURM of an earlier one; a process that an earlier one started is known by its lock."""
        known = self._known.get(member.key, {})
        if member.key not in self._handles and self._cluster == known.get("cluster") == "slurm" and not known["failed"]:
            self._handles[member.key] = self._submitit.SlurmJob(self._folder, known["job"])
        return self._handles.get(member.key)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise MissingExtra("pamkd sweep needs the package submitit: pip install 'pamkd[sweep]'") from error
    return submitit
