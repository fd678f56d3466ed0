"""The mixed-op cell of differentiable architecture search as one operation."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor

from pamkd.ops import mixed_cell_cuda
from pamkd.ops._checks import check_cell, check_sets, check_tensors
from pamkd.ops._library import (
    LIB,
    channels_last,
    define,
    deny_double_backward,
    has_kernel,
    implement_on_cuda,
    on_cpu,
    register,
    weight_sets,
)
from pamkd.ops.stencils import KERNEL_DTYPES as STENCIL_DTYPES
from pamkd.reference import mixed_cell as reference
from pamkd.reference.cell_spec import CellSpec

# By device; others take the eager composition, which PyTorch computes in their precision.
KERNEL_DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": STENCIL_DTYPES}

define("mixed_cell_forward(Tensor s0, Tensor? s1, Tensor weights, Tensor mix, int[] spec, bool keep) -> (Tensor, Tensor, Tensor)")
define(
    "mixed_cell_backward(Tensor grad, Tensor s0, Tensor? s1, Tensor weights, Tensor mix, Tensor nodes, Tensor first_halves, "
    "Tensor statistics, int[] spec, bool need_s0, bool need_s1, bool need_weights, bool need_mix) -> (Tensor, Tensor, Tensor, Tensor)"
)
implement_on_cuda("mixed_cell_forward", mixed_cell_cuda.forward)
implement_on_cuda("mixed_cell_backward", mixed_cell_cuda.backward)


def mixed_cell(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec) -> Tensor:
    """Node i = sum over its edges e of sum_o mix[e, o] * candidate_o(state); returns the nodes along the channels.

    Equivalent to `pamkd.reference.mixed_cell.mixed_cell`, the same cell composed of plain PyTorch calls, but that `none` is 0
    also of a state that is not finite.

    With a leading dimension of m weight sets (learners, perturbed copies) on every tensor it computes m cells, on a GPU in the same
    launches; so it does within `torch.vmap`. A cell with full 3x3 convolutions has no GPU kernel.

    Args:
        s0: [n, spec.channels, h, w] or [m, n, spec.channels, h, w], the first (preprocessed) input state, any strides;
            channels_last is the fast format.
        s1: like s0; None where `spec.inputs` is 1.
        weights: [spec.num_weights] or [m, spec.num_weights], the cell's slice of the flat weight buffer, in the order of `spec.weights`.
        mix: [spec.edges, spec.columns] or [m, spec.edges, spec.columns], the weight of every candidate (softmax, gates, samples:
            made by the caller), in the last column with partial channels that of the others. Columns beyond an edge's candidate list
            are not read.
        spec: the cell.

    Returns:
        [n, spec.out_channels, h', w'] or [m, n, ...] in channels_last; h' = ceil(h / 2) in a reduction cell, else h.

    Raises:
        TypeError: the tensors are not of one floating-point dtype, or on several devices.
        ValueError: a shape does not fit `spec`, or the nodes have one value per channel, whose variance BatchNorm cannot take.
        NotImplementedError: differentiated twice, or in forward mode.

    Source: Liu et al., DARTS: Differentiable Architecture Search (ICLR 2019), equation 2 and the published cell.
    """
    _check(s0, s1, weights, mix, spec)
    if s0.dtype not in KERNEL_DTYPES.get(s0.device.type, (s0.dtype,)) or not has_kernel("mixed_cell", s0) or _must_be_composed(s0, spec):
        if s0.dim() == 5:
            return torch.stack([reference.mixed_cell(*tensors, spec) for tensors in _each(s0, s1, weights, mix)])
        return channels_last(reference.mixed_cell(s0, s1, weights, mix, spec))
    if s0.dim() == 5 and on_cpu(s0):
        return torch.stack([mixed_cell(*tensors, spec) for tensors in _each(s0, s1, weights, mix)])
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (s0, s1, weights, mix))
    nodes, _, _ = torch.ops.pamkd.mixed_cell_forward(s0, s1, weights, mix, spec.encode(), keep)
    return nodes if spec.output == "concat" else nodes[..., -spec.channels :, :, :].movedim(-3, -1).contiguous().movedim(-1, -3)


def fits_kernel(s0: Tensor, spec: CellSpec) -> bool:
    """Whether the kernels of the state's device have every candidate."""
    return on_cpu(s0) or not any("nor_conv_3x3" in names for names in spec.candidates)


def _must_be_composed(s0: Tensor, spec: CellSpec) -> bool:
    if fits_kernel(s0, spec):
        return False
    warnings.warn("pamkd.ops.mixed_cell has no GPU kernel for nor_conv_3x3: the slower eager composition is used", stacklevel=3)
    return True


