"""The mixed-op cell with noise, dropout or drop-path inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pamkd.ops import disturbed_cell_composed, disturbed_cell_cuda
from pamkd.ops._checks import check_cell
from pamkd.ops._library import LIB, define, deny_double_backward, has_kernel, register
from pamkd.ops.mixed_cell import KERNEL_DTYPES, fake_backward, fake_forward, fits_kernel
from pamkd.reference import mixed_cell as reference
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance

define(
    "disturbed_cell_forward(Tensor s0, Tensor? s1, Tensor weights, Tensor mix, int[] spec, int[] draws, bool keep) "
    "-> (Tensor, Tensor, Tensor)"
)
define(
    "disturbed_cell_backward(Tensor grad, Tensor s0, Tensor? s1, Tensor weights, Tensor mix, Tensor nodes, Tensor first_halves, "
    "Tensor statistics, int[] spec, int[] draws, bool need_s0, bool need_s1, bool need_weights, bool need_mix) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
LIB.impl("disturbed_cell_forward", disturbed_cell_cuda.forward, "CUDA")
LIB.impl("disturbed_cell_backward", disturbed_cell_cuda.backward, "CUDA")


def disturbed_cell(s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, spec: CellSpec, disturbance: Disturbance) -> Tensor:
    """Node i = sum over its edges e of mask_e * sum_o mix[e, o] * candidate_o(state), skip connections masked, noise drawn.

    Equivalent to `pamkd.reference.mixed_cell.mixed_cell` with this disturbance. Every number is drawn where it is used, forward and
    again backward, and none is kept: on the CPU in float32 and float64, on a GPU in float32, bfloat16 and float16. Other dtypes, and on a
    GPU cells with full 3x3 convolutions, are fused cells of one node, and what `pamkd.reference.disturbance` draws between them.

    Args:
        s0, s1, weights, mix, spec: as `pamkd.ops.mixed_cell`, without weight sets; candidates may include `noise`.
        disturbance: what is drawn.

    Returns:
        [n, spec.out_channels, h', w'] in channels_last.

    Raises:
        TypeError: the tensors are not dense ones of one floating-point dtype on one device, or no cell or disturbance is given.
        ValueError: a shape does not fit `spec`, or the nodes have one value per channel.
        NotImplementedError: differentiated twice, or in forward mode.

    Source: Zela et al., Understanding and Robustifying DARTS (ICLR 2020): noise and drop-path; Chen et al., Progressive
        DARTS (ICCV 2019): dropout after skip connections.
    """
    check_cell("disturbed_cell", s0, s1, weights, mix, spec)
    if not isinstance(disturbance, Disturbance):
        raise TypeError(f"disturbed_cell: disturbance is a {type(disturbance).__name__}; needed is a Disturbance")
    taken = s0.dtype in KERNEL_DTYPES.get(s0.device.type, (s0.dtype,)) and fits_kernel(s0, spec)
    if not taken or not has_kernel("disturbed_cell", s0):
        return disturbed_cell_composed.composed(s0, s1, weights, mix, spec, disturbance)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (s0, s1, weights, mix))
    nodes, _, _ = torch.ops.pamkd.disturbed_cell_forward(s0, s1, weights, mix, spec.encode(), disturbance.encode(), keep)
    return nodes if spec.output == "concat" else nodes[:, -spec.channels :].contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("pamkd::disturbed_cell_forward", lib=LIB)
def _(s0, s1, weights, mix, spec, draws, keep):
    return fake_forward(s0, s1, weights, mix, spec, keep)


@torch.library.register_fake("pamkd::disturbed_cell_backward", lib=LIB)
def _(grad, s0, s1, weights, mix, nodes, first_halves, statistics, spec, draws, *needs):
    return fake_backward(grad, s0, s1, weights, mix, nodes, first_halves, statistics, spec, *needs)


def _setup(ctx, inputs, output):
    s0, s1, weights, mix, ctx.spec, ctx.draws, ctx.keep = inputs
    ctx.set_materialize_grads(False)  # else autograd fills a zero gradient for first_halves, the largest tensor of all
    ctx.save_for_backward(s0, s1, weights, mix, *output)


def _backward(ctx, grad, _first_halves, _statistics):
    if not ctx.keep:
        raise RuntimeError(
            "pamkd::disturbed_cell_forward: nothing was kept for backward; call it with keep=True, or pamkd.ops.disturbed_cell"
        )
    if grad is None:
        return (None,) * 7
    need = ctx.needs_input_grad[:4]
    grads = torch.ops.pamkd.disturbed_cell_backward(grad, *ctx.saved_tensors, ctx.spec, ctx.draws, *need)
    return *(g if needed else None for g, needed in zip(grads, need, strict=True)), None, None, None


torch.library.register_autograd("pamkd::disturbed_cell_forward", _backward, setup_context=_setup, lib=LIB)
deny_double_backward("pamkd::disturbed_cell_backward", "use pamkd.reference.mixed_cell.mixed_cell")


def _example() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    names = ("noise", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
    spec = CellSpec(channels=6, candidates=(names,) * 5, nodes=2)
    states = [torch.randn(2, 6, 7, 7, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    weights = (torch.randn(spec.num_weights, generator=generator, dtype=torch.float64) * 0.3).requires_grad_()
    mix = torch.randn(spec.edges, spec.columns, generator=generator, dtype=torch.float64).softmax(1).requires_grad_()
    return *states, weights, mix, spec, Disturbance(1, skip_dropout=0.3, drop_path=0.2)


register(disturbed_cell, reference.mixed_cell, _example, cpu="C++", cuda="CUDA C++ and Triton")
