"""docs/methods.md: its example runs as printed, its options and defaults are the program's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch

import pamkd
from pamkd.methods import METHODS
from pamkd.runs.method import OPTIONS, SHARED
from pamkd.transfer import TRANSFERS

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


def test_every_method_and_transfer_is_on_the_page_with_its_options_and_defaults():
    page, names = PAGE.read_text(), {field: option.replace("_", "-") for option, field in OPTIONS.items()}
    for name, kind in (METHODS | TRANSFERS).items():
        (line,) = re.findall(rf"^\| `{name}` \| `\w+\.py`.*$", page, re.M)
        said = dict(re.findall(r"--([\w-]+)(?: ([^-`\s][^`\s]*))?", line.split("|")[-2]))
        fields = {field.name: field for field in dataclasses.fields(kind) if field.name not in SHARED and field.name in names}
        assert set(said) == {names[field].replace("distill-weight", "lambda") for field in fields}, name
        for field in fields.values():
            value = said[names[field.name].replace("distill-weight", "lambda")]
            if field.default not in (None, 0, dataclasses.MISSING):
                assert value and type(field.default)(value) == field.default, (name, field.name)
