"""A few steps of a search in a process of their own, so that its peak of memory is theirs: `python -m pamkd.runs.probe`, for `pamkd plan`.

Reads the options of a search as JSON and writes one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from typing import Any

import torch

from pamkd.data import Batches
from pamkd.methods.method import Phase
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import USER_ERRORS
from pamkd.runs.logs import Stopwatch
from pamkd.runs.memory import peak
from pamkd.runs.numerics import numerics
from pamkd.runs.options import as_arguments, parse
from pamkd.runs.search import build_supernet, validate
from pamkd.runs.search_data import load_halves
from pamkd.runs.search_state import SearchState, Step
from pamkd.trilevel.passes import Batch

WARM_UP, MEASURED = 1, 2  # steps of each phase
CHECKED = 2  # batches of a validation


def probe(config: SearchConfig) -> dict[str, Any]:
    """Images of both halves, peak before and after the steps (bytes); of each stage, seconds of a step by phase and of checking a batch."""
    data = load_halves(config, config.seed, config.train_portion)
    some = torch.arange(min(CHECKED * config.batch_size, len(data.valid)))
    train, valid, check = (
        Batches(
            half,
            indices,
            config.batch_size,
            seed=config.seed,
            stream=name,
            augment=augment,
            device=config.device,
            workers=config.workers,
        )
        for half, indices, name, augment in (
            (data.train, None, "train", data.augment),
            (data.valid, None, "valid", data.augment),
            (data.valid, some, "check", data.plain),
        )
    )
    state = SearchState(config, build_supernet(config, len(data.train.classes), data.train.image_shape[0]))
    before, stages, number = peak(config.device), [], itertools.count()
    batches = zip(train.forever(), valid.forever(), strict=False)
    for stage in range(state.learners[0].network.stages):
        if stage:
            state.epoch = stage * state.stage_epochs - 1
            state.next_epoch()
        seconds: dict[Phase, float] = {}
        for epoch in _first_epochs(config, state.stage_epochs):
            state.epoch = stage * state.stage_epochs + epoch
            state.method.begin_epoch(state.epoch, config.epochs)
            state.method.measure(state.learners, lambda: check.epoch(0))
            watch, laps = Stopwatch(), []
            for _ in range(WARM_UP + MEASURED):
                of_train, of_valid = (Batch(*part) for part in next(batches))
                state.take(Step(of_train, of_valid, config.lr_min, config.phase(epoch), next(number)))
                _wait(config.device)
                laps.append(watch.lap())
            seconds[config.phase(epoch)] = statistics.mean(laps[WARM_UP:])
        watch = Stopwatch()
        validate(state, check)
        _wait(config.device)
        stages.append({"step": seconds, "check": watch.lap() / len(check)})
    return {"images": [len(data.train), len(data.valid)], "before": before, "peak": peak(config.device), "stages": stages}


def _first_epochs(config: SearchConfig, epochs: int) -> list[int]:
    """The first epoch of each phase of a stage."""
    phases = [config.phase(epoch) for epoch in range(epochs)]
    return [phases.index(phase) for phase in dict.fromkeys(phases)]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    try:
        config = parse(SearchConfig, as_arguments(SearchConfig, json.load(sys.stdin), "options"), {}, "probe")
        with numerics(config):
            print(json.dumps(probe(config)))
    except USER_ERRORS as error:
        sys.exit(str(error))
