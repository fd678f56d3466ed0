"""Operations called wrongly: whatever is passed, a call ends in the reference's result or in one clear sentence.

Run by tests/fuzz/test_in_children.py.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pamkd.ops._library import COMPILED
from pamkd.reference.cell_spec import OPERATIONS as CANDIDATES
from pamkd.reference.cell_spec import CellSpec
from tests.fuzz.calls import OPERATIONS, Operation, draw
from tests.fuzz.changes import LAYOUTS, changes_of, places
from tests.fuzz.child import examples, trace
from tests.fuzz.outcome import ERRORS, FRAMEWORK, assert_clear, assert_close, assert_equal, exact

pytestmark = pytest.mark.filterwarnings("ignore")
COUNTS: Counter[str] = Counter()
MODES = (
    "plain",
    "plain",
    "plain",
    "plain",
    "gradient",
    "gradient",
    "twice",
    "inference",
    "autocast",
    "meta default",
    "float64 default",
    "vmap",
    "jvp",
)


def spoiled(name: str, seed: int, changes: list[tuple[int, int]]) -> tuple[list, list[str]]:
    """The arguments of a correct call with some of them changed, and what was changed."""
    arguments = draw(name, seed)
    return arguments, spoil(arguments, changes)


def spoil(arguments: list, changes: list[tuple[int, int]]) -> list[str]:
    """Change arguments in place; returns what was changed."""
    done = []
    for where, which in changes:
        every = list(places(arguments))
        holder, index = every[where % len(every)]
        kinds = changes_of(holder[index])
        kind = list(kinds)[which % len(kinds)]
        if kind == "vast" and any(what.endswith(kind) for what in done):
            continue  # two of one shape are a correct call, which would never end
        try:
            holder[index] = kinds[kind](holder[index])
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError, AttributeError):
            continue  # cannot be done to this argument
        done.append(f"{where % len(every)}: {kind}")
    return done


calls = st.tuples(
    st.sampled_from(sorted(OPERATIONS)),
    st.integers(0, 2**20),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 400)), min_size=1, max_size=3),
    st.sampled_from(MODES),
)


@examples(4500)
@given(calls)
def test_any_call_ends_in_the_result_or_a_sentence(call):
    name, seed, changes, mode = call
    arguments, done = spoiled(name, seed, changes)
    trace((name, seed, done, mode))
    COUNTS["calls"] += bool(done)
    operation = OPERATIONS[name]
    try:
        result = in_mode(mode, operation.function, arguments)
    except Exception as error:
        COUNTS["refused"] += 1
        assert_clear(error, name)
        return
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        assert_equal(name, operation, arguments, result)
    if mode == "gradient" and all(what.split(": ")[1] in LAYOUTS for what in done):
        assert_same_gradients(operation, arguments)


class Recorder(TorchDispatchMode):
    """Remembers the calls of the library's own operations, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pamkd":
            self.calls.append((func, list(args)))
        return func(*args, **(kwargs or {}))


@examples(4000)
@given(calls, st.integers(0, 3))
def test_the_operations_below_survive_any_call(call, which):
    """What the documented functions never pass: other tensors kept for backward, codes of cells that are none."""
    name, seed, changes, _ = call
    arguments = detached(draw(name, seed))
    with Recorder() as recorder:
        in_mode("gradient", OPERATIONS[name].function, arguments)
    compiled = [call for call in recorder.calls if "CPU" in COMPILED[call[0].overloadpacket.__name__]]
    if not compiled:
        return
    operation, inner = compiled[which % len(compiled)]
    done = spoil(inner, changes)
    trace((str(operation), name, seed, done))
    COUNTS["calls"] += bool(done)
    try:
        with torch.no_grad():
            operation(*inner)
    except Exception as error:
        COUNTS["refused"] += 1
        assert str(error) and not re.search("INTERNAL ASSERT|report a bug", str(error)), error


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=3), st.lists(st.just("none"), max_size=2), st.just(2**70)
)
names = st.sampled_from([*CANDIDATES, "conv", "", 3, None])
lists = st.lists(st.lists(names, max_size=3).map(tuple), max_size=5).map(tuple)
specs = st.fixed_dictionaries(
    {"channels": st.one_of(st.integers(-1, 8), anything), "candidates": st.one_of(lists, anything)},
    optional=dict.fromkeys(("reduction", "inputs", "nodes", "partial", "output", "pool_norm"), anything),
)


