"""Checks of arguments that the operations share: each raises one sentence that begins with the operation's name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pamkd.reference.cell_spec import CellSpec

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_dense(op: str, name: str, value: Any) -> None:
    """TypeError unless the value is a tensor with strides, NotImplementedError where it is to be differentiated in forward mode."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}; needed is a tensor")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{op}: {name} is {'nested' if value.is_nested else value.layout}; needed is a dense tensor")
    # PyTorch leaves the tangents of a registered operation's arguments behind, and its result would have a derivative of 0.
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise NotImplementedError(f"{op}: {name} has a forward-mode tangent; differentiate backward, or call what is in pamkd.reference")


def check_tensors(op: str, **tensors: Tensor) -> None:
    """TypeError unless all are dense tensors of one usable floating-point dtype on one device."""
    for name, tensor in tensors.items():
        check_dense(op, name, tensor)
    (first, like), *others = tensors.items()
    if like.dtype not in DTYPES:
        raise TypeError(f"{op}: {first} is {like.dtype}; needed are floating-point tensors (float32, float64, bfloat16 or float16)")
    for name, tensor in others:
        if tensor.dtype != like.dtype or tensor.device != like.device:
            found = f"{name} is {tensor.dtype} on {tensor.device} and {first} is {like.dtype} on {like.device}"
            raise TypeError(f"{op}: {found}; convert them to one dtype and device")


def check_numbers(op: str, **numbers: float) -> None:
    """TypeError unless all are Python numbers, ValueError unless they are finite."""
    for name, number in numbers.items():
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise TypeError(f"{op}: {name} is a {type(number).__name__}; needed is a number")
        if not -math.inf < number < math.inf:
            raise ValueError(f"{op}: {name} is {number}; needed is a finite number")


def check_integers(op: str, **integers: int) -> None:
    """TypeError unless all are Python integers."""
    for name, integer in integers.items():
        if not isinstance(integer, int) or isinstance(integer, bool):
            raise TypeError(f"{op}: {name} is a {type(integer).__name__}; needed is an integer")


def check_sets(op: str, tensors: list[Tensor]) -> None:
    """ValueError unless the first dimensions are one number of weight sets."""
    counts = [t.shape[0] if t.dim() else 0 for t in tensors]
    if counts != [counts[0] or 1] * len(counts):
        raise ValueError(f"{op}: the tensors have {counts} weight sets; needed is one number, at least 1")


def check_cell(op: str, s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec) -> None:
    """TypeError or ValueError unless the tensors fit the cell."""
    if not isinstance(spec, CellSpec):
        raise TypeError(f"{op}: spec is a {type(spec).__name__}; needed is a CellSpec")
    if (s1 is None) != (spec.inputs == 1):
        raise ValueError(f"{op}: s1 is {'None' if s1 is None else 'given'}, but spec.inputs is {spec.inputs}")
    check_tensors(op, s0=s0, **({} if s1 is None else {"s1": s1}), weights=weights, mix=mix)
    for name, tensor in (("s0", s0), ("s1", s1)):
        if tensor is not None and (tensor.dim() != 4 or tensor.shape[1] != spec.channels or tensor.shape != s0.shape):
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; every input state is [n, {spec.channels}, h, w] of one size")
    if s0.shape[0] * -(-s0.shape[2] // (1 + spec.reduction)) * -(-s0.shape[3] // (1 + spec.reduction)) < 2:
        needed = "BatchNorm needs more than one value per channel: enlarge the batch or the images"
        raise ValueError(f"{op}: s0 has shape {tuple(s0.shape)}; {needed}")
    if weights.dim() != 1 or weights.shape[0] != spec.num_weights:
        raise ValueError(f"{op}: weights has shape {tuple(weights.shape)}; the spec's flat slice is [{spec.num_weights}]")
    if tuple(mix.shape) != (spec.edges, spec.columns):
        raise ValueError(f"{op}: mix has shape {tuple(mix.shape)}; the spec needs [{spec.edges}, {spec.columns}]")
    if spec.reduction and spec.partial > 1 and (s0.shape[2] % 2 or s0.shape[3] % 2):
        raise ValueError(
            f"{op}: states of {s0.shape[2]} x {s0.shape[3]} in a reduction cell with partial channels; "
            "the 2x2 max pool of the bypassing channels needs even sizes"
        )
