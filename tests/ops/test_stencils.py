"""stencils: the composition against single convolutions, and the operation over its device code executed on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from pamkd import ops
from pamkd.reference import stencils as reference
from tests.cuda_host.build import COMPILER
from tests.cuda_host.stencils import on_the_cpu

KINDS = ((3, 1), (5, 1), (3, 2), (5, 2))  # kernel, dilation
DILATIONS = [dilation for _, dilation in KINDS]


def make(*shape: int, dtype=torch.float64) -> tuple[Tensor, list[Tensor]]:
    random = torch.Generator().manual_seed(0)
    models, c = shape[:-4], shape[-3]
    x, *depthwise = (torch.randn(s, generator=random).to(dtype) for s in (shape, *((*models, c, 1, k, k) for k, _ in KINDS)))
    return x.requires_grad_(), [w.requires_grad_() for w in depthwise]


@pytest.fixture
def device_code():
    if COMPILER is None:
        pytest.skip("no g++, which compiles the device code for the CPU")
    with on_the_cpu():
        yield


@pytest.mark.parametrize("stride", [1, 2])
def test_composition_is_the_single_operations(stride):
    x, depthwise = make(2, 3, 4, 9, 7)
    maps = ops.stencils(x, depthwise, DILATIONS, stride=stride)
    for m, of_model in enumerate(maps.unbind(1)):
        for y, w, (k, dilation) in zip(of_model[:4], depthwise, KINDS, strict=True):
            exact = F.conv2d(F.relu(x[m]), w[m], None, stride, dilation * (k // 2), dilation, groups=4)
            torch.testing.assert_close(y, exact)
        assert torch.equal(of_model[4], F.max_pool2d(x[m], 3, stride, 1))
        torch.testing.assert_close(of_model[5], F.avg_pool2d(x[m], 3, stride, 1, count_include_pad=False))
    alone = ops.stencils(x[1], [w[1] for w in depthwise], DILATIONS, stride=stride)
    torch.testing.assert_close(alone, maps[:, 1])
    assert maps.movedim(-3, -1).is_contiguous() and alone.movedim(-3, -1).is_contiguous()


def assert_agrees(shape: tuple[int, ...], stride: int, device: str, tolerance: float, dtype=torch.float32) -> None:
    """Maps and gradients against float64 on the same inputs."""
    x, depthwise = make(*shape)
    x, *depthwise = (t.detach().to(device, dtype).requires_grad_() for t in (x, *depthwise))
    exact = [t.detach().cpu().double().requires_grad_() for t in (x, *depthwise)]
    y = ops.stencils(x, depthwise, DILATIONS, stride=stride)
    truth = reference.stencils(exact[0], exact[1:], DILATIONS, stride, True)
    cotangent = torch.randn(truth.shape).to(dtype)
    ours = [y, *torch.autograd.grad(y, [x, *depthwise], cotangent.to(device))]
    for result, theirs in zip(ours, [truth, *torch.autograd.grad(truth, exact, cotangent.double())], strict=True):
        torch.testing.assert_close(result.cpu().double(), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("shape", [(2, 5, 9, 8), (2, 1, 8, 5, 6)])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_the_device_code(device_code, shape, stride):
    assert_agrees(shape, stride, "cpu", 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5, 7, 33, 20), (2, 64, 16, 32, 32)])
@pytest.mark.parametrize("stride", [1, 2])
def test_on_a_gpu(shape, stride, dtype):
    assert_agrees(shape, stride, "cuda", 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps, dtype)


def test_only_the_gradients_that_are_asked_for(device_code):
    x, depthwise = make(1, 8, 6, 6, dtype=torch.float32)
    everything = torch.autograd.grad(ops.stencils(x, depthwise, DILATIONS).sum(), [x, *depthwise])
    x.requires_grad_(False)
    for grad, same in zip(torch.autograd.grad(ops.stencils(x, depthwise, DILATIONS).sum(), depthwise), everything[1:], strict=True):
        assert torch.equal(grad, same)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(ops.stencils(x, [w.detach() for w in depthwise], DILATIONS).sum(), x)
    assert torch.equal(grad, everything[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(device_code, stride):
    x, depthwise = make(2, 1, 4, 5, 6, dtype=torch.float32)
    rows = x.detach().movedim(-3, -1).contiguous().requires_grad_()
    weights = torch.cat([w.detach().flatten(1) for w in depthwise], 1).requires_grad_()
    opcheck(torch.ops.pamkd.stencils_forward.default, (rows, weights, [k for k, _ in KINDS], DILATIONS, stride, True))


def test_second_derivative_is_refused(device_code):
    x, depthwise = make(1, 4, 5, 5, dtype=torch.float32)
    (grad,) = torch.autograd.grad(ops.stencils(x, depthwise, DILATIONS).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x, w, d: (x[0], w, d), ValueError, r"x has shape \(4, 6, 6\)"),
        (lambda x, w, d: (x.long(), w, d), TypeError, "floating-point"),
        (lambda x, w, d: (x, w, d[1:]), ValueError, "4 weights and 3 dilations"),
        (lambda x, w, d: (x, [w[0][:, :, :2], *w[1:]], d), ValueError, r"weight 0 has shape \(4, 1, 2, 3\); needed is \[4, 1, k, k\]"),
        (lambda x, w, d: (x, [w[0].half(), *w[1:]], d), TypeError, "weight 0 is torch.float16"),
        (lambda x, w, d: (x, w, [3, *d[1:]]), ValueError, "dilation 0 is 3"),
    ],
)
def test_bad_arguments(change, error, text):
    x, depthwise = make(1, 4, 6, 6)
    with pytest.raises(error, match=text):
        ops.stencils(*change(x, depthwise, DILATIONS))


def test_nothing_to_compute_and_bad_stride():
    x, depthwise = make(1, 4, 6, 6)
    with pytest.raises(ValueError, match="a weight or the pools"):
        ops.stencils(x, [], [], pools=False)
    with pytest.raises(ValueError, match="stride is 3"):
        ops.stencils(x, depthwise, DILATIONS, stride=3)
