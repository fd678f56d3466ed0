"""Options as nobody should give them: each ends in a configuration or in one sentence that names the option.

Run by tests/fuzz/test_in_children.py.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import string
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
import tyro
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pamkd import cli
from pamkd.report import ReportConfig
from pamkd.reproduce import ReproduceConfig
from pamkd.runs import bundle, checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import USER_ERRORS, OptionError
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.export import ExportConfig
from pamkd.runs.lookup import LookupConfig
from pamkd.runs.options import RunOptions, as_arguments, parse, read_config
from pamkd.runs.random_search import RandomConfig
from pamkd.runs.replay import ReplayConfig, replay
from pamkd.runs.search import build_supernet
from pamkd.runs.search_state import SearchState, Step
from pamkd.sweep import SweepConfig
from pamkd.sweep.grid import Grid, read_grid
from pamkd.trilevel.passes import Batch
from tests.fuzz.child import examples, trace

COUNTS: Counter[str] = Counter()
words = st.one_of(
    st.sampled_from(
        ["", "-1", "0", "nan", "inf", "1e99", "None", "True", "--", "-", "=", "3h55m", "darts", "pamkd", "/", "..", "\0", "ß", "x" * 3000]
    ),
    st.text(string.printable, max_size=5),
    st.integers(-(2**70), 2**70).map(str),
)
numbers = st.one_of(st.integers(-3, 70), st.floats(), st.just(2**70), st.just(-(2**70)))
anything = st.one_of(st.text(max_size=4), numbers, st.booleans(), st.lists(st.integers(0, 3), max_size=2), st.just(Path("x")))
values = {"int": numbers, "float": numbers, "str": st.text(max_size=4), "bool": st.booleans()}


def fields_of(kind: type) -> st.SearchStrategy[dict]:
    """Some options with values of their types, which need not make sense, and now and then of another type."""
    chosen = {}
    for field in dataclasses.fields(kind):
        found = [strategy for name, strategy in values.items() if name in str(field.type) and "Literal" not in str(field.type)]
        chosen[field.name] = st.one_of(*found, st.none(), anything)
    names = st.lists(st.sampled_from(sorted(chosen)), min_size=1, max_size=3, unique=True)
    return names.flatmap(lambda some: st.fixed_dictionaries({name: chosen[name] for name in some}))


@pytest.mark.parametrize("kind", [SearchConfig, EvaluateConfig])
@examples(1000)
@given(data=st.data())
def test_any_options_are_taken_or_named(kind, data):
    options = data.draw(fields_of(kind))
    trace((kind.__name__, options))
    COUNTS["tried"] += 1
    try:
        config = kind(**options)
    except OptionError as error:
        COUNTS["refused"] += 1
        assert "needed is" in str(error) and "\n" not in str(error).replace("\\n", ""), error
        return
    assert kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(kind)}) == config or options_hold_nan(options)


def options_hold_nan(options: dict) -> bool:
    return any(value != value for value in options.values())


@examples(250)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")),
        st.dictionaries(
            st.sampled_from(["epochs", "lr", "seed", "resume", "out", "bogus", "space_options"]),
            st.one_of(
                st.none(),
                numbers,
                st.text(max_size=4),
                st.lists(st.integers(), max_size=2),
                st.booleans(),
                st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
            ),
            max_size=3,
        ).map(lambda d: yaml.safe_dump(d).encode()),
    )
)
def test_any_file_of_options_is_read_or_named(content):
    with tempfile.TemporaryDirectory() as folder:
        try_file(Path(folder) / "options.yaml", content)


def try_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    trace(content)
    COUNTS["tried"] += 1
    try:
        read = as_arguments(SearchConfig, read_config(path), str(path))
    except ValueError as error:
        COUNTS["refused"] += 1
        assert str(path) in str(error) and "\n" not in str(error), error
        return
    assert all(isinstance(word, str) for word in read)


KINDS = (SearchConfig, EvaluateConfig, RandomConfig, LookupConfig, ReportConfig, ReproduceConfig, SweepConfig, ExportConfig, ReplayConfig)


def line_of(kind: type) -> st.SearchStrategy[tuple]:
    """Words and names of options for a command."""
    names = [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    options = st.sampled_from([f"--{name}" for name in (*names, "preset", "config", "bogus", "help-me")])
    return st.tuples(st.just(kind), st.lists(st.one_of(words, options), max_size=4))


@examples(200)
@given(st.sampled_from(KINDS).flatmap(line_of))
def test_any_line_is_parsed_or_refused(given):
    kind, line = given
    trace((kind.__name__, line))
    COUNTS["tried"] += 1
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parse(kind, line, {}, "pamkd") if issubclass(kind, RunOptions) else tyro.cli(kind, args=line, prog="pamkd")
    except SystemExit as error:
        COUNTS["refused"] += 1
        assert error.code in (0, 2) and said.getvalue().strip() and "Traceback" not in said.getvalue()
    except USER_ERRORS as error:
        COUNTS["refused"] += 1
        assert str(error), error


@examples(400)
@given(st.lists(words, max_size=3))
def test_any_command_is_refused(line):
    if line and line[0] in ("-h", "--help", "--version", *cli.COMMANDS):
        return
    trace(line)
    COUNTS["tried"] += 1
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        assert cli.main(line) == 2
    COUNTS["refused"] += 1
    assert not line or "unknown command" in said.getvalue()


names = st.one_of(st.sampled_from(["pamkd", "plain", "dml", "darts", "pdarts", "digits", "mnist", "folder"]), anything)
keys = st.sampled_from(["epochs", "lr", "preset", "seed", "channels", "data", "bogus"])
inner = st.dictionaries(keys, st.one_of(anything, names), max_size=2)
named = st.dictionaries(names.filter(lambda name: isinstance(name, str)), st.one_of(inner, anything), max_size=1)
entries = st.lists(st.one_of(names, named), max_size=3)
fields = st.sampled_from([field.name for field in dataclasses.fields(Grid)])
sweeps = st.dictionaries(fields, st.one_of(entries, inner, anything), min_size=1, max_size=3)


@examples(400)
@given(sweeps)
def test_any_sweep_is_a_grid_or_named(content):
    trace(content)
    COUNTS["tried"] += 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(yaml.safe_dump(plain(content)))
        try:
            units = read_grid(path).units(Path(folder))
        except USER_ERRORS as error:
            COUNTS["refused"] += 1
            assert str(error) and "Traceback" not in str(error) and str(path) in str(error), error
            return
    assert len(units) >= 1


def plain(value):
    """The same without paths, which YAML does not know."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else str(value) if isinstance(value, Path) else value


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """A step that one can take again: its file, tensors and meta."""
    path = tmp_path_factory.mktemp("bundle") / "divergence.safetensors"
    options = {"channels": 2, "cells": 3, "batch_size": 4, "group_size": 2, "group_pairs": 2, "threads": 1, "order": "first"}
    config = SearchConfig(**options)
    state = SearchState(config, build_supernet(config, 3, 1))
    train, valid = (Batch(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in "tv")
    bundle.save(path, state, Step(train, valid, 0.1, "search", 0), "made up")
    return path, *checkpoint.load(path)


tensors = st.sampled_from(
    [torch.zeros(0), torch.ones(3), torch.full((4, 1, 8, 8), torch.nan), torch.tensor([0, 1, 2, 99]), torch.ones(2, 2)]
)
spoils = st.tuples(st.integers(0, 200), st.one_of(st.none(), tensors), st.sampled_from(["tensor", "meta", "config", "step"]), anything)


@examples(40)
@given(st.lists(spoils, min_size=1, max_size=2))
def test_any_bundle_is_replayed_or_refused(bundled, changes):
    """Parts taken away (None), or others in their place."""
    path, whole, meta = bundled
    tensors, meta = dict(whole), copy.deepcopy(meta)
    for which, tensor, where, value in changes:
        part = {"tensor": tensors, "meta": meta, "config": meta.get("config"), "step": meta.get("step_of")}[where]
        if not isinstance(part, dict):
            continue
        name = sorted(part)[which % len(part)]
        if tensor is None and where != "config":
            del part[name]
        else:
            part[name] = tensor.clone() if where == "tensor" and tensor is not None else plain(value)
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    trace(changes)
    COUNTS["tried"] += 1
    spoiled = path.with_name("spoiled.safetensors")
    spoiled.unlink(missing_ok=True)  # else it would be kept, and used in place of the next
    checkpoint.save(spoiled, tensors, meta)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
            text, _ = replay(ReplayConfig(spoiled))
    except SystemExit as error:  # the parser of options
        assert error.code == 2 and "Traceback" not in said.getvalue()
    except USER_ERRORS as error:
        assert str(error) and "\n" not in str(error), error
    else:
        assert text
        return
    COUNTS["refused"] += 1


def test_enough_was_tried():
    """The last test of this file: how much the others did."""
    print(f"{COUNTS['tried']} wrong configurations, {COUNTS['refused']} of them refused")
    assert COUNTS["refused"] > 2000  # with those of operations.py 10,000
