"""The disturbed cell: nothing drawn is the mixed cell; noise, dropout and drop-path by their definitions; the reference's gradients."""

from __future__ import annotations

import pytest
import torch

from pamkd import ops
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.mixed_cell import Disturbance, mixed_cell, operation
from pamkd.spaces.darts import PRIMITIVES


def make(spec: CellSpec, size: int = 6) -> list:
    random = torch.Generator().manual_seed(0)
    shapes = [(3, spec.channels, size, size)] * 2 + [(spec.num_weights,), (spec.edges, spec.columns)]
    return [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
@pytest.mark.parametrize("partial", [1, 2])
def test_nothing_drawn_is_the_mixed_cell(reduction, partial):
    spec = CellSpec(6, (PRIMITIVES,) * 5, reduction, nodes=2, partial=partial)
    tensors = make(spec)
    y, expected = ops.disturbed_cell(*tensors, spec, Disturbance()), ops.mixed_cell(*tensors, spec)
    assert (y - expected).abs().max() < 1e-10 and y.is_contiguous(memory_format=torch.channels_last)
    cotangent = torch.randn(y.shape, dtype=torch.float64)
    for ours, exact in zip(*(torch.autograd.grad(out, tensors, cotangent) for out in (y, expected)), strict=True):
        assert (ours - exact).abs().max() < 1e-10 * max(1.0, exact.abs().max())


@pytest.mark.parametrize("drop_path", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"reduction": True}, {"partial": 2}, {"reduction": True, "partial": 2}, {"inputs": 1, "output": "last"}],
    ids=str,
)
def test_the_reference_and_its_gradients(options, drop_path):
    """Lists of unequal length, noise and dropout on some edges, three nodes, odd sizes where those are possible."""
    lists = (("noise", "sep_conv_3x3"), ("skip_connect", "max_pool_3x3", "dil_conv_3x3"), ("skip_connect",))
    edges = 6 if options.get("inputs") == 1 else 9
    spec = CellSpec(4, tuple(lists[edge % 3] for edge in range(edges)), nodes=3, **options)
    tensors = make(spec, 8 if spec.reduction and spec.partial > 1 else 7)
    if spec.inputs == 1:
        tensors[1] = None
    side = 4 if spec.reduction else 7
    maps = {edge: torch.rand(3, spec.op_channels, side, side).double() for edge in range(edges)}
    noise = {edge: maps[edge] for edge in range(0, edges, 3)}
    skips = {edge: maps[edge].round() for edge in range(edges) if edge % 3 and spec.stride(edge) == 1 and edge != 7}
    disturbance = Disturbance(noise, skips, torch.rand(edges, 3, 1, 1, 1).double() if drop_path else None)
    y, expected = (function(*tensors, spec, disturbance) for function in (ops.disturbed_cell, mixed_cell))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    leaves = [tensor for tensor in tensors if tensor is not None]
    cotangent = torch.randn(y.shape, dtype=torch.float64)
    for ours, exact in zip(*(torch.autograd.grad(out, leaves, cotangent) for out in (y, expected)), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-8 * max(1.0, exact.abs().max().item()))


def test_one_node_by_hand():
    spec = CellSpec(4, (("noise", "sep_conv_3x3"), ("skip_connect", "max_pool_3x3")), nodes=1)
    s0, s1, weights, mix = make(spec)
    noise, skip_mask, masks = torch.randn(3, 4, 6, 6).double(), torch.rand(3, 4, 6, 6).double(), torch.rand(2, 3, 1, 1, 1).double()
    disturbance = Disturbance({0: noise}, {1: skip_mask}, masks)
    separable = operation("sep_conv_3x3", s0, 1, [weights[p.offset : p.offset + p.size].view(p.shape) for p in spec.weights])
    left = mix[0, 0] * noise + mix[0, 1] * separable
    right = mix[1, 0] * s1 * skip_mask + mix[1, 1] * operation("max_pool_3x3", s1, 1, [])
    expected = left * masks[0] + right * masks[1]
    for function in (ops.disturbed_cell, mixed_cell):
        torch.testing.assert_close(function(s0, s1, weights, mix, spec, disturbance), expected, rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad(ops.disturbed_cell(s0, s1, weights, mix, spec, disturbance).sum(), mix)
    assert grad[0, 0].item() == pytest.approx((noise * masks[0]).sum().item())


def test_the_reference_differentiates_twice():
    spec = CellSpec(4, (("noise", "dil_conv_3x3"),) * 2, nodes=1)
    tensors = make(spec)
    disturbance = Disturbance({edge: torch.randn(3, 4, 6, 6).double() for edge in range(2)})
    (grad,) = torch.autograd.grad(mixed_cell(*tensors, spec, disturbance).square().sum(), tensors[3], create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), tensors[2])[0].norm() > 0
