"""`pamkd sweep`: run the members of a grid that are not done, gather all results, and say what failed."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from pamkd.report import write_comparison
from pamkd.reproduce.units import gather
from pamkd.reproduce.write import write_table
from pamkd.runs.errors import Interrupted
from pamkd.runs.interrupt import interruptible
from pamkd.runs.lock import held
from pamkd.sweep.grid import Grid, read_grid
from pamkd.sweep.jobs import Jobs
from pamkd.sweep.member import Member

POLL = {"local": 0.5, "slurm": 10.0}  # seconds between two looks at the jobs


@dataclass(frozen=True)
class SweepConfig:
    """Run a grid of seeds, methods, spaces and datasets, each a search and an evaluation, on SLURM or on this machine."""

    file: tyro.conf.Positional[Path]
    """YAML file of the sweep (docs/sweep.md)."""
    out: Path | None = None
    """Folder of runs, jobs and tables; default: runs/sweeps/NAME of the file. The command goes on in it."""
    list: bool = False
    """Print the members with their states, and write the tables of what is there; run nothing."""
    wait: bool = False
    """On SLURM too, stay until all members have ended, and submit failed ones again."""


def sweep(config: SweepConfig) -> int:
    """Submit what is neither done nor running and write the tables; returns the number of members that failed.

    On this machine it stays until all have ended. Raises ValueError for a file that says nothing runnable and where another sweep works
    in the folder, MissingExtra without submitit, Interrupted when told to stop.
    """
    grid = read_grid(config.file)
    root = config.out or Path("runs") / "sweeps" / config.file.stem
    members = [Member(unit, root) for unit in grid.units(root)]
    jobs = Jobs(grid, root)
    failed: list[Member] = []
    if config.list:
        for member in members:
            print(f"{jobs.state(member):7} {member.name}: {member.unit.commands()}")
    else:
        try:
            with held(root / "sweep.lock", wait=False):
                failed = _run(grid, members, jobs, wait=config.wait or grid.cluster == "local")
        except BlockingIOError:
            raise ValueError(f"another pamkd sweep works in {root}: wait until it has ended, or choose another --out") from None
    for path in _write(grid, members, root):
        print(path)
    return len(failed)


def _run(grid: Grid, members: Sequence[Member], jobs: Jobs, *, wait: bool) -> list[Member]:
    """Submit the members that need it, and with `wait` stay with them; returns those that failed for good."""
    once = list({member.key: member for member in members}.values())  # rows that mean the same runs share them
    queue = [member for member in once if not member.done and not jobs.alive(member)]
    running = [member for member in once if not member.done and member not in queue]
    _say(f"{len(once)} members: {len(once) - len(queue) - len(running)} done, {len(running)} running, {len(queue)} to run")
    if grid.cluster == "slurm" and queue:
        jobs.submit(queue)
        running, queue = running + queue, []
    if not wait:
        return []
    failures: Counter[str] = Counter()
    failed: list[Member] = []
    with interruptible() as stop:
        while queue or running:
            if stop and grid.cluster == "slurm":
                raise Interrupted(f"{stop.reason}; the jobs go on, and the same command waits for them again", stop.signal)
            if stop:
                queue, running = [], jobs.stop(running)
            if queue and (grid.cluster == "slurm" or len(running) < grid.parallel):
                member = queue.pop(0)
                jobs.submit([member])
                running.append(member)
                continue
            time.sleep(POLL[grid.cluster])
            for member in [member for member in running if not jobs.alive(member)]:
                running.remove(member)
                if member.done:
                    _say(f"done    {member.name}")
                elif not stop:
                    failures[member.key] += 1
                    again = failures[member.key] <= grid.retries
                    _say(f"failed  {member.name}, {'and is tried again' if again else 'for good'}; {jobs.log(member)}")
                    jobs.failed(member)
                    (queue if again else failed).append(member)
        if stop:
            raise Interrupted(f"{stop.reason}; every member has a checkpoint, and the same command goes on", stop.signal)
    if failed:
        _say(f"{len(failed)} of {len(once)} members failed: {', '.join(member.name for member in failed)}")
    return failed


def _write(grid: Grid, members: Sequence[Member], root: Path) -> list[Path]:
    """The table of all results, and a page that compares the runs: of all rows the first seed that is done, of one row all seeds."""
    root.mkdir(parents=True, exist_ok=True)
    table, units = grid.table(), [member.unit for member in members]
    left = sum(not member.done for member in members)
    notes = ["Mean ± sample standard deviation over seeds; a seed fixes split, weights and batches."]
    notes.append("A difference is the row's less the reference's, seed by seed; p by exact sign flips, two-sided.")
    notes += [f"{left} of {len(members)} members have no result yet."] if left else []
    paths = write_table(root / "table", table, grid.columns, table.rows, gather(units), notes)
    done = [unit for unit in units if unit.done]
    first = {(unit.row.key, unit.column): unit for unit in reversed(done)}
    runs = list(dict.fromkeys(unit.search.folder for unit in (first.values() if len(first) > 1 else done)))
    return [*paths, write_comparison(runs, root / "comparison.html")] if len(runs) > 1 else paths


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
