"""The fused relu, convolutions and BatchNorm against their eager composition: values, every gradient, hard inputs, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from pamkd import ops
from pamkd.reference import relu_conv_norm as reference
from tests.ops.cases import assert_accurate

ROUNDING = 32  # sums of dozens of products: where eager's error is 0 by chance, ours need not be


def make(n: int, c: int, out: int, h: int, w: int, k: int, affine: bool = True, dtype=torch.float64) -> list:
    random = torch.Generator().manual_seed(0)
    shapes = [(n, c, h, w), (c, 1, k, k) if k > 1 else None, (out, c, 1, 1), (out,) if affine else None, (out,) if affine else None]
    drawn = [None if shape is None else torch.randn(shape, generator=random) for shape in shapes]
    return [None if x is None else x.to(dtype).requires_grad_() for x in drawn]


def run(function, tensors: list, **options) -> list[Tensor]:
    y, mean, variance = function(*tensors, **options)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    leaves = [x for x in tensors if x is not None and x.requires_grad]
    return [y.detach(), mean, variance, *torch.autograd.grad(y, leaves, cotangent)]


def converted(tensors: list, dtype) -> list:
    return [None if x is None else x.detach().to(dtype).requires_grad_() for x in tensors]


def assert_agrees(tensors: list, **options) -> None:
    truth = run(reference.relu_conv_norm, converted(tensors, torch.float64), **options)
    for ours, exact in zip(run(ops.relu_conv_norm, converted(tensors, torch.float64), **options), truth, strict=True):
        assert ours.shape == exact.shape and (ours - exact).abs().max() <= 1e-10 * max(1.0, exact.abs().max().item())
    eager = run(reference.relu_conv_norm, converted(tensors, torch.float32), **options)
    for ours, theirs, exact in zip(run(ops.relu_conv_norm, converted(tensors, torch.float32), **options), eager, truth, strict=True):
        assert_accurate(ours, theirs, exact, rounding=ROUNDING)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_random_shapes(data):
    k = data.draw(st.sampled_from([1, 3, 5]))
    stride, dilation = (data.draw(st.sampled_from([1, 2])) for _ in range(2)) if k > 1 else (1, 1)
    n, h, w = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12)), data.draw(st.integers(3, 12))
    c, out = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    assert_agrees(make(n, c, out, h, w, k, data.draw(st.booleans())), stride=stride, dilation=dilation)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_gradcheck(k):
    tensors = make(2, 3, 4, 5, 4, k)
    assert torch.autograd.gradcheck(lambda *x: ops.relu_conv_norm(*x)[0], tensors, eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("needed", range(5))
def test_one_gradient_alone(needed):
    tensors = make(2, 9, 10, 6, 6, 3, dtype=torch.float32)
    everything = run(ops.relu_conv_norm, tensors)
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i == needed)
    torch.testing.assert_close(run(ops.relu_conv_norm, tensors)[3], everything[3 + needed], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", ["zero", "constant", "denormal", "huge", "mean 1000"])
def test_hard_inputs(value):
    tensors = make(4, 6, 7, 6, 6, 3, dtype=torch.float32)
    with torch.no_grad():
        x = tensors[0]
        {"zero": lambda: x.zero_(), "constant": lambda: x.fill_(3.7), "denormal": lambda: x.mul_(1e-39), "huge": lambda: x.mul_(1e12)}.get(
            value, lambda: x.add_(1000)
        )()
    truth = run(reference.relu_conv_norm, converted(tensors, torch.float64))
    eager = run(reference.relu_conv_norm, tensors)
    for ours, theirs, exact in zip(run(ops.relu_conv_norm, tensors), eager, truth, strict=True):
        assert torch.isfinite(ours).all()
        assert_accurate(ours, theirs, exact, rounding=ROUNDING)


def test_layouts():
    tensors = make(3, 9, 10, 6, 5, 3, dtype=torch.float32)
    wide = torch.full((3, 12, 6, 10), float("nan"))
    wide[:, 2:-1, :, ::2] = tensors[0].detach()
    for x in (tensors[0].detach().contiguous(memory_format=torch.channels_last), wide[:, 2:-1, :, ::2]):
        for a, b in zip(run(ops.relu_conv_norm, [x.requires_grad_(), *tensors[1:]]), run(ops.relu_conv_norm, tensors), strict=True):
            assert torch.equal(a, b)
    y = ops.relu_conv_norm(*tensors)[0]
    assert y.is_contiguous(memory_format=torch.channels_last)
    expanded = torch.autograd.grad(y.sum(), tensors[3], retain_graph=True)
    assert torch.equal(expanded[0], torch.autograd.grad(y, tensors[3], torch.ones_like(y))[0])


def test_opcheck():
    opcheck(torch.ops.pamkd.relu_conv_norm_forward.default, (*make(2, 5, 9, 5, 5, 3, dtype=torch.float32), 2, 1, 1e-5))
    opcheck(torch.ops.pamkd.relu_conv_norm_forward.default, (*make(2, 5, 9, 5, 5, 1, False, torch.float32), 1, 1, 1e-5))


def test_compile_sees_through():
    tensors = make(2, 5, 9, 5, 5, 3, dtype=torch.float32)
    compiled = torch.compile(ops.relu_conv_norm, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled, tensors), run(ops.relu_conv_norm, tensors), strict=True):
        assert torch.equal(a, b)


def test_second_derivative_is_refused():
    tensors = make(2, 5, 9, 5, 5, 3)
    (grad,) = torch.autograd.grad(ops.relu_conv_norm(*tensors)[0].sum(), tensors[2], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda t: {"x": t["x"][0]}, ValueError, r"x has shape \(6, 4, 4\)"),
        (lambda t: {"x": t["x"].double()}, TypeError, "pointwise is torch.float32"),
        (lambda t: {"x": t["x"][:1, :, :1, :1]}, ValueError, "more than one value"),
        (lambda t: {"depthwise": t["depthwise"][:5]}, ValueError, "depthwise has shape"),
        (lambda t: {"depthwise": t["depthwise"][..., :2, :2]}, ValueError, "k 3 or 5"),
        (lambda t: {"pointwise": t["pointwise"][:, :5]}, ValueError, "pointwise has shape"),
        (lambda t: {"bias": t["bias"][:5]}, ValueError, "bias has shape"),
        (lambda t: {"stride": 3}, ValueError, "stride is 3"),
        (lambda t: {"depthwise": None, "stride": 2}, ValueError, "without a depthwise"),
    ],
)
def test_rejects(change, error, text):
    names = ("x", "depthwise", "pointwise", "weight", "bias")
    good = dict(zip(names, (x.detach() for x in make(2, 6, 7, 4, 4, 3, dtype=torch.float32)), strict=True))
    with pytest.raises(error, match=text):
        ops.relu_conv_norm(**(good | change(good)))


def test_the_operation_itself_rejects():
    x, depthwise, pointwise, weight, bias = (x.detach() for x in make(2, 6, 7, 4, 4, 3, dtype=torch.float32))
    forward = torch.ops.pamkd.relu_conv_norm_forward
    for arguments in (
        (x[0], depthwise, pointwise, weight, bias, 1, 1),
        (x, depthwise[:5], pointwise, weight, bias, 1, 1),
        (x, depthwise, pointwise[:, :3], weight, bias, 1, 1),
        (x, depthwise, pointwise, weight[:3], bias, 1, 1),
        (x, depthwise, pointwise, weight, bias.double(), 1, 1),
        (x, depthwise, pointwise, weight, bias, 3, 1),
        (x, None, pointwise, weight, bias, 2, 1),
    ):
        with pytest.raises(ValueError, match="relu_conv_norm: "):
            forward(*arguments, 1e-5)
