"""The Triton kernels of a cell against float64: sizes around every tile and chunk, low precision, large means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pamkd.ops import mixed_cell_cuda
from pamkd.reference import mixed_cell as reference
from pamkd.reference.cell_spec import CellSpec
from tests.cuda_host.stencils import on_the_cpu
from tests.kernels.device import DEVICE


@pytest.fixture(autouse=True)
def stencils_of_cpu_tensors():
    if DEVICE == "cuda":
        yield
        return
    with on_the_cpu():
        yield


def run(tensors: list[Tensor], spec: CellSpec, grad: Tensor) -> list[Tensor]:
    """The nodes of a cell with one input, and the gradients of state, weights and mixture."""
    s0, weights, mix = tensors
    nodes, *kept = mixed_cell_cuda.forward(s0, None, weights, mix, spec.encode(), True)
    gradients = mixed_cell_cuda.backward(grad, s0, None, weights, mix, nodes, *kept, spec.encode(), True, False, True, True)
    return [nodes, gradients[0], *gradients[2:]]


def assert_agrees(spec: CellSpec, images: int, h: int, w: int, dtype: torch.dtype, tolerance: float, shift: float = 0) -> None:
    """Of the nodes alone where the state is shifted: sums over it lose digits in every implementation."""
    shapes = ((images, spec.channels, h, w), (spec.num_weights,), (spec.edges, spec.columns))
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    tensors[0] = tensors[0] + shift
    exact = [t.double().requires_grad_() for t in tensors]
    truth = reference.mixed_cell(exact[0], None, *exact[1:], spec)
    grad = torch.randn(truth.shape, dtype=torch.float64).to(dtype)
    truth = [truth, *torch.autograd.grad(truth, exact, grad.double(), materialize_grads=True)]
    ours = run([t.to(DEVICE) for t in tensors], spec, grad.to(DEVICE))
    for a, b in list(zip(ours, truth, strict=True))[: 1 if shift else None]:
        assert a.dtype == dtype
        torch.testing.assert_close(a.double().cpu(), b.detach(), rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def cell(channels: int, *names: str) -> CellSpec:
    return CellSpec(channels, (names,), inputs=1, nodes=1)


@pytest.mark.parametrize(("h", "w", "c"), [(3, 3, 1), (7, 9, 15), (8, 8, 16), (5, 13, 17), (6, 6, 33)])
def test_float32_around_tiles(h, w, c):
    """63, 64 and 65 pixels, channels around 16 and 32."""
    assert_agrees(cell(c, "nor_conv_1x1", "skip_connect"), 1, h, w, torch.float32, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    assert_agrees(cell(8, "dil_conv_3x3", "max_pool_3x3", "skip_connect"), 2, 5, 6, dtype, tolerance)


def test_many_chunks_of_several_blocks():
    """More pixels than 32 chunks of one block, the last one short."""
    dtype, tolerance = (torch.float64, 1e-12) if DEVICE == "cpu" else (torch.float32, 1e-5)  # the stencils on a GPU take no float64
    assert_agrees(cell(2, "nor_conv_1x1", "skip_connect"), 1, 33, 67, dtype, tolerance)


def test_a_large_mean_costs_no_accuracy():
    """float32 around 1000: sums of squares would keep three digits of the variance, the state itself has four."""
    assert_agrees(cell(3, "nor_conv_1x1"), 2, 8, 8, torch.float32, 1e-3, shift=1000)
