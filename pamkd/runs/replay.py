"""Taking a step again that diverged, from the bundle that the search wrote."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from torch import Tensor

from pamkd.runs import bundle
from pamkd.runs.config import SearchConfig
from pamkd.runs.numerics import check_device, numerics
from pamkd.runs.options import as_arguments, parse
from pamkd.runs.search import build_supernet
from pamkd.runs.search_state import SearchState, Step
from pamkd.trilevel.finite import Diverged


@dataclass(frozen=True)
class ReplayConfig:
    """Take the step of a bundle again and say what goes wrong in it; the status is 1 where nothing does."""

    bundle: tyro.conf.Positional[Path]
    """The file divergence.safetensors of a run folder."""
    device: str | None = None
    """A PyTorch device; default: that of the search."""
    threads: int = 0
    """CPU threads; 0: as many as a deterministic search had, else PyTorch's choice."""


def replay(config: ReplayConfig) -> tuple[str, bool]:
    """`pamkd replay`: what is to be said, and whether the step diverged again."""

    def restored(tensors: dict[str, Tensor], meta: dict[str, Any], step: Step) -> tuple[SearchState, Step, str, int]:
        words = as_arguments(SearchConfig, meta["config"], str(config.bundle))
        options = parse(SearchConfig, words, {}, "pamkd replay")
        changed = {"device": config.device or options.device, "threads": config.threads or options.threads}
        options = dataclasses.replace(options, **changed)
        meta["config"] |= changed
        check_device(options.device)
        state = SearchState(options, build_supernet(options, meta["classes"], meta["image_channels"]))
        state.restore(tensors, meta)
        state.method.begin_epoch(state.epoch, options.epochs)
        return state, step, meta["message"], meta.get("parts", 1)

    state, step, message, parts = bundle.load(config.bundle, restored)
    where = f"epoch {state.epoch + 1} step {state.step} ({step.phase})"
    if parts > 1:
        where += f", BatchNorm of whole batches, not of the {parts} parts that the search had"
    try:
        with numerics(state.config):
            report = state.take(step)
    except Diverged as error:
        agrees = "as in the search" if str(error) == message else f"the search said: {message}"
        return f"{where}: {error}\n{agrees}", True
    losses = ", ".join(f"{loss:.4f}" for loss in report.train_loss)
    return f"{where}: nothing diverged, training losses {losses}\nthe search said: {message}", False
