"""The two ends that a call may come to: the reference's result, or one clear sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pamkd.reference import group_min_similarity
from tests.fuzz.calls import Operation

# Sentences of PyTorch itself, about what no operation of ours decides.
FRAMEWORK = re.compile(
    r"autocast::prioritize|DefaultCPUAllocator|numel: integer multiplication overflow|Storage size calculation overflowed"
    r"|vmap|functorch|forward.mode|forward AD|has no second derivative|Inference tensors cannot be saved"
    r"|invalid because it is an inference tensor|requires_grad|does not require grad"
)
UNCLEAR = re.compile(
    r"INTERNAL ASSERT|but got false|Could this error message be improved|report a bug|Traceback|unexpected keyword"
    r"|has no attribute|not subscriptable|unsupported operand|positional argument"
)
ERRORS = (TypeError, ValueError, RuntimeError)


def assert_clear(error: Exception, name: str) -> None:
    """One sentence that begins with the operation's name, or is known to be PyTorch's own."""
    text = str(error)
    assert isinstance(error, ERRORS), f"{type(error).__name__}: {text}"
    assert text and not UNCLEAR.search(text), text
    if not FRAMEWORK.search(text):
        assert text.startswith(f"{name}: ") and "\n" not in text, text


def exact(value: Any) -> Any:
    """The same value in float64, dense and by itself."""
    if isinstance(value, Tensor):
        value = value.detach().clone().resolve_conj().resolve_neg()
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(exact, value))
    return value


def assert_equal(name: str, operation: Operation, arguments: list, result: Any) -> None:
    """The result is that of the reference in float64, with at most twice the error of the reference in the same dtype."""
    if any(isinstance(t, Tensor) and t.device.type == "meta" for t in (result if isinstance(result, tuple) else [result])):
        return
    with torch.no_grad():
        eager = _results(operation.reference, arguments)
        with torch.autocast("cpu", enabled=False):
            truth = _results(operation.reference, exact(arguments))
    ours = _results(lambda: result, [])
    assert len(ours) == len(truth)
    for ours_, eager_, truth_ in zip(ours, eager, truth, strict=True):
        assert ours_.shape == truth_.shape, (ours_.shape, truth_.shape)
        if ours_.dtype == torch.int64:  # rows of the smallest cosine: near ties differ, their similarity is compared
            continue
        # `none` is 0 here and 0 * state there, which is NaN for a state that is not finite.
        hides = name in ("mixed_cell", "disturbed_cell") and any(not names or "none" in names for names in arguments[4].candidates)
        # Of a kernel that is not finite, taps on the padding are 0 * infinity there and left out here.
        hides |= name == "stencils" and not all(bool(kernel.isfinite().all()) for kernel in arguments[1])
        assert_close(ours_, eager_, truth_, slack=_relations(name, arguments, ours_.dtype), hides=hides)


def assert_close(ours: Tensor, eager: Tensor, truth: Tensor, *, slack: float = 0.0, hides: bool = False) -> None:
    """Twice the eager error and some roundings are allowed; `hides`: what is not finite may get lost."""
    precision = torch.finfo(ours.dtype).eps
    ours, eager = ours.detach().double(), eager.detach().double()
    usable = truth.isfinite() & eager.isfinite()
    assert hides or not (ours.isfinite() & ~truth.isfinite()).any(), "finite where the exact result is not"
    usable &= truth.abs() < 1e30  # intermediate results of float32 may overflow beyond
    assert not (usable & ~ours.isfinite()).any(), "not finite where the exact result is"
    if not usable.any():
        return
    ours, eager, truth = ours[usable], eager[usable], truth[usable]
    scale = max(1.0, truth.abs().max().item())
    allowed = 2 * (eager - truth).abs().max().item() + 1024 * precision * scale + slack
    error = (ours - truth).abs().max().item()
    assert error <= allowed, f"off by {error:.2e} of {scale:.2e}, {allowed:.2e} allowed"


def _results(function: Callable, arguments: list) -> list[Tensor]:
    result = function(*arguments)
    return [t for t in (result if isinstance(result, tuple) else [result]) if isinstance(t, Tensor)]


def _relations(name: str, arguments: list, dtype: torch.dtype) -> float:
    """grs_loss asks whether a teacher's two similarities differ at all; where rounding decides, a pair adds the margin or nothing."""
    if name != "grs_loss":
        return 0.0
    teacher, _, x, y, eps, reduction = arguments
    sets = exact(teacher if teacher.dim() == 3 else teacher[None])
    t = group_min_similarity(sets, x)[0] - group_min_similarity(sets, y)[0]
    unsure = 1.01 * (t.abs() < 32 * torch.finfo(dtype).eps).sum(1).max().item()
    return unsure * abs(float(eps)) / (len(x) if reduction == "mean" else 1)
