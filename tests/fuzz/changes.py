"""What can be wrong with, or merely unusual about, an argument of an operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance

Change = Callable[[Any], Any]


def _sliced(x: Tensor) -> Tensor:
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1)
    wide[..., 1::2] = x
    return wide[..., 1::2]


def _shifted(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape)


def _overlapping(x: Tensor) -> Tensor:
    """Every element lies in the memory of its neighbours."""
    return x.flatten().repeat(2).as_strided(x.shape, [1] * x.dim())


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def _swapped(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() >= 2 else x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.movedim(0, -1).contiguous().movedim(-1, 0)


def _put(value: float) -> Change:
    def put(x: Tensor) -> Tensor:
        x = x.clone()
        x.flatten()[x.numel() // 2] = value
        return x

    return put


def _longer(dim: int) -> Change:
    return lambda x: torch.cat([x, x.narrow(dim, 0, 1)], dim)


def _empty(dim: int) -> Change:
    return lambda x: x.narrow(dim, 0, 0)


def _to(dtype: torch.dtype) -> Change:
    return lambda x: x.to(dtype)


def _vast(x: Tensor) -> Tensor:
    """More elements than fit into any address space, in the memory of one row."""
    return x[:1].expand(1 << 48, *x.shape[1:])


# The values stay, so that results and gradients are those of the reference.
LAYOUTS: dict[str, Change] = {
    "sliced": _sliced,
    "shifted": _shifted,
    "swapped": _swapped,
    "channels last": _channels_last,
    "parameter": torch.nn.Parameter,
    "not a leaf": lambda x: x.clone().requires_grad_() * 1,
    "negative view": lambda x: torch._neg_view(-x),
    "conjugate view": lambda x: torch.view_as_real(torch.view_as_complex(torch.stack([x, x], -1).contiguous()).conj())[..., 0],
}
TENSORS: dict[str, Change] = {
    "expanded": _expanded,
    "overlapping": _overlapping,
    "float16": _to(torch.float16),
    "bfloat16": _to(torch.bfloat16),
    "float64": _to(torch.float64),
    "float32": _to(torch.float32),
    "float8": _to(torch.float8_e4m3fn),
    "int64": _to(torch.int64),
    "uint8": lambda x: x.abs().to(torch.uint8),
    "bool": _to(torch.bool),
    "complex": _to(torch.complex64),
    "row": lambda x: x[0],
    "more dimensions": lambda x: x[None],
    "transposed": lambda x: x.transpose(0, -1),
    "flat": lambda x: x.flatten(),
    "scalar": lambda x: x.flatten()[0],
    "longer first": _longer(0),
    "longer second": _longer(1),
    "longer last": _longer(-1),
    "shorter first": lambda x: x[1:],
    "shorter last": lambda x: x[..., 1:],
    "empty first": _empty(0),
    "empty second": _empty(1),
    "empty last": _empty(-1),
    "vast": _vast,
    "nan": _put(float("nan")),
    "infinity": _put(float("inf")),
    "minus infinity": _put(float("-inf")),
    "denormal": lambda x: x * 1e-40,
    "all denormal": lambda x: torch.full_like(x, 1e-42),
    "huge": lambda x: x * 1e30,
    "largest": _put(3e38),
    "tiny": lambda x: x * 1e-20,
    "zero": torch.zeros_like,
    "negative zero": lambda x: -torch.zeros_like(x),
    "equal": lambda x: torch.full_like(x, 0.5),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: x.flatten(1).to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "inference": lambda x: _made_in_inference(x),
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "none": lambda x: None,
    "string": lambda x: "tensor",
    "number": lambda x: 1.5,
    "module": lambda x: torch.nn.Identity(),
}
INDICES: dict[str, Change] = {
    "beyond": _put(10**4),
    "just beyond": lambda x: x + (int(x.max()) + 1),
    "negative": _put(-1),
    "largest index": _put(2**63 - 1),
    "smallest index": _put(-(2**63)),
    "int32": _to(torch.int32),
    "int16": _to(torch.int16),
    "uint8": _to(torch.uint8),
    "float": _to(torch.float32),
    "repeated": lambda x: x[:, :1].expand_as(x),
    "one row": lambda x: x[:, :1],
    "many rows": lambda x: x.repeat(1, 8),
    "no group": lambda x: x[:0],
    "no row": lambda x: x[:, :0],
    "sliced": _sliced,
    "expanded": _expanded,
    "swapped": _swapped,
    "flat": lambda x: x.flatten(),
    "vast": _vast,
    "meta": lambda x: x.to("meta"),
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "none": lambda x: None,
    "sparse": lambda x: x.to_sparse(),
}
NUMBERS: dict[str, Change] = {
    "nan": lambda x: float("nan"),
    "infinity": lambda x: float("inf"),
    "minus": lambda x: -x,
    "zero": lambda x: 0,
    "three": lambda x: 3,
    "fraction": lambda x: 2.5,
    "largest": lambda x: 2**63,
    "none": lambda x: None,
    "string": str,
    "list": lambda x: [x],
    "tensor": torch.tensor,
    "complex": lambda x: 1j,
    "true": lambda x: True,
}
OTHERS: dict[str, Change] = {
    "none": lambda x: None,
    "string": lambda x: "spec",
    "number": lambda x: 3,
    "empty": lambda x: type(x)() if isinstance(x, (str, list, tuple, bool)) else {},
    "bytes": lambda x: b"sum",
}
SPECS: dict[str, Change] = {
    "other channels": lambda x: dataclasses.replace(x, channels=x.channels * 2),
    "other stride": lambda x: dataclasses.replace(x, reduction=not x.reduction),
    "partial": lambda x: dataclasses.replace(x, partial=2 if x.partial == 1 else 1),
    "no candidates": lambda x: dataclasses.replace(x, candidates=((),) * x.edges),
    "noise": lambda x: dataclasses.replace(x, candidates=(("noise",),) * x.edges),
    "a list": lambda x: dataclasses.astuple(x),
    "encoded": CellSpec.encode,
    **OTHERS,
}
DISTURBANCES: dict[str, Change] = {
    "another seed": lambda x: dataclasses.replace(x, seed=2**64 - 1),
    "dropout of almost all": lambda x: dataclasses.replace(x, skip_dropout=1 - 2**-53),
    "drop-path of almost none": lambda x: dataclasses.replace(x, drop_path=5e-324),
    "last image": lambda x: dataclasses.replace(x, first=2**31 - 1),
    "encoded": Disturbance.encode,
    "a tuple": lambda x: dataclasses.astuple(x),
    **OTHERS,
}


def _made_in_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def changes_of(value: Any) -> dict[str, Change]:
    """What can be done to an argument."""
    if isinstance(value, Tensor) and value.numel() > 10**6:
        return {"none": OTHERS["none"]}  # nothing that would visit a vast tensor's elements
    if isinstance(value, Tensor):
        return LAYOUTS | TENSORS if value.is_floating_point() else INDICES
    if isinstance(value, CellSpec):
        return SPECS
    if isinstance(value, Disturbance):
        return DISTURBANCES
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return NUMBERS
    return OTHERS


def places(arguments: list) -> Iterator[tuple[list, int]]:
    """Every argument, and every element of those that are lists, as (list, index)."""
    for i, value in enumerate(arguments):
        yield arguments, i
        if isinstance(value, list):
            yield from ((value, j) for j in range(len(value)))
