"""`relu_conv_norm` as a GPU computes it, through the public operation: the cases of the CPU's kernel, and sizes around every tile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pamkd import ops
from pamkd.reference import relu_conv_norm as reference
from tests.cuda_host.build import COMPILER
from tests.kernels.device import DEVICE
from tests.ops.test_relu_conv_norm import converted, make, run

pytestmark = pytest.mark.usefixtures("through_operations")
needs_compiler = pytest.mark.skipif(COMPILER is None and DEVICE == "cpu", reason="no g++, which compiles the device code for the CPU")


def there(tensors: list, dtype: torch.dtype) -> list:
    return [None if x is None else x.detach().to(DEVICE, dtype).requires_grad_() for x in tensors]


def assert_agrees(tensors: list, dtype: torch.dtype, tolerance: float, **options) -> None:
    """Result, statistics and all gradients, to a share of their largest value."""
    exact = there(tensors, dtype)  # rounded to the dtype
    truth = run(reference.relu_conv_norm, converted([None if x is None else x.cpu() for x in exact], torch.float64), **options)
    for ours, theirs in zip(run(ops.relu_conv_norm, exact, **options), truth, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.double().cpu(), theirs, rtol=0, atol=tolerance * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize(
    ("n", "c", "out", "h", "w"),
    [(1, 1, 1, 1, 2), (1, 15, 16, 7, 9), (1, 16, 17, 8, 8), (1, 64, 16, 5, 13), (2, 17, 65, 3, 2), (1, 66, 33, 3, 2), (3, 11, 13, 9, 8)],
)
def test_pointwise(n, c, out, h, w):
    """63, 64 and 65 pixels; channels at, above and below one tile, and of several; every other one with weight and bias."""
    assert_agrees(make(n, c, out, h, w, 1, affine=c % 2 > 0), torch.float32, 1e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("k", "stride", "dilation", "affine"), [(3, 1, 1, True), (3, 2, 2, False), (5, 1, 2, False), (5, 2, 1, True)], ids=str
)
def test_depthwise(k, stride, dilation, affine):
    """float32 over the device code of the stencils."""
    options = {"stride": stride, "dilation": dilation}
    assert_agrees(make(2, 5, 7, 5, 6, k, affine), torch.float32, 1e-5, **options)
    assert_agrees(make(1, 3, 2, 7, 1, k, affine), torch.float64 if DEVICE == "cpu" else torch.float32, 1e-5, **options)


@pytest.mark.parametrize(("dtype", "k"), [(torch.bfloat16, 1), (torch.float16, 1), pytest.param(torch.bfloat16, 3, marks=needs_compiler)])
def test_low_precision(dtype, k):
    """To eight units of the dtype, as a cell; sums and statistics are float32."""
    tensors = make(2, 8, 16, 3, 4, k)
    assert_agrees(tensors, dtype, 8 * torch.finfo(dtype).eps)
    _, mean, variance = ops.relu_conv_norm(*there(tensors, dtype))
    assert mean.dtype == variance.dtype == torch.float32


def test_many_chunks_of_several_blocks():
    """More pixels than 32 chunks of one block, the last one short."""
    assert_agrees(make(1, 2, 3, 33, 67, 1), torch.float32, 1e-5)


def test_statistics_of_a_large_mean():
    """float32 around 1000: sums of squares would keep three digits of the variance."""
    tensors = make(2, 3, 4, 8, 8, 1)
    tensors[0].data += 1000
    truth = reference.relu_conv_norm(*converted(there(tensors, torch.float32), torch.float64))
    ours = ops.relu_conv_norm(*there(tensors, torch.float32))
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.detach().double().cpu(), b.detach().cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("k", [1, pytest.param(3, marks=needs_compiler)])
def test_sets_of_weights_share_a_call(k):
    """With a leading dimension, and within `torch.vmap`."""
    sets = [[t for t in make(2, 4, 5, 4, 3, k, dtype=torch.float32) if t is not None] for _ in range(2)]
    for tensor in sets[1]:
        tensor.data = tensor.data.flip(0)

    def layer(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ops.relu_conv_norm(x, *(weights if k > 1 else (None, *weights)))

    together = there([torch.stack([t.detach() for t in tensors]) for tensors in zip(*sets, strict=True)], torch.float32)
    results = layer(*together)
    cotangent = torch.randn(results[0].shape).to(DEVICE)
    gradients = torch.autograd.grad(results[0], together, cotangent)
    mapped = torch.vmap(layer)(*together)
    for one, other in zip((*mapped, *torch.autograd.grad(mapped[0], together, cotangent)), (*results, *gradients), strict=True):
        assert torch.equal(one, other)
    for m, tensors in enumerate(sets):
        alone = there(tensors, torch.float32)
        expected = layer(*alone)
        expected = [*expected, *torch.autograd.grad(expected[0], alone, cotangent[m])]
        for ours, other in zip((*results, *gradients), expected, strict=True):
            assert torch.equal(ours[m], other)


@needs_compiler
def test_one_gradient_alone():
    tensors = there(make(2, 4, 5, 3, 3, 3), torch.float32)
    everything = run(ops.relu_conv_norm, tensors)
    for needed in range(5):
        for i, tensor in enumerate(tensors):
            tensor.requires_grad_(i == needed)
        assert torch.equal(run(ops.relu_conv_norm, tensors)[3], everything[3 + needed])


def test_strided_and_unaligned_maps():
    """Slices of wider maps, and dense maps that begin anywhere: rows of 16 bytes are read so only where they lie so."""
    tensors = there(make(2, 8, 8, 3, 5, 1, False), torch.float32)
    x = tensors[0].detach()
    wide = torch.full((2, 11, 3, 10), float("nan"), device=DEVICE)
    wide[:, 2:-1, :, ::2] = x
    shifted = torch.empty(x.numel() + 1, device=DEVICE)[1:].view(2, 3, 5, 8)
    shifted.copy_(x.movedim(1, -1))
    truth = run(ops.relu_conv_norm, tensors)
    for view in (wide[:, 2:-1, :, ::2], shifted.movedim(-1, 1)):
        for ours, theirs in zip(run(ops.relu_conv_norm, [view.requires_grad_(), *tensors[1:]]), truth, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_second_derivative_is_refused():
    tensors = there(make(2, 3, 4, 3, 3, 1), torch.float32)
    (grad,) = torch.autograd.grad(ops.relu_conv_norm(*tensors)[0].square().sum(), tensors[2], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


def test_the_sets_must_be_of_one_number():
    x, _, pointwise, _, _ = make(2, 3, 4, 3, 3, 1, False)
    with pytest.raises(ValueError, match=r"have \[2, 3\] weight sets"):
        ops.relu_conv_norm(torch.stack([x, x]), None, torch.stack([pointwise] * 3))
