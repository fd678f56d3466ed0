"""Ten thousand steps of a search leave the memory of the process flat."""

from __future__ import annotations

import statistics
import threading
from pathlib import Path

import pytest

from pamkd.runs.config import SearchConfig
from pamkd.runs.search import search

PAGE = 4096


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_memory_stays_flat_over_ten_thousand_steps(tmp_path):
    # 179 steps an epoch on the digits, whose training half is 718 pictures.
    size = {"epochs": 56, "batch_size": 4, "channels": 2, "cells": 3, "group_size": 2, "group_pairs": 4}
    config = SearchConfig(**size, order="first", tensorboard=False, threads=1, out=tmp_path / "run")
    resident, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        search(config)
    finally:
        ended.set()
        watcher.join()
    tenth = len(resident) // 10
    early, late = statistics.median(resident[tenth : 2 * tenth]), statistics.median(resident[-tenth:])
    print(f"{len(resident)} samples; second tenth {early:.1f} MB, last tenth {late:.1f} MB, largest {max(resident):.1f} MB")
    assert late < 1.02 * early
