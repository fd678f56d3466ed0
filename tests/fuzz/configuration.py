"""Options as nobody should give them: each ends in a configuration or in one sentence that names the option.

Run by tests/fuzz/test_in_children.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import string
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pamkd import cli
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import USER_ERRORS, OptionError
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.options import as_arguments, parse, read_config, to_dict
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
values = {"int": numbers, "float": numbers, "str": st.text(max_size=4), "bool": st.booleans()}


def fields_of(kind: type) -> st.SearchStrategy[dict]:
    """Some options with values of their types, which need not make sense."""
    chosen = {}
    for field in dataclasses.fields(kind):
        found = [strategy for name, strategy in values.items() if name in str(field.type)]
        if found and "tuple" not in str(field.type) and "Literal" not in str(field.type):
            chosen[field.name] = st.one_of(found) if field.default is not None else st.one_of(st.none(), *found)
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


options = st.sampled_from([f"--{name}".replace("_", "-") for name in (*to_dict(SearchConfig()), "preset", "config", "bogus", "help-me")])
lines = st.lists(st.one_of(words, options), max_size=4)


@examples(120)
@given(lines)
def test_any_line_is_parsed_or_refused(line):
    trace(line)
    COUNTS["tried"] += 1
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parse(SearchConfig, line, {}, "pamkd search")
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


def test_enough_was_tried():
    """The last test of this file: how much the others did."""
    print(f"{COUNTS['tried']} wrong configurations, {COUNTS['refused']} of them refused")
    assert COUNTS["refused"] > 1000
