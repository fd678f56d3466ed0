"""The example of docs/methods.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import pamkd
from pamkd.methods import METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


class Pictures(torch.utils.data.TensorDataset):
    classes = ("a", "b")


def test_a_method_of_ones_own():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    try:
        exec(compile(code, str(PAGE), "exec"), {"__name__": __name__})
        data = Pictures(torch.randn(16, 1, 8, 8), torch.arange(16) % 2)
        options = {"epochs": 1, "channels": 2, "cells": 3, "batch_size": 8, "log_every": 1}
        result = pamkd.Search(method="mean", distill_weight=0.5, order="first", **options).run(data, data)
        assert all(loss > 0 for row in result.history if row["kind"] == "step" for loss in row["distill_loss"])
    finally:
        METHODS.pop("mean", None)


def test_every_method_and_transfer_is_on_the_page():
    page = PAGE.read_text()
    from pamkd.transfer import TRANSFERS

    assert all(f"| `{name}` |" in page for name in (*METHODS, *TRANSFERS))
