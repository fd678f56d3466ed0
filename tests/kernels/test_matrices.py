"""The Triton kernels over channels-last matrices against float64: statistics, covariances, and the fused node with its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pamkd.kernels.batch_norm_statistics import batch_norm_statistics
from pamkd.kernels.covariance import covariance
from pamkd.kernels.node_mixture import node_mixture, node_mixture_backward
from tests.kernels.device import DEVICE

# Rows around the 64 of a block and the 256 chunks of blocks; channels around the 16 of a tile and beyond the largest tile.
SIZES = [(1, 1), (63, 15), (64, 16), (65, 17), (200, 33), (130, 70)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EPS = 1e-5


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 4 * torch.finfo(dtype).eps)


def assert_close(ours: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    scale = max(1e-30, truth.abs().max().item())
    torch.testing.assert_close(ours.double().cpu(), truth, rtol=0, atol=tolerance(dtype) * scale)


@pytest.mark.parametrize(("n", "c"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_statistics(n, c, dtype):
    x = torch.randn(2, n, c, dtype=torch.float64).to(dtype)
    mean, variance = batch_norm_statistics(x.to(DEVICE))
    assert mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = torch.float32 if mean.dtype == torch.float32 else dtype  # statistics of the rounded numbers are taken in float32
    assert_close(mean, x.double().mean(1), exact)
    assert_close(variance, x.double().var(1, unbiased=False), exact)


@pytest.mark.parametrize(("n", "c"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_covariance(n, c, dtype):
    d = torch.randn(2, n, c, dtype=torch.float64).to(dtype)
    mean, found = covariance(d.to(DEVICE))
    away = d.double() - d.double().mean(1, keepdim=True)
    assert_close(mean, d.double().mean(1), torch.float32 if dtype != torch.float64 else dtype)
    assert_close(found, away.mT @ away / n, torch.float32 if dtype != torch.float64 else dtype)


def test_a_large_mean_costs_no_accuracy():
    """float32 around 1000: sums of squares would keep three digits of the variance."""
    x = (torch.randn(1, 300, 5, dtype=torch.float64) + 1000).float()
    truth = x.double()
    _, variance = batch_norm_statistics(x.to(DEVICE))
    _, cov = covariance(x.to(DEVICE))
    assert_close(variance, truth.var(1, unbiased=False), torch.float32)
    away = truth - truth.mean(1, keepdim=True)
    assert_close(cov, away.mT @ away / 300, torch.float32)


def test_many_chunks():
    """More rows than 256 blocks: chunks of several blocks, the last one short."""
    x = torch.randn(1, 256 * 64 * 2 + 70, 1, dtype=torch.float64)
    mean, variance = batch_norm_statistics(x.to(DEVICE))
    assert_close(mean, x.mean(1), torch.float64)
    assert_close(variance, x.var(1, unbiased=False), torch.float64)


def mixture(d: Tensor, pointwise: Tensor, mix: Tensor) -> Tensor:
    """Convolution, BatchNorm, mixture, one after the other: [L, O, n, c], [L, O, k, c], [L, O] -> [L, n, k]."""
    z = d @ pointwise.mT
    z = (z - z.mean(2, keepdim=True)) * (z.var(2, unbiased=False, keepdim=True) + EPS).rsqrt()
    return (mix[..., None, None] * z).sum(1)


@pytest.mark.parametrize(("n", "c", "k"), [(2, 1, 1), (63, 15, 17), (65, 16, 16), (130, 31, 20), (70, 32, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_node_mixture(n, c, k, dtype):
    maps = (torch.relu(torch.randn(2, 3, n, c, dtype=torch.float64)) * 0.5 + 0.1).to(dtype).double().requires_grad_()
    weights_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    pointwise = (torch.randn(2, 3, k, c, dtype=torch.float64) * 0.3).to(weights_dtype).double().requires_grad_()
    mix = torch.rand(2, 3, dtype=torch.float64).to(weights_dtype).double().requires_grad_()
    grad = torch.randn(2, n, k, dtype=torch.float64).to(dtype).double()
    truth = mixture(maps, pointwise, mix)
    here = [maps.detach().to(DEVICE, dtype), *(t.detach().to(DEVICE, weights_dtype) for t in (pointwise, mix))]
    y, *kept = node_mixture(*here, EPS)
    assert y.dtype == dtype
    assert_close(y, truth.detach(), dtype)
    gradients = node_mixture_backward(grad.to(DEVICE, dtype), *here, *kept)
    for ours, exact in zip(gradients, torch.autograd.grad(truth, (maps, pointwise, mix), grad), strict=True):
        if n > 2:  # BatchNorm of two numbers gives -1 and 1, whatever they are: its gradients are nearly 0
            assert_close(ours, exact, dtype)


def test_too_many_channels_are_refused():
    with pytest.raises(ValueError, match="33 channels in and 4 out; the kernel takes up to 32"):
        node_mixture(torch.zeros(1, 1, 4, 33), torch.zeros(1, 1, 4, 33), torch.zeros(1, 1), EPS)
