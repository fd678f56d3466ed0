"""The `pamkd::` operator library and what every operation file shares."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIB = torch.library.Library("pamkd", "DEF")

# Operation -> dispatch keys whose kernel lives in the compiled extension; checked by pamkd._ext after loading it.
COMPILED: dict[str, tuple[str, ...]] = {}

# Public operation -> device type -> what computes it. Every other device uses the eager composition of pamkd.reference.
IMPLEMENTATIONS: dict[str, dict[str, str]] = {}

# Language -> why its kernels cannot be used here. Triton is looked for, not imported.
UNAVAILABLE = {} if importlib.util.find_spec("triton") else {"Triton": "Triton is not installed (pip install triton)"}


class Example(NamedTuple):
    """A call of a public operation and the composition that it must agree with, for `pamkd doctor`."""

    operation: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: Callable[[], tuple[Any, ...]]  # float64 tensors require gradients; converted to the dtype and device under test


EXAMPLES: dict[str, Example] = {}

_warned: set[tuple[str, str]] = set()


def define(schema: str, *, compiled: tuple[str, ...] = ("CPU",)) -> None:
    """Define an operation of the library, with kernels in the extension for these dispatch keys."""
    LIB.define(schema)
    COMPILED[schema.split("(")[0]] = compiled


def implement_on_cuda(name: str, kernel: Callable[..., Any]) -> None:
    """Implement an operation on CUDA in Python. Triton launches on the current device: it is that of the tensors meanwhile."""

    def call(*arguments: Any) -> Any:
        with torch.cuda.device_of(next(argument for argument in arguments if isinstance(argument, Tensor))):
            return kernel(*arguments)

    LIB.impl(name, call, "CUDA")


def triton_kernels(stem: str, *operations: str) -> None:
    """Implement operations on CUDA by the functions of the same names in `pamkd.kernels.<stem>`, imported when first called."""

    def lazy(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return getattr(importlib.import_module(f"pamkd.kernels.{stem}"), name)(*arguments)

        return call

    for name in operations:
        implement_on_cuda(name, lazy(name))


def register(
    operation: Callable[..., Any], reference: Callable[..., Any], arguments: Callable[[], tuple[Any, ...]], **implementations: str
) -> None:
    """Put a public operation on the list that `pamkd doctor` checks; `implementations` is device=language."""
    IMPLEMENTATIONS[operation.__name__] = implementations
    EXAMPLES[operation.__name__] = Example(operation, reference, arguments)


def has_kernel(operation: str, tensor: Tensor) -> bool:
    """Whether `operation` has a kernel for the tensor's device; where not, says once that the eager composition is used."""
    device = tensor.device.type
    if implementation(operation, device) is None:
        return _eager(operation, device)
    return True


def on_cpu(tensor: Tensor) -> bool:
    """Whether the operation's CPU kernel takes it. Tests answer for CPU tensors that the GPU's implementation computes."""
    return tensor.device.type == "cpu"


def implementation(operation: str, device: str) -> str | None:
    """What computes `operation` on a type of device here, or None where the eager composition does."""
    language = IMPLEMENTATIONS[operation].get(device)
    return None if _missing(language) else language


def _missing(language: str | None) -> str | None:
    """Why kernels in a language, or in two ("CUDA C++ and Triton"), cannot be used here."""
    return next((why for name, why in UNAVAILABLE.items() if name in (language or "")), None)


def _eager(operation: str, device: str) -> bool:
    if (operation, device) not in _warned:
        _warned.add((operation, device))
        built = " and ".join(IMPLEMENTATIONS[operation]) or "no device in this build"
        language = IMPLEMENTATIONS[operation].get(device)
        why = f"but {_missing(language)}" if language else f"none for {device}"
        warnings.warn(f"pamkd.ops.{operation} has kernels for {built}, {why}: the slower eager composition is used", stacklevel=4)
    return False


# It runs while torch.compile traces, so that the warning neither breaks the graph nor gets lost. This is all that
# torch.compiler.assume_constant_result does, which would import the compiler, and Triton, with every `import pamkd`.
_eager._dynamo_marked_constant = True  # type: ignore[attr-defined]


def channels_last(maps: Tensor) -> Tensor:
    """[n, c, h, w] in channels_last, within `torch.vmap` too, which knows no memory format."""
    return maps.movedim(1, -1).contiguous().movedim(-1, 1)


def weight_sets(count: int, dims: Sequence[int | None], *tensors: Tensor | None) -> list[Any]:
    """Within `torch.vmap` over `count` weight sets, which lie along `dims`: the tensors with these sets as their first dimension."""
    given = zip(tensors, dims, strict=False)
    return [t if t is None else t.expand(count, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in given]


def deny_double_backward(name: str, advice: str) -> None:
    """Make differentiating the backward operation `name` raise: an opaque kernel would return a wrong second derivative."""

    def backward(ctx, *grads):
        raise NotImplementedError(f"{name} has no second derivative: {advice}")

    torch.library.register_autograd(name, backward, lib=LIB)
