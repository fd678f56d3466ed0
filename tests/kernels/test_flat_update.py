"""The update of flat weight sets: SGD and perturbations, kernels and composition."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pamkd import ops
from pamkd.kernels import flat_update
from pamkd.reference import flat_update as reference
from tests.kernels.device import DEVICE

SIZES = [0, 1, 1023, 1024, 1025, 256 * 1024 + 3]


def vectors(count: int, *shape: int) -> list[torch.Tensor]:
    return [torch.randn(*shape, dtype=torch.float64) for _ in range(count)]


def close(ours, truth, dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert ours.dtype == dtype and ours.shape == truth.shape
    torch.testing.assert_close(ours.double().cpu(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_sgd_update(size, dtype, clip):
    """Each of the sets is clipped by the norm of its own gradient."""
    weights, buffer, gradient = vectors(3, *((2, size) if size < 2000 else (size,)))
    rule = (0.025, 0.9, 3e-4, clip)
    truth = reference.sgd_update(weights, buffer, gradient, *rule)
    ours = flat_update.sgd_update(*(t.to(DEVICE, dtype) for t in (weights, buffer, gradient)), *rule)
    for one, exact in zip(ours, truth, strict=True):
        close(one, exact, dtype)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_perturb(size, dtype):
    point, direction = vectors(2, *((2, size) if size < 2000 else (size,)))
    if size < 2000:
        direction[1] = 0
    truth = reference.perturb(point, direction, 0.01)
    ours = flat_update.perturb(point.to(DEVICE, dtype), direction.to(DEVICE, dtype), 0.01)
    for one, exact in zip(ours, truth, strict=True):
        close(one, exact, dtype)
    if size < 2000:
        assert ours[1][1] == 0 and torch.equal(ours[0][0, 1], ours[0][1, 1])


@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_derivatives(shape):
    """First and second, the clipping coefficient and the step's length being constants."""
    weights, buffer, gradient = (t.requires_grad_() for t in vectors(3, *shape))
    rule = (0.025, 0.9, 3e-4)
    assert gradcheck(lambda *t: ops.sgd_update(*t, *rule, 0.0)[:2], (weights, buffer, gradient))
    assert gradgradcheck(lambda *t: ops.sgd_update(*t, *rule, 0.0)[:2], (weights, buffer, gradient))
    clipped, _, coefficient = ops.sgd_update(weights, buffer, gradient, *rule, 0.5)
    (ours,) = torch.autograd.grad(clipped.sum(), gradient)
    torch.testing.assert_close(ours, (-0.025 * coefficient[..., None]).expand_as(ours).contiguous())
    points, eps = ops.perturb(weights, gradient, 0.01)
    ends = torch.autograd.grad(points[0].sum() - points[1].sum(), (weights, gradient))
    torch.testing.assert_close(ends, (torch.zeros_like(weights), (2 * eps[..., None]).expand_as(gradient).contiguous()))


def test_opcheck():
    weights, buffer, gradient = (t.requires_grad_() for t in vectors(3, 2, 5))
    opcheck(torch.ops.pamkd.sgd_update.default, (weights, buffer, gradient, 0.1, 0.9, 3e-4, 5.0))
    opcheck(torch.ops.pamkd.perturb.default, (weights, gradient, 0.01))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"gradient is \(4,\) of torch.float32 on cpu and weights \(3,\)"):
        ops.sgd_update(torch.zeros(3), torch.zeros(3), torch.zeros(4), 0.1, 0.9, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"point is \(2, 3, 4\)"):
        ops.perturb(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), 0.1)
