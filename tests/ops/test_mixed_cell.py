"""The mixed cell's C++ operation against its eager composition: values, every gradient, hard inputs, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from pamkd import ops
from pamkd.reference import mixed_cell as reference
from pamkd.reference.cell_spec import OPERATIONS, CellSpec
from pamkd.reference.mixed_cell import BN_EPS
from pamkd.spaces.darts import PRIMITIVES
from tests.ops.cases import assert_accurate, assert_repeatable

NAMES = ("s0", "s1", "weights", "mix")
FUSED = tuple(name for name in OPERATIONS if name != "noise")


def make(spec: CellSpec, n: int, h: int, w: int, dtype=torch.float64, seed: int = 0) -> list:
    """s0, s1, weights, mix as leaves; the values are those of float32 in every dtype."""
    random = torch.Generator().manual_seed(seed)
    states = [torch.randn(n, spec.channels, h, w, generator=random) for _ in range(spec.inputs)]
    weights = torch.randn(spec.num_weights, generator=random) * 0.3
    mix = torch.randn(spec.edges, spec.columns, generator=random)
    s0, s1, weights, mix = (
        x if x is None else x.to(dtype).requires_grad_() for x in (states[0], states[1] if spec.inputs == 2 else None, weights, mix)
    )
    return [s0, s1, weights, mix]


def run(function, tensors: list, spec: CellSpec, cotangent: Tensor | None = None) -> list[Tensor]:
    """The result and the gradients of all leaves that have elements."""
    y = function(*tensors, spec)
    if cotangent is None:
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [x for x in tensors if x is not None and x.requires_grad and x.numel()]
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y), materialize_grads=True)]


def converted(tensors: list, dtype) -> list:
    return [x if x is None else x.detach().to(dtype).requires_grad_() for x in tensors]


def assert_agrees(tensors: list, spec: CellSpec, cotangent: Tensor | None = None, *, rounding: float = 8) -> None:
    """float64 to 1e-10 of the largest value; float32 at most twice as wrong as the eager composition in float32."""
    truth = run(reference.mixed_cell, converted(tensors, torch.float64), spec, cotangent)
    for ours, exact in zip(run(ops.mixed_cell, converted(tensors, torch.float64), spec, cotangent), truth, strict=True):
        scale = max(1.0, exact.abs().max().item())
        assert ours.shape == exact.shape and (ours - exact).abs().max().item() <= 1e-10 * scale
    eager = run(reference.mixed_cell, converted(tensors, torch.float32), spec, cotangent)
    # Pools of one image of up to 3 x 3 pixels may be constant: BatchNorm then multiplies rounding by 1 / sqrt(eps).
    values = truth[0].numel() / spec.out_channels
    rounding = rounding if values > 9 else rounding / BN_EPS**0.5
    for ours, theirs, exact in zip(run(ops.mixed_cell, converted(tensors, torch.float32), spec, cotangent), eager, truth, strict=True):
        assert_accurate(ours, theirs, exact, rounding=rounding)


def cell(channels=8, candidates=PRIMITIVES, nodes=2, inputs=2, **options) -> CellSpec:
    edges = sum(inputs + node for node in range(nodes))
    return CellSpec(channels, (tuple(candidates),) * edges, nodes=nodes, inputs=inputs, **options)


@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
@pytest.mark.parametrize(("channels", "partial"), [(3, 1), (8, 1), (13, 1), (16, 4), (24, 2), (12, 6), (20, 1), (36, 1)])
@pytest.mark.parametrize(("n", "h", "w"), [(1, 8, 8), (3, 6, 10)])
def test_agrees_with_the_composition(channels, partial, reduction, n, h, w):
    spec = cell(channels, partial=partial, reduction=reduction)
    assert_agrees(make(spec, n, h, w), spec)


@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
@pytest.mark.parametrize(("h", "w"), [(1, 2), (2, 1), (3, 3), (5, 7), (9, 4), (1, 17), (11, 11)])
def test_odd_and_tiny_sizes(h, w, reduction):
    spec = cell(5, reduction=reduction)
    assert_agrees(make(spec, 3, h, w), spec)


@pytest.mark.parametrize("operation", FUSED)
@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
def test_every_operation_alone(operation, reduction):
    spec = cell(10, (operation,), nodes=1, reduction=reduction)
    assert_agrees(make(spec, 2, 7, 6), spec)


@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
def test_an_operation_twice(reduction):
    spec = cell(10, ("skip_connect", "sep_conv_3x3", "skip_connect", "sep_conv_3x3"), nodes=1, reduction=reduction)
    assert_agrees(make(spec, 2, 7, 6), spec)


def test_the_published_cell():
    spec = cell(4, nodes=4)
    assert_agrees(make(spec, 2, 6, 6), spec)


def test_nas_bench_201_cell():
    spec = cell(
        16, ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"), nodes=3, inputs=1, output="last", pool_norm=False
    )
    assert_agrees(make(spec, 2, 6, 7), spec)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_random_cells(data):
    partial = data.draw(st.sampled_from([1, 1, 2, 3]))
    inputs, nodes = data.draw(st.sampled_from([1, 2])), data.draw(st.integers(1, 3))
    edges = sum(inputs + node for node in range(nodes))
    subset = st.lists(st.sampled_from(FUSED), max_size=4, unique=True).map(tuple)
    candidates = tuple(data.draw(st.lists(subset, min_size=edges, max_size=edges).filter(any)))  # any subset, the empty one too
    reduction = data.draw(st.booleans())
    spec = CellSpec(
        partial * data.draw(st.integers(2, 18)),
        candidates,
        reduction=reduction,
        inputs=inputs,
        nodes=nodes,
        partial=partial,
        output=data.draw(st.sampled_from(["concat", "last"])),
        pool_norm=data.draw(st.booleans()),
    )
    n, h, w = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), data.draw(st.integers(2, 9))
    if reduction and partial > 1:
        h, w = 2 * h, 2 * w
    if n * ((h + 1) // 2) * ((w + 1) // 2) < 2:
        n = 2
    tensors = make(spec, n, h, w, seed=data.draw(st.integers(0, 99)))
    dropped = data.draw(st.lists(st.tuples(st.integers(0, edges - 1), st.integers(0, spec.columns - 1)), max_size=4))
    with torch.no_grad():
        for edge, column in dropped:
            tensors[3][edge, column] = 0
    assert_agrees(tensors, spec, rounding=32)  # among so many, eager is nearer to the truth by luck in some


@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
def test_gradcheck(reduction):
    # Without max pools, whose kinks a finite difference may cross.
    spec = cell(3, PRIMITIVES[2:], nodes=2, reduction=reduction)
    tensors = make(spec, 2, 5, 4, seed=3)
    assert torch.autograd.gradcheck(lambda *x: ops.mixed_cell(*x, spec), tensors, eps=1e-7, atol=1e-5, rtol=1e-4)


def as_layouts(x: Tensor) -> dict[str, Tensor]:
    n, c, h, w = x.shape
    wide = torch.full((n, c + 3, 2 * h, w + 1), float("nan"))
    wide[:, 2:-1, ::2, 1:] = x
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": wide[:, 2:-1, ::2, 1:],
        "transposed": x.mT.contiguous().mT,
    }


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed"])
def test_layouts_of_inputs_and_gradient(layout):
    spec = cell(9, reduction=True)
    s0, s1, weights, mix = make(spec, 3, 6, 5, torch.float32)
    y = torch.randn(3, spec.out_channels, 3, 3)
    plain = [as_layouts(x.detach())["channels_last"].requires_grad_() for x in (s0, s1)]
    strided = [as_layouts(x.detach())[layout].requires_grad_() for x in (s0, s1)]
    spread_weights = torch.stack([weights.detach(), weights.detach()], 1)[:, 1].requires_grad_()
    spread_mix = mix.detach().T.contiguous().T.requires_grad_()
    expected = run(ops.mixed_cell, [*plain, weights, mix], spec, y)
    for a, b in zip(run(ops.mixed_cell, [*strided, spread_weights, spread_mix], spec, as_layouts(y)[layout]), expected, strict=True):
        assert torch.equal(a, b)
    assert expected[0].is_contiguous(memory_format=torch.channels_last)


def test_expanded_gradient():
    spec = cell(8)
    tensors = make(spec, 2, 4, 4, torch.float32)
    expanded = torch.randn(1, spec.out_channels, 1, 1).expand(2, -1, 4, 4)
    for a, b in zip(run(ops.mixed_cell, tensors, spec, expanded), run(ops.mixed_cell, tensors, spec, expanded.clone()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("needed", [("mix",), ("weights",), ("s0",), ("s1", "mix"), ("s0", "s1", "weights")], ids="-".join)
@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
def test_only_the_gradients_that_are_asked_for(needed, reduction):
    spec = cell(8, reduction=reduction)
    tensors = make(spec, 2, 6, 6, torch.float32)
    with torch.no_grad():
        tensors[3][1, 5] = 0
    everything = dict(zip(NAMES, run(ops.mixed_cell, tensors, spec)[1:], strict=True))
    for name, tensor in zip(NAMES, tensors, strict=True):
        tensor.requires_grad_(name in needed)
    for name, grad in zip(needed, run(ops.mixed_cell, tensors, spec)[1:], strict=True):
        torch.testing.assert_close(grad, everything[name], rtol=1e-5, atol=1e-5)


def test_weight_zero_has_a_mixture_gradient_and_no_others():
    spec = cell(8)
    tensors = make(spec, 2, 6, 6)
    with torch.no_grad():
        tensors[3][2] = 0
    _, _, _, weights, mix = run(ops.mixed_cell, tensors, spec)
    assert mix[2, 1:].abs().min() > 0
    for piece in spec.weights:
        if piece.edge == 2:
            assert weights[piece.offset : piece.offset + piece.size].abs().max() == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.zero_(),
        lambda x: x.fill_(3.7),
        lambda x: x.mul_(1e-39),
        lambda x: x.mul_(1e-12),
        lambda x: x.mul_(1e12),
        lambda x: x[:, 1].fill_(2.0),
        lambda x: x[0].fill_(-1.0),
        lambda x: x.add_(1000),
        lambda x: x.sub_(1000),
    ],
    ids=["zero", "constant", "denormal", "tiny", "huge", "dead channel", "dead image", "mean 1000", "mean -1000"],
)
@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
def test_hard_inputs(change, reduction):
    spec = cell(6, nodes=1, reduction=reduction)
    tensors = make(spec, 4, 6, 6, torch.float32)
    with torch.no_grad():
        change(tensors[0])
    truth = run(reference.mixed_cell, converted(tensors, torch.float64), spec)
    eager = run(reference.mixed_cell, tensors, spec)
    for ours, theirs, exact in zip(run(ops.mixed_cell, tensors, spec), eager, truth, strict=True):
        assert torch.isfinite(ours).all()
        assert_accurate(ours, theirs, exact)


@pytest.mark.parametrize("operation", ["max_pool_3x3", "avg_pool_3x3", "skip_connect"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_inputs_show(operation, value):
    spec = cell(8, (operation,), nodes=1)
    tensors = make(spec, 2, 5, 5, torch.float32)
    with torch.no_grad():
        tensors[0][1, 2, 3, 3] = value
    ours, theirs = ops.mixed_cell(*tensors, spec), reference.mixed_cell(*tensors, spec)
    assert not torch.isfinite(ours[:, 2]).all()
    assert torch.equal(torch.isfinite(ours), torch.isfinite(theirs))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
def test_repeatable_and_independent_of_the_threads(threads, reduction):
    spec = cell(12, reduction=reduction)
    tensors = make(spec, 5, 8, 8, torch.float32)
    results = []
    for count in (2, 2, 1, 3):
        threads(count)
        results.append(run(ops.mixed_cell, tensors, spec))
    assert_repeatable(results)


@pytest.mark.parametrize("channels", [4, 16])
def test_opcheck(channels):
    spec = cell(channels, nodes=1)
    tensors = make(spec, 2, 5, 5, torch.float32)
    opcheck(torch.ops.pamkd.mixed_cell_forward.default, (*tensors, spec.encode(), True))


def test_compile_sees_through():
    spec = cell(4, nodes=1)
    tensors = make(spec, 2, 5, 5, torch.float32)
    function = torch.compile(lambda *x: ops.mixed_cell(*x, spec), fullgraph=True, backend="aot_eager")
    for a, b in zip(run(lambda *x: function(*x[:-1]), tensors, spec), run(ops.mixed_cell, tensors, spec), strict=True):
        assert torch.equal(a, b)


def test_second_derivative_is_refused():
    spec = cell(4, nodes=1)
    tensors = make(spec, 2, 5, 5, torch.float32)
    (grad,) = torch.autograd.grad(ops.mixed_cell(*tensors, spec).sum(), tensors[3], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


def test_other_dtypes_are_the_composition():
    spec = cell(4, nodes=1)
    tensors = make(spec, 2, 4, 4, torch.bfloat16)
    assert torch.equal(ops.mixed_cell(*tensors, spec), reference.mixed_cell(*tensors, spec))


def test_device_without_kernel_warns():
    spec = cell(4, nodes=1)
    tensors = [x.detach().to("meta") for x in make(spec, 2, 4, 4, torch.float32)]
    with pytest.warns(UserWarning, match="none for meta: the slower eager composition"):
        assert ops.mixed_cell(*tensors, spec).shape == (2, 4, 4, 4)


SPEC = cell(6, nodes=1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda t: [t[0][:, :5], *t[1:]], ValueError, r"s0 has shape \(2, 5, 4, 4\)"),
        (lambda t: [t[0], t[1][..., :3], *t[2:]], ValueError, r"s1 has shape \(2, 6, 4, 3\)"),
        (lambda t: [t[0], None, *t[2:]], ValueError, "s1 is None, but spec.inputs is 2"),
        (lambda t: [*t[:2], t[2][1:], t[3]], ValueError, "weights has shape"),
        (lambda t: [*t[:3], t[3].T], ValueError, "mix has shape"),
        (lambda t: [*t[:3], t[3].double()], TypeError, "mix is torch.float64"),
        (lambda t: [x.long() for x in t], TypeError, "s0 is torch.int64"),
        (lambda t: [t[0], t[1].to("meta"), *t[2:]], TypeError, "s1 is torch.float32 on meta"),
        (lambda t: [t[0][:0], t[1][:0], *t[2:]], ValueError, "more than one value"),
        (lambda t: [t[0][:1, :, :1, :1], t[1][:1, :, :1, :1], *t[2:]], ValueError, "more than one value"),
    ],
    ids=["channels", "size", "no s1", "weights", "mix", "dtype", "integers", "device", "empty", "one value"],
)
def test_rejects(change, error, text):
    tensors = [x.detach() for x in make(SPEC, 2, 4, 4, torch.float32)]
    with pytest.raises(error, match=text):
        ops.mixed_cell(*change(tensors), SPEC)


@pytest.mark.parametrize(
    "code", [[], [6, 0, 2, 1, 1, 0, 8, 1], [6, 0, 2, 1, 1, 0, 1, 1, 1, 99, 1, 0], [6, 0, 2, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1]]
)
def test_the_operation_itself_rejects_a_wrong_spec(code):
    tensors = [x.detach() for x in make(SPEC, 2, 4, 4, torch.float32)]
    with pytest.raises(ValueError, match="mixed_cell: "):
        torch.ops.pamkd.mixed_cell_forward(*tensors, code, True)


def test_the_operation_itself_rejects_wrong_tensors():
    s0, s1, weights, mix = (x.detach() for x in make(SPEC, 2, 4, 4, torch.float32))
    good = {"s0": s0, "s1": s1, "weights": weights, "mix": mix}
    for name, bad in (("s0", s0[0]), ("s1", s1[:1]), ("weights", weights[:3]), ("mix", mix[:1]), ("mix", mix.double())):
        with pytest.raises(ValueError, match=f"mixed_cell: {name}"):
            torch.ops.pamkd.mixed_cell_forward(*(good | {name: bad}).values(), SPEC.encode(), True)


def test_noise_is_refused():
    spec = cell(4, ("noise", "sep_conv_3x3"), nodes=1)
    with pytest.raises(ValueError, match="`noise` is drawn"):
        ops.mixed_cell(*make(spec, 2, 4, 4), spec)


def test_partial_channels_need_even_sizes_in_a_reduction_cell():
    spec = cell(8, nodes=1, partial=4, reduction=True)
    tensors = [x.detach() for x in make(spec, 2, 5, 6, torch.float32)]
    with pytest.raises(ValueError, match="needs even sizes"):
        ops.mixed_cell(*tensors, spec)
    with pytest.raises(ValueError, match="odd sizes"):
        torch.ops.pamkd.mixed_cell_forward(*tensors, spec.encode(), False)
