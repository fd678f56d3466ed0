"""What a run writes down while it goes on: metrics as JSON lines, TensorBoard, and a progress display."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pamkd.runs.errors import MissingExtra

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Metrics:
    """Appends rows to a JSON-lines file and scalars to TensorBoard; without a folder, or where another process writes, it
    keeps the rows only."""

    def __init__(self, folder: Path | None, *, tensorboard: bool = False, writes: bool = True) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path, self._writes = None if folder is None else folder / "metrics.jsonl", writes
        self._writer = summary_writer()(str(folder / "tensorboard")) if tensorboard and folder is not None and writes else None

    def write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row)
        self.rows.append(json.loads(line))  # as a resumed run reads it back
        if self._path is not None and self._writes:
            with naming(self._path), self._path.open("a") as file:
                file.write(line + "\n")

    def scalars(self, values: dict[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def text(self, name: str, value: str, step: int) -> None:
        if self._writer is not None:
            self._writer.add_text(name, value, step)

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Read the file back and drop the rows that a resumed run will write again (and a line cut short)."""
        if self._path is None or not self._path.exists():
            return
        rows = []
        for line in self._path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        self.rows = [row for row in rows if keep(row)]
        if self._writes:
            write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def summary_writer() -> Any:
    """TensorBoard's class. Raises MissingExtra where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra(
            "--tensorboard needs the package tensorboard: pip install 'pamkd[tensorboard]', or leave --tensorboard away"
        ) from error
    return SummaryWriter


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError says which file or folder could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        then = (
            "make room, then continue with --resume from the last checkpoint" if full else "choose a place that can be written to (--out)"
        )
        raise OSError(f"could not write {path}: {error.strerror or error}; {then}") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step, so that a reader or a crash never meets half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")  # others may write the same table
    try:
        with naming(path):
            temporary.write_text(text)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


class Progress:
    """A bar with a line of text on a terminal; elsewhere only the lines given to `line`, so that logs stay short.

    Of several processes one alone is `shown`.
    """

    def __init__(self, total: int, *, done: int = 0, shown: bool = True) -> None:
        self._bar: Bar | None = None
        self._shown = shown
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=text)

    def line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)


class Stopwatch:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