@examples(1500)
@given(specs)
def test_any_cell_is_one_or_a_sentence(fields):
    COUNTS["calls"] += 1
    try:
        spec = CellSpec(**fields)
    except (TypeError, ValueError) as error:
        COUNTS["refused"] += 1
        assert str(error).startswith("CellSpec: ") and "\n" not in str(error), error
        return
    assert CellSpec.decode(spec.encode()).encode() == spec.encode() and spec.num_weights >= 0


@examples(12)
@given(calls)
def test_any_compiled_call_ends_in_the_result_or_a_sentence(call):
    name, seed, changes, _ = call
    arguments, done = spoiled(name, seed, changes)
    trace((name, seed, done, "compiled"))
    COUNTS["calls"] += bool(done)
    torch._dynamo.reset()
    try:
        result = torch.compile(OPERATIONS[name].function, backend="eager")(*arguments)
    except Exception as error:
        COUNTS["refused"] += 1
        assert isinstance(error, ERRORS) and (f"{name}: " in str(error) or FRAMEWORK.search(str(error))), error
        return
    assert_equal(name, OPERATIONS[name], arguments, result)


def test_enough_was_tried():
    """The last test of this file: how much the others did."""
    print(f"{COUNTS['calls']} wrong calls, {COUNTS['refused']} of them refused")
    assert COUNTS["calls"] > 8000 and COUNTS["refused"] > 5000


def in_mode(mode: str, function, arguments: list) -> Any:
    if mode == "gradient":
        result = function(*arguments)
        tensors = [t for t in (result if isinstance(result, tuple) else [result]) if isinstance(t, Tensor) and t.requires_grad]
        if tensors:
            leaves = [t for t in flat(arguments) if t.requires_grad]
            torch.autograd.grad(tensors, leaves, [torch.ones(()).to(t.dtype).expand_as(t) for t in tensors], allow_unused=True)
        return result
    if mode == "twice":
        leaves = [t for t in flat(arguments) if t.is_floating_point() and t.is_leaf and not t.is_inference()]
        for leaf in leaves:
            leaf.requires_grad_()
        result = function(*arguments)
        main = result[0] if isinstance(result, tuple) else result
        if not leaves or not main.requires_grad:
            return result
        first = torch.autograd.grad((main * main).sum(), leaves, create_graph=True, allow_unused=True)
        if any(g is not None and g.requires_grad for g in first):
            torch.autograd.grad(sum((g * g).sum() for g in first if g is not None), leaves, allow_unused=True)
        return result
    if mode == "inference":
        with torch.inference_mode():
            return function(*arguments)
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            return function(*arguments)
    if mode == "meta default":
        with torch.device("meta"):
            return function(*arguments)
    if mode == "float64 default":
        torch.set_default_dtype(torch.float64)
        try:
            return function(*arguments)
        finally:
            torch.set_default_dtype(torch.float32)
    if mode in ("vmap", "jvp"):

        def scaled(factor: Tensor) -> Any:
            return function(*(a * factor if is_plain(a) else a for a in arguments))

        if mode == "jvp":
            return torch.func.jvp(scaled, (torch.ones(()),), (torch.ones(()),))[0]
        result = torch.func.vmap(scaled)(torch.ones(2))
        return tuple(part[1] for part in result) if isinstance(result, tuple) else result[1]
    return function(*arguments)


def assert_same_gradients(operation: Operation, arguments: list) -> None:
    """Gradients of the first result with random cotangents: ours, the reference's, and the reference's in float64."""
    gradients = []
    for function, values in ((operation.function, arguments), (operation.reference, arguments), (operation.reference, exact(arguments))):
        given = detached(values)
        result = function(*given)
        result = result[0] if isinstance(result, tuple) else result
        if not result.requires_grad:
            return
        cotangent = torch.randn(result.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(result.dtype)
        gradients.append(torch.autograd.grad(result, [t for t in flat(given) if t.requires_grad], cotangent, allow_unused=True))
    for ours, eager, truth in zip(*gradients, strict=True):
        if truth is not None and ours is not None:
            assert_close(ours, eager, truth)
        else:
            assert truth is None or not truth.any()


def detached(values: list) -> list:
    """The same arguments as leaves that require gradients."""
    return [
        detached(v) if isinstance(v, list) else v.detach().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
        for v in values
    ]


def is_plain(value: Any) -> bool:
    """Whether the argument is a floating-point tensor that another one can be multiplied with."""
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64) and value.layout == torch.strided and value.is_cpu


def flat(arguments: list) -> list[Tensor]:
    return [t for a in arguments for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor)]