def _each(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor) -> list[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
    """The tensors of each weight set."""
    return [(s0[m], None if s1 is None else s1[m], weights[m], mix[m]) for m in range(len(s0))]


def _sizes(s0: Tensor, spec: CellSpec) -> tuple[int, int, int]:
    """Height and width of the nodes, and the elements of one node-sized map, whose channels are padded to blocks of 8."""
    stride = 2 if spec.reduction else 1
    h, w = (s0.shape[-2] + stride - 1) // stride, (s0.shape[-1] + stride - 1) // stride
    return h, w, s0.shape[-4] * h * w * _lanes(spec)


def _lanes(spec: CellSpec) -> int:
    return (spec.op_channels + 7) // 8 * 8


@torch.library.register_fake("pamkd::mixed_cell_forward", lib=LIB)
def fake_forward(s0, s1, weights, mix, spec, keep):
    cell = CellSpec.decode(spec)
    if not on_cpu(s0):
        nodes, halves, statistics = mixed_cell_cuda.sizes(s0, cell)
        rows = s0.new_empty(nodes).movedim(-1, -3)
        return (
            rows if s0.dim() == 5 else rows[0],
            s0.new_empty(halves),
            s0.new_empty(statistics, dtype=mixed_cell_cuda.accumulated(s0.dtype)),
        )
    h, w, size = _sizes(s0, cell)
    nodes = s0.new_empty(s0.shape[0], h, w, cell.nodes * cell.channels).permute(0, 3, 1, 2)
    separable = sum(name.startswith("sep_conv") for names in cell.candidates for name in names)
    states = cell.inputs + cell.nodes
    return nodes, s0.new_empty(separable * size if keep else 0), s0.new_empty((cell.edges * cell.columns + states) * 4 * _lanes(cell))


@torch.library.register_fake("pamkd::mixed_cell_backward", lib=LIB)
def fake_backward(grad, s0, s1, weights, mix, nodes, first_halves, statistics, spec, need_s0, need_s1, need_weights, need_mix):
    state = s0.movedim(-3, -1).shape
    state0, state1 = (s0.new_empty(state).movedim(-1, -3) if need else s0.new_empty(0) for need in (need_s0, need_s1))
    return state0, state1, s0.new_empty(weights.shape if need_weights else 0), s0.new_empty(mix.shape if need_mix else 0)


def _setup(ctx, inputs, output):
    s0, s1, weights, mix, ctx.spec, ctx.keep = inputs
    ctx.set_materialize_grads(False)  # else autograd fills a zero gradient for first_halves, the largest tensor of all
    ctx.save_for_backward(s0, s1, weights, mix, *output)


def _backward(ctx, grad, _first_halves, _statistics):
    if not ctx.keep:
        raise RuntimeError("pamkd::mixed_cell_forward: nothing was kept for backward; call it with keep=True, or pamkd.ops.mixed_cell")
    if grad is None:
        return (None,) * 6
    need = ctx.needs_input_grad[:4]
    grads = torch.ops.pamkd.mixed_cell_backward(grad, *ctx.saved_tensors, ctx.spec, *need)
    return *(g if needed else None for g, needed in zip(grads, need, strict=True)), None, None


torch.library.register_autograd("pamkd::mixed_cell_forward", _backward, setup_context=_setup, lib=LIB)


@torch.library.register_vmap("pamkd::mixed_cell_forward", lib=LIB)
def _(info, dims, s0, s1, weights, mix, spec, keep):
    s0, s1, weights, mix = weight_sets(info.batch_size, dims, s0, s1, weights, mix)
    nodes = mixed_cell(s0, s1, weights, mix, dataclasses.replace(CellSpec.decode(spec), output="concat"))
    return (nodes, nodes.new_empty(0), nodes.new_empty(0)), (0, None, None)  # what is kept for backward is kept by the call within


deny_double_backward("pamkd::mixed_cell_backward", "use pamkd.reference.mixed_cell.mixed_cell")


def _check(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec) -> None:
    if isinstance(s0, Tensor) and s0.dim() == 5:
        given = {"s0": s0, "weights": weights, "mix": mix} | ({} if s1 is None else {"s1": s1})
        check_tensors("mixed_cell", **given)
        check_sets("mixed_cell", list(given.values()))
        s0, s1, weights, mix = _each(s0, s1, weights, mix)[0]
    check_cell("mixed_cell", s0, s1, weights, mix, spec)
    if any("noise" in names for names in spec.candidates):
        raise ValueError("mixed_cell: `noise` is drawn: use pamkd.ops.disturbed_cell")


def _example() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    ops = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
    spec = CellSpec(channels=6, candidates=(ops,) * 5, nodes=2)
    states = [torch.randn(2, 6, 7, 7, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    weights = (torch.randn(spec.num_weights, generator=generator, dtype=torch.float64) * 0.3).requires_grad_()
    mix = torch.randn(spec.edges, spec.columns, generator=generator, dtype=torch.float64).softmax(1).requires_grad_()
    return *states, weights, mix, spec


register(mixed_cell, reference.mixed_cell, _example, cpu="C++", cuda="CUDA C++ and Triton")
