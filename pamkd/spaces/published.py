"""Weights of supernet and evaluation network to and from the parameter names of the published DARTS code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pamkd.reference.cell_spec import WeightSlice
from pamkd.spaces.evaluation_network import AUXILIARY, EvaluationNetwork
from pamkd.spaces.supernet import Cell, Supernet

# Position of a weight inside the published operation's Sequential (ReLU, depthwise, pointwise, BatchNorm, ...).
PARTS = {"dw1": "op.1.weight", "pw1": "op.2.weight", "dw2": "op.5.weight", "pw2": "op.6.weight"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_published(supernet: Supernet, state_dict: Mapping[str, Tensor]) -> Tensor:
    """Flat weights [num_weights], in their dtype, from a published search checkpoint's state dict.

    BatchNorm running statistics are ignored: the supernet uses batch statistics everywhere. Raises ValueError naming
    the first tensor that is missing, left over or of another shape.
    """
    dtype = next((value.dtype for value in state_dict.values() if value.is_floating_point()), None)
    flat = torch.zeros(supernet.num_weights, dtype=dtype)
    known = set()
    for name, offset, shape in _named(supernet):
        value = _fitting(state_dict, name, shape, "supernet (space, channels and cells must agree)")
        flat[offset : offset + value.numel()] = value.detach().reshape(-1)
        known.add(name)
    left = [name for name in state_dict if name not in known and name.split(".")[-1] not in STATISTICS]
    if left:
        raise ValueError(f"the state dict has {left[0]}, which this supernet has not (space, channels and cells must agree)")
    return flat


def published_state_dict(supernet: Supernet, weights: Tensor) -> dict[str, Tensor]:
    """The published code's state dict of these weights, complete for its strict loading.

    Running statistics are written as a fresh BatchNorm has them (mean 0, variance 1): one pass in training mode fills
    them there.
    """
    if weights.shape != (supernet.num_weights,):
        raise ValueError(f"weights have shape {tuple(weights.shape)}; this supernet's flat buffer has shape ({supernet.num_weights},)")
    state = {}
    for name, offset, shape in _named(supernet):
        state[name] = weights[offset : offset + shape.numel()].detach().reshape(shape).clone()
    for name, channels in _batch_norms(supernet):
        fresh = (torch.zeros(channels), torch.ones(channels), torch.tensor(0))
        state |= {f"{name}.{statistic}": value for statistic, value in zip(STATISTICS, fresh, strict=True)}
    return state


def load_published_network(network: EvaluationNetwork, state_dict: Mapping[str, Tensor]) -> None:
    """Fill the network, in place, from a published evaluation checkpoint's state dict.

    The other direction is `network.state_dict()`: the names are the same. A prefix `module.` (of DataParallel) is dropped,
    missing `num_batches_tracked` (of checkpoints older than them) stay as they are, and an auxiliary head is ignored where
    the network has none.
    Raises ValueError naming the first tensor that is missing, left over or of another shape; then nothing was changed.
    """
    state = {name.removeprefix("module."): value for name, value in state_dict.items()}
    kind = "evaluation network (genotype, channels, cells, classes and stem must agree)"
    own = network.state_dict()
    found = {
        name: _fitting(state, name, value.shape, kind) for name, value in own.items() if name in state or not name.endswith(STATISTICS[2])
    }
    unused = () if hasattr(network, AUXILIARY) else AUXILIARY
    left = [name for name in state if name not in own and not name.startswith(unused)]
    if left:
        raise ValueError(f"the state dict has {left[0]}, which this {kind} has not")
    network.load_state_dict(own | found)


def _fitting(state_dict: Mapping[str, Tensor], name: str, shape: torch.Size, kind: str) -> Tensor:
    if name not in state_dict:
        raise ValueError(f"the state dict lacks {name}: it is not of this {kind}")
    value = state_dict[name]
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)} in the state dict, {tuple(shape)} in this {kind}")
    return value


def _named(supernet: Supernet) -> Iterator[tuple[str, int, torch.Size]]:
    """Published name, offset in the flat buffer and shape of every weight tensor."""
    for entry in supernet.layout.entries:
        if not entry.name.endswith("._ops"):
            yield entry.name, entry.offset, torch.Size(entry.shape)
            continue
        spec = supernet.cells[int(entry.name.split(".")[1])].spec
        for piece in spec.weights:
            yield f"{entry.name}.{piece.edge}._ops.{piece.op}.{_part(piece)}", entry.offset + piece.offset, torch.Size(piece.shape)


def _part(piece: WeightSlice) -> str:
    return PARTS.get(piece.part, f"{piece.part}.weight")


def _batch_norms(supernet: Supernet) -> Iterator[tuple[str, int]]:
    """Published name and channels of every BatchNorm with running statistics."""
    for (_, norm), _, channels in supernet.stem_layers():
        yield norm, channels
    for i, cell in enumerate(supernet.cells):
        yield f"cells.{i}.preprocess0.{'bn' if cell.reduce_s0 else 'op.2'}", cell.spec.channels
        yield f"cells.{i}.preprocess1.op.2", cell.spec.channels
        for edge, ops in enumerate(cell.spec.candidates):
            for op, operation in enumerate(ops):
                for norm in _operation_norms(operation, cell, edge):
                    yield f"cells.{i}._ops.{edge}._ops.{op}.{norm}", cell.spec.op_channels


def _operation_norms(operation: str, cell: Cell, edge: int) -> tuple[str, ...]:
    if operation.endswith("pool_3x3"):
        return ("1",)
    if operation.startswith("sep_conv"):
        return ("op.3", "op.7")
    if operation.startswith("dil_conv"):
        return ("op.3",)
    return ("bn",) if operation == "skip_connect" and cell.spec.stride(edge) == 2 else ()
