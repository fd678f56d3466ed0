"""The Triton kernels of the GRS operations against the eager compositions in float64: at the edges of tiles, on every path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pamkd import reference
from pamkd.kernels import group_min_similarity as minimum
from pamkd.kernels import grs_hinge as hinge
from pamkd.kernels import grs_loss as loss
from pamkd.kernels import pairwise_cosine as cosine
from pamkd.ops._library import EXAMPLES
from tests.kernels.device import DEVICE
from tests.ops.cases import assert_accurate
from tests.ops.test_grs import GRS, OPERATIONS, SIZES, arguments_of, first, groups_of, run

# The interpreter divides by zero in lanes that are masked afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
DTYPES = [torch.float32, torch.float64]


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def there(*tensors: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [t.to(DEVICE, dtype if t.is_floating_point() else None) for t in tensors]


def assert_close(ours: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """1e-5 of the largest value in float32, 1e-12 in float64."""
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert ours.dtype == dtype and ours.shape == truth.shape
    torch.testing.assert_close(ours.double().cpu(), truth, rtol=0, atol=tolerance * max(1.0, truth.abs().max().item()))


@pytest.mark.parametrize(("n", "d"), [(1, 1), (31, 15), (32, 16), (33, 17), (65, 64), (6, 65)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pairwise_cosine(n, d, dtype):
    e, grad = rows(2, n, d).requires_grad_(), rows(2, n, n)
    truth = reference.pairwise_cosine(e)
    ours, scale = cosine.pairwise_cosine(*there(e.detach(), dtype=dtype))
    assert torch.equal(ours, ours.mT)
    assert_close(ours, truth.detach(), dtype)
    gradient = cosine.pairwise_cosine_backward(*there(grad, e.detach(), dtype=dtype), ours, scale)
    assert_close(gradient, torch.autograd.grad(truth, e, grad)[0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tiles(dtype):
    """More than 256 rows take larger tiles."""
    e = rows(1, 257, 3)
    ours, _ = cosine.pairwise_cosine(*there(e, dtype=dtype))
    assert_close(ours, reference.pairwise_cosine(e), dtype)


@pytest.mark.parametrize(
    ("n", "d", "count", "r"), [*SIZES[:5], (100, 16, 2, 9), (90, 17, 1, 33), (90, 5, 1, 70), (20, 4, 300, 17), (10, 3, 9, 2)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_min_similarity(n, d, count, r, dtype):
    e, groups, grad = rows(2, n, d).requires_grad_(), groups_of(n, count, r), rows(2, count)
    truth, pairs = reference.group_min_similarity(e, groups)
    found = minimum.group_min_similarity(*there(e.detach(), groups, dtype=dtype))
    assert_close(found[0], truth.detach(), dtype)
    assert torch.equal(found[1].cpu(), pairs)
    gradient = minimum.group_min_similarity_backward(*there(grad, e.detach(), dtype=dtype), *found)
    if d > 1:  # the cosine of two numbers is a constant
        assert_close(gradient, torch.autograd.grad(truth, e, grad)[0], dtype)


@pytest.mark.parametrize(("n", "entries"), [(1, 1), (15, 127), (16, 128), (17, 129), (1023, 7), (1025, 300)])
def test_reverse_index(n, entries):
    """Beyond 1024 rows it is a sort. Rows out of range belong to none."""
    found = torch.randint(0, n, (2, entries))
    order, starts = minimum.reverse_index(found.to(DEVICE), n)
    assert torch.equal(order.cpu().long(), found.argsort(dim=1, stable=True))
    before = torch.stack([(r[:, None] < torch.arange(n + 1)).sum(0) for r in found])
    assert torch.equal(starts.cpu().long(), before)


@pytest.mark.parametrize("count", [0, 1, 255, 257, 1025])
@pytest.mark.parametrize("dtype", DTYPES)
def test_grs_hinge(count, dtype):
    teacher, student = (torch.rand(k, count, 2, dtype=torch.float64).requires_grad_() for k in (2, 3))
    teacher.data[:, ::3, 1] = teacher.data[:, ::3, 0]  # no relation
    truth, grad = reference.grs_hinge(teacher, student, 0.01), rows(3, 2)
    arguments = there(teacher.detach(), student.detach(), dtype=dtype)
    assert_close(hinge.grs_hinge(*arguments, 0.01), truth.detach(), dtype)
    gradients = hinge.grs_hinge_backward(*there(grad, dtype=dtype), *arguments, 0.01)
    for ours, exact in zip(gradients, torch.autograd.grad(truth, (teacher, student), grad), strict=True):
        assert ours.shape == exact.shape
        if count:
            assert_close(ours, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("teachers", "students", "n", "count", "r"),
    [((), (), 20, 1, 2), ((2,), (3,), 10, 65, 5), ((), (2,), 9, 33, 9), ((), (), 33, 5, 3)],
)
def test_grs_loss(monkeypatch, teachers, students, n, count, r, dtype):
    """From all cosines; the last one from groups, as if its rows were many and the groups few for them."""
    monkeypatch.setattr(loss, "FEW_ROWS", 32)
    monkeypatch.setattr(minimum, "FEW_ROWS", 32)
    x, y = groups_of(n, count, r), groups_of(n, count, r, seed=1)
    teacher, student = rows(*teachers, n, 7).requires_grad_(), rows(*students, n, 33).requires_grad_()
    truth = reference.grs_loss(teacher, student, x, y, 0.01, "mean")
    grad = rows(*students, *teachers)
    here = there(teacher.detach(), student.detach(), x, y, dtype=dtype)
    ours, *kept = loss.grs_loss(*here, 0.01, True)
    assert_close(ours, truth.detach(), dtype)
    (cotangent,) = there(grad, dtype=dtype)
    both = loss.grs_loss_backward(cotangent, *here[:2], *kept, 0.01, True, True, True)
    for gradient, exact in zip(both, torch.autograd.grad(truth, (teacher, student), grad), strict=True):
        assert_close(gradient, exact, dtype)
    if count > 1:
        return
    none, alone = loss.grs_loss_backward(cotangent, *here[:2], *kept, 0.01, True, False, True)
    assert none.numel() == 0 and torch.equal(alone, both[1])
    alone, none = loss.grs_loss_backward(cotangent, *here[:2], *kept, 0.01, True, True, False)
    assert none.numel() == 0 and torch.equal(alone, both[0])


@pytest.mark.parametrize("count", [1, 40])
def test_ties_take_the_first_pair(count):
    """From the rows of one group and from all cosines."""
    groups = torch.tensor([[4, 2, 0], [1, 3, 2]]).repeat(count, 1)
    similarity, pairs, _ = minimum.group_min_similarity(torch.eye(12, device=DEVICE)[None], groups.to(DEVICE))
    assert not similarity.any()
    assert pairs[0, :2].tolist() == [[4, 2], [1, 3]]


@pytest.mark.parametrize("count", [1, 40])
def test_what_is_not_finite_or_out_of_range_gives_nan(count):
    """Nothing waits for the device to raise an error, and nothing is read beyond the embeddings."""
    e = torch.randn(1, 12, 5, device=DEVICE)
    e[0, 3, 2] = torch.nan
    groups = torch.tensor([[0, 1, 2], [1, 3, 2], [0, 12, 1], [-1, 5, 6]], device=DEVICE).repeat(count, 1)
    similarity, pairs, scale = minimum.group_min_similarity(e, groups)
    assert similarity.isnan()[0, :4].tolist() == [False, True, True, True]
    kept = similarity.nan_to_num(), pairs, scale
    gradient = minimum.group_min_similarity_backward((~similarity.isnan()).float(), e, *kept)
    assert gradient[0, [0, 2, 5, 6]].isfinite().all()  # row 1 has the NaN row as partner


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_tiny_and_huge_rows(dtype):
    e = rows(1, 6, 9)
    e[0, 0] = 0
    e[0, 1] *= 1e-10
    e[0, 2] *= torch.finfo(dtype).max ** 0.5 * 1e3
    unit = e / e.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    unit[0, 1] = e[0, 1] / 1e-8
    ours, _ = cosine.pairwise_cosine(*there(e, dtype=dtype))
    assert_close(ours, unit @ unit.mT, dtype)


def test_repetition_changes_nothing():
    e, groups = torch.randn(1, 20, 9, device=DEVICE), groups_of(20, 60, 4).to(DEVICE)
    results = []
    for _ in range(2):
        found = minimum.group_min_similarity(e, groups)
        results.append((*found, minimum.group_min_similarity_backward(torch.ones_like(found[0]), e, *found)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.usefixtures("through_operations")
@pytest.mark.parametrize("name", GRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_public_operations(name, dtype):
    """Through dispatch and autograd, strided, like any caller."""
    truth_arguments = arguments_of(name)
    strided = [
        a.detach().to(DEVICE, dtype).mT.contiguous().mT.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point()
        else a.to(DEVICE) if isinstance(a, Tensor) else a
        for a in truth_arguments
    ]  # fmt: skip
    example = EXAMPLES[name]
    cotangent = torch.randn_like(first(example.reference(*truth_arguments)))
    eager = run(example.reference, arguments_of(name, dtype), cotangent)
    for ours, plain, truth in zip(
        run(example.operation, strided, cotangent.to(DEVICE)), eager, run(example.reference, truth_arguments, cotangent), strict=True
    ):
        assert_accurate(ours.cpu(), plain, truth)


@pytest.mark.usefixtures("through_operations")
@pytest.mark.parametrize("name", GRS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(name, dtype):
    """The kernels read the rounded input itself and compute in float32; gradients are rounded once, when they are written."""
    low = [a.detach().to(dtype).requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments_of(name)]
    exact = [a.detach().double().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in low]
    low = [a.detach().to(DEVICE).requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in low]
    truth_of, operation = EXAMPLES[name].reference, EXAMPLES[name].operation
    cotangent = torch.randn_like(first(truth_of(*exact)))
    ours, *gradients = run(operation, low, cotangent.float().to(DEVICE))
    truth, *expected = run(truth_of, exact, cotangent.float().double())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double().cpu(), truth, rtol=1e-5, atol=1e-5)
    for gradient, value in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double().cpu(), value, rtol=torch.finfo(dtype).eps, atol=1e-5 * value.abs().max().item())


@pytest.mark.usefixtures("through_operations")
@pytest.mark.parametrize("name", GRS)
def test_low_precision_is_not_widened_first(name, monkeypatch):
    """What the operation gives to the kernel is the caller's tensor, not a copy."""
    seen = []
    for operation in (*OPERATIONS, "grs_loss"):
        call = getattr(torch.ops.pamkd, operation)
        monkeypatch.setattr(torch.ops.pamkd, operation, lambda *given, call=call: seen.append(given) or call(*given))
    low = [a.detach().bfloat16() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments_of(name)]
    low = [a.to(DEVICE) if isinstance(a, Tensor) else a for a in low]
    EXAMPLES[name].operation(*low)
    assert seen[0][0] is low[0]
