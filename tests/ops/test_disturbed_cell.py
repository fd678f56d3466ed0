"""The disturbed cell: nothing drawn is the mixed cell; noise, dropout and drop-path by their definitions; the reference's gradients."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from pamkd import ops
from pamkd.ops.disturbed_cell_composed import composed
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
from pamkd.reference.mixed_cell import mixed_cell, operation
from pamkd.spaces.darts import PRIMITIVES
from tests.ops.cases import assert_accurate, assert_repeatable

LISTS = (("noise", "sep_conv_3x3"), ("skip_connect", "max_pool_3x3", "dil_conv_3x3"), ("skip_connect",))
ALL = Disturbance(2**40 + 1, skip_dropout=0.4, drop_path=0.3)


def make(spec: CellSpec, size: int = 6, dtype=torch.float64) -> list:
    random = torch.Generator().manual_seed(0)
    shapes = [(3, spec.channels, size, size)] * 2 + [(spec.num_weights,), (spec.edges, spec.columns)]
    tensors = [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]
    return tensors if spec.inputs == 2 else [tensors[0], None, *tensors[2:]]


def run(function, tensors: list, spec: CellSpec, disturbance: Disturbance) -> list[torch.Tensor]:
    """The result and the gradients of all leaves."""
    y = function(*tensors, spec, disturbance)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    leaves = [tensor for tensor in tensors if tensor is not None]
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent, materialize_grads=True)]


@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
@pytest.mark.parametrize("partial", [1, 2])
def test_nothing_drawn_is_the_mixed_cell(reduction, partial):
    spec = CellSpec(6, (PRIMITIVES,) * 5, reduction, nodes=2, partial=partial)
    tensors = make(spec, dtype=torch.float32)
    undisturbed = run(lambda *given: ops.mixed_cell(*given[:-1]), tensors, spec, Disturbance(1))
    for ours, expected in zip(run(ops.disturbed_cell, tensors, spec, Disturbance(1)), undisturbed, strict=True):
        assert torch.equal(ours, expected)


OPTIONS = [{}, {"reduction": True}, {"partial": 2}, {"reduction": True, "partial": 2}, {"inputs": 1, "output": "last"}]


def of_three_lists(options: dict) -> tuple[CellSpec, int]:
    """Lists of unequal length, three nodes, odd sizes where those are possible."""
    edges = 6 if options.get("inputs") == 1 else 9
    spec = CellSpec(4, tuple(LISTS[edge % 3] for edge in range(edges)), nodes=3, **options)
    return spec, 8 if spec.reduction and spec.partial > 1 else 7


@pytest.mark.parametrize("disturbance", [Disturbance(1), Disturbance(1, 0.4), Disturbance(1, drop_path=0.3), ALL], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_reference_and_its_gradients(options, disturbance):
    spec, size = of_three_lists(options)
    truth = run(mixed_cell, make(spec, size), spec, disturbance)
    for function in (ops.disturbed_cell, composed):
        for ours, exact in zip(run(function, make(spec, size), spec, disturbance), truth, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-9 * max(1.0, exact.abs().max().item()))
    eager = run(mixed_cell, make(spec, size, torch.float32), spec, disturbance)
    for ours, theirs, exact in zip(run(ops.disturbed_cell, make(spec, size, torch.float32), spec, disturbance), eager, truth, strict=True):
        assert_accurate(ours, theirs, exact, rounding=32)


@pytest.mark.parametrize("function", [ops.disturbed_cell, composed, mixed_cell])
def test_one_node_by_hand(function):
    spec = CellSpec(4, (("noise", "sep_conv_3x3"), ("skip_connect", "max_pool_3x3")), nodes=1)
    s0, s1, weights, mix = make(spec)
    noise, skip_mask = ALL.noise(0, s0), ALL.skip_mask(1, s0)
    masks = [ALL.edge_mask(edge, s0) for edge in range(2)]
    separable = operation("sep_conv_3x3", s0, 1, [weights[p.offset : p.offset + p.size].view(p.shape) for p in spec.weights])
    left = mix[0, 0] * noise + mix[0, 1] * separable
    right = mix[1, 0] * s1 * skip_mask + mix[1, 1] * operation("max_pool_3x3", s1, 1, [])
    y = function(s0, s1, weights, mix, spec, ALL)
    torch.testing.assert_close(y, left * masks[0] + right * masks[1], rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad(y.sum(), mix)
    assert grad[0, 0].item() == pytest.approx((noise * masks[0]).sum().item())


@pytest.mark.parametrize("needed", range(4), ids=["s0", "s1", "weights", "mix"])
@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
def test_only_the_gradients_that_are_asked_for(needed, reduction):
    spec, size = of_three_lists({"reduction": reduction})
    whole = run(ops.disturbed_cell, make(spec, size), spec, ALL)[1 + needed]
    tensors = [tensor.detach().requires_grad_(i == needed) for i, tensor in enumerate(make(spec, size))]
    y = ops.disturbed_cell(*tensors, spec, ALL)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(torch.autograd.grad(y, tensors[needed], cotangent)[0], whole)


def test_weight_zero_has_a_mixture_gradient():
    spec = CellSpec(5, (("noise", "skip_connect", "dil_conv_3x3"),) * 2, nodes=1)
    tensors = make(spec)
    tensors[3] = torch.zeros_like(tensors[3]).requires_grad_()
    exact = run(mixed_cell, tensors, spec, ALL)
    for ours, expected in zip(run(ops.disturbed_cell, tensors, spec, ALL), exact, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert (exact[4] != 0).all()


def test_repeatable_and_independent_of_the_threads(request):
    known = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(known))
    spec, size = of_three_lists({})
    tensors, results = make(spec, size, torch.float32), []
    for count in (2, 2, 1, 3):
        torch.set_num_threads(count)
        results.append(run(ops.disturbed_cell, tensors, spec, ALL))
    assert_repeatable(results)


@pytest.mark.parametrize("channels", [4, 16])
def test_opcheck(channels):
    spec = CellSpec(channels, (("noise", "skip_connect", "sep_conv_3x3"),) * 2, nodes=1)
    opcheck(torch.ops.pamkd.disturbed_cell_forward.default, (*make(spec, dtype=torch.float32), spec.encode(), ALL.encode(), True))


def test_compile_sees_through():
    spec, size = of_three_lists({})
    function = torch.compile(lambda *x: ops.disturbed_cell(*x, spec, ALL), fullgraph=True, backend="aot_eager")
    tensors = make(spec, size)
    for a, b in zip(run(lambda *x: function(*x[:4]), tensors, spec, ALL), run(ops.disturbed_cell, tensors, spec, ALL), strict=True):
        assert torch.equal(a, b)


def test_strided_inputs_and_gradients():
    spec, size = of_three_lists({})
    tensors = make(spec, size)
    cotangent = torch.randn(3, 12, 7, 14, dtype=torch.float64)[..., ::2]
    wide = torch.full((3, 4, 7, 14), float("nan"), dtype=torch.float64)
    wide[..., ::2] = tensors[0].detach()
    results = []
    for s0, grad in ((tensors[0], cotangent.contiguous()), (wide[..., ::2].requires_grad_(), cotangent)):
        given = [s0, *tensors[1:]]
        results.append(torch.autograd.grad(ops.disturbed_cell(*given, spec, ALL), given, grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_second_derivatives():
    """The operation refuses them; the reference has them."""
    spec = CellSpec(4, (("noise", "dil_conv_3x3"),) * 2, nodes=1)
    tensors = make(spec)
    (grad,) = torch.autograd.grad(mixed_cell(*tensors, spec, ALL).square().sum(), tensors[3], create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), tensors[2])[0].norm() > 0
    (grad,) = torch.autograd.grad(ops.disturbed_cell(*tensors, spec, ALL).sum(), tensors[3], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


def test_other_dtypes_are_composed():
    spec = CellSpec(4, LISTS[:2], nodes=1)
    tensors = [tensor.detach() for tensor in make(spec, dtype=torch.bfloat16)]
    y, expected = ops.disturbed_cell(*tensors, spec, ALL), mixed_cell(*(tensor.double() for tensor in tensors), spec, ALL)
    assert y.dtype == torch.bfloat16 and (y - expected).abs().max() < 0.1 * expected.abs().max()


def test_no_disturbance_is_refused():
    spec = CellSpec(4, LISTS[:2], nodes=1)
    with pytest.raises(TypeError, match="disturbed_cell: disturbance is a NoneType"):
        ops.disturbed_cell(*make(spec), spec, None)
