"""`pamkd report`: read a run folder, write one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from pamkd.report.page import page
from pamkd.report.run_folder import read_run
from pamkd.runs.logs import write_atomically

REPORT_NAME = "report.html"


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about a run: results, curves, knowledge flow, cells, architecture weights, configuration."""

    run: tyro.conf.Positional[Path]
    """Run folder of a search or of an evaluation, finished or not."""
    out: Path | None = None
    """The page; default: report.html in the run folder."""


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page about a run folder, by default into it, and return its path.

    What the folder lacks is named on the page. Raises ValueError when it holds no run, OSError when the page cannot be written.
    """
    data = read_run(Path(run))
    out = Path(out) if out is not None else data.folder / REPORT_NAME
    if out.is_dir():
        raise ValueError(f"--out is the folder {out}: needed is the name of an HTML file, for example {out / REPORT_NAME}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(data))
    return out
