"""Ten thousand steps of a search leave the memory of the process flat."""

from __future__ import annotations

import statistics
import threading
from pathlib import Path

import pytest

from pamkd.runs.config import SearchConfig
from pamkd.runs.search import search


def held() -> float:
    """MB of this process's own memory, paged out or not: pages of files come and go as the system pleases."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return sum(int(line[1]) for line in lines if line[0] in ("RssAnon:", "VmSwap:")) / 1024


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_memory_stays_flat_over_ten_thousand_steps(tmp_path):
    # 179 steps an epoch on the digits, whose training half is 718 pictures.
    size = {"epochs": 56, "batch_size": 4, "channels": 2, "cells": 3, "group_size": 2, "group_pairs": 4}
    config = SearchConfig(**size, order="first", tensorboard=False, threads=1, out=tmp_path / "run")
    samples, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            samples.append(held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        search(config)
    finally:
        ended.set()
        watcher.join()
    count = len(samples) // 10
    tenths = [statistics.median(samples[i * count : (i + 1) * count]) for i in range(10)]
    print(f"{len(samples)} samples; MB in each tenth {', '.join(f'{mb:.1f}' for mb in tenths)}; largest {max(samples):.1f}")
    assert tenths[9] < 1.02 * tenths[1]
