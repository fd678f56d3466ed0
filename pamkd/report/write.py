"""`pamkd report`: read a run folder, write one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from pamkd.report.compare import comparison
from pamkd.report.page import page
from pamkd.report.run_folder import read_run
from pamkd.runs.logs import write_atomically

REPORT_NAME, COMPARISON_NAME = "report.html", "comparison.html"


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about a run: results, curves, knowledge flow, cells, architecture weights, configuration."""

    run: tyro.conf.Positional[Path | None] = None
    """Run folder of a search or of an evaluation, finished or not."""
    compare: tuple[Path, ...] = ()
    """Instead, run folders of two searches or more: one page with all of them."""
    out: Path | None = None
    """The page; default: report.html in the run folder, comparison.html here for several."""


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page about a run folder, by default into it, and return its path.

    What the folder lacks is named on the page. Raises ValueError when it holds no run, OSError when the page cannot be written.
    """
    data = read_run(Path(run))
    return _write(page(data), Path(out) if out is not None else data.folder / REPORT_NAME)


def write_comparison(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one page about several searches, by default to comparison.html, and return its path. Raises as `write_report`."""
    return _write(comparison([read_run(Path(run)) for run in runs]), Path(out or COMPARISON_NAME))


def report(config: ReportConfig) -> Path:
    """`pamkd report`."""
    if (config.run is None) == (not config.compare):
        raise ValueError("pamkd report takes either one run folder or --compare with several")
    return write_comparison(config.compare, config.out) if config.run is None else write_report(config.run, config.out)


def _write(text: str, out: Path) -> Path:
    if out.is_dir():
        raise ValueError(f"--out is the folder {out}: needed is the name of an HTML file, for example {out / REPORT_NAME}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    return out
