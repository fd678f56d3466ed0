"""Each way that the GRS kernels choose by cost, the fused loss, and rows at the edge of the number range."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from pamkd import ops, reference
from tests.ops.cases import assert_accurate


def groups_of(n: int, count: int, r: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, n, generator=random).topk(r).indices


def similarity_and_gradient(function, e: Tensor, groups: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = e.detach().requires_grad_()
    similarity, pairs = function(leaf, groups)
    (gradient,) = torch.autograd.grad(similarity, leaf, cotangent.to(similarity.dtype))
    return similarity.detach(), gradient, pairs


# What the sizes lead to: all cosines or those of the groups (from columns packed into panels, where the matrix is large);
# a sparse gradient row by row or panel by panel, or a matrix product.
PATHS = {
    "all cosines, dense gradient": (20, 37, 900, 4),
    "all cosines, sparse gradient by panels": (300, 330, 6000, 5),
    "groups, sparse gradient by rows": (400, 21, 60, 4),
    "groups from panels": (2100, 517, 5500, 9),
    "groups from panels, two passes": (2600, 420, 1700, 50),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_path(path, threads, request):
    n, d, count, r = PATHS[path]
    known = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(known))
    torch.set_num_threads(threads)
    e, groups, cotangent = torch.randn(1, n, d, dtype=torch.float64), groups_of(n, count, r), torch.randn(1, count, dtype=torch.float64)
    cotangent[:, ::3] = 0  # a hinge that is not active
    similarity, gradient, pairs = similarity_and_gradient(ops.group_min_similarity, e.float(), groups, cotangent)
    # The reference looks the cosines of the chosen pairs up, which are minimal up to float32 rounding.
    leaf = e.float().double().requires_grad_()
    unit = reference.grs.normalized(leaf)[0]
    chosen = (unit[pairs[0, :, 0]] * unit[pairs[0, :, 1]]).sum(-1)
    (truth,) = torch.autograd.grad(chosen, leaf, cotangent[0])
    torch.testing.assert_close(similarity[0].double(), chosen.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient.double(), truth, rtol=0, atol=1e-5 * truth.abs().max().item())
    with torch.no_grad():
        smallest, _ = reference.group_min_similarity(leaf, groups[:200])
    torch.testing.assert_close(similarity[:, :200].double(), smallest, rtol=0, atol=1e-6)


def test_pairs_are_identical_in_float64_on_every_path():
    for n, d, count, r in [(20, 37, 900, 4), (120, 9, 30, 6), (700, 1100, 1200, 3)]:
        e, groups = torch.randn(2, n, d, dtype=torch.float64), groups_of(n, count, r)
        assert torch.equal(ops.group_min_similarity(e, groups)[1], reference.group_min_similarity(e, groups)[1])


def test_out_of_range_is_found_on_every_path():
    for n, d, count, r in PATHS.values():
        groups = groups_of(n, count, r)
        groups[count // 2, r - 1] = n
        with pytest.raises(ValueError, match=f"group index {n} is out of range for {n} embeddings"):
            ops.group_min_similarity(torch.randn(1, n, d), groups)


@pytest.mark.parametrize("teachers", [(), (2,)])
@pytest.mark.parametrize("students", [(), (3,)])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fused_loss_against_the_composition(teachers, students, reduction, dtype):
    x, y = groups_of(30, 50, 5), groups_of(30, 50, 5, seed=1)
    inputs = torch.randn(*teachers, 30, 17, dtype=torch.float64), torch.randn(*students, 30, 40, dtype=torch.float64)
    cotangent = torch.randn((*students, *teachers), dtype=torch.float64)

    def run(function, dtype):
        leaves = [e.to(dtype).requires_grad_() for e in inputs]
        loss = function(*leaves, x, y, 0.01, reduction)
        return loss.detach(), *torch.autograd.grad(loss, leaves, cotangent.to(loss.dtype))

    for ours, eager, truth in zip(
        run(ops.grs_loss, dtype), run(reference.grs_loss, dtype), run(reference.grs_loss, torch.float64), strict=True
    ):
        assert_accurate(ours, eager, truth)


def test_fused_loss_gives_only_the_gradients_that_are_asked_for():
    x, y = groups_of(12, 7, 3), groups_of(12, 7, 3, seed=1)
    teacher, student = torch.randn(12, 5), torch.randn(12, 6, requires_grad=True)
    ops.grs_loss(teacher, student, x, y).backward()
    both = teacher.clone().requires_grad_(), student.detach().requires_grad_()
    expected = torch.autograd.grad(ops.grs_loss(*both, x, y), both)
    assert torch.equal(student.grad, expected[1])
    teacher.requires_grad_()
    assert torch.equal(torch.autograd.grad(ops.grs_loss(teacher, student.detach(), x, y), teacher)[0], expected[0])
    assert ops.grs_loss(teacher.detach(), student.detach(), x, y).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_loss_in_low_precision(dtype):
    x, y = groups_of(12, 7, 3), groups_of(12, 7, 3, seed=1)
    low = [torch.randn(12, 5).to(dtype).requires_grad_() for _ in range(2)]
    full = [e.detach().float().requires_grad_() for e in low]
    loss, expected = ops.grs_loss(*low, x, y), ops.grs_loss(*full, x, y)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    for ours, exact in zip(torch.autograd.grad(loss, low), torch.autograd.grad(expected, full), strict=True):
        assert ours.dtype == dtype and torch.equal(ours, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_opcheck_of_the_fused_loss(dtype):
    x, y = groups_of(12, 7, 3), groups_of(12, 7, 3, seed=1)
    e = [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((12, 5), (2, 12, 4))]
    opcheck(torch.ops.pamkd.grs_loss.default, (*e, x, y, 0.01, True))


def test_gradient_of_zero_and_tiny_rows():
    """A zero row has the gradient of torch.cosine_similarity; one shorter than 1e-8 that of the clamped formula, its norm a constant."""
    e = torch.randn(1, 3, 4, dtype=torch.float64)
    e[0, 0] = 0
    e[0, 1] *= 1e-10
    leaves = [e.clone().requires_grad_() for _ in range(3)]
    rows, others = [0, 1, 2], [1, 2, 0]
    ops.pairwise_cosine(leaves[0])[0, rows, others].sum().backward()
    unit = leaves[1] / leaves[1].norm(dim=-1, keepdim=True).clamp_min(1e-8)
    (unit[0, rows] * unit[0, others]).sum().backward()
    F.cosine_similarity(leaves[2][0, rows], leaves[2][0, others], dim=-1, eps=1e-8).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(leaves[0].grad[0, 0], leaves[2].grad[0, 0], rtol=1e-9, atol=1e-9)


def test_reference_has_finite_second_derivatives_at_zero_rows():
    e = torch.randn(1, 3, 4, dtype=torch.float64)
    e[0, 0] = 0
    e.requires_grad_()
    (first,) = torch.autograd.grad(reference.pairwise_cosine(e).square().sum(), e, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), e)
    assert torch.isfinite(first).all() and torch.isfinite(second).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_which_the_squared_norm_overflows(dtype):
    scale = torch.full((8, 1), torch.finfo(dtype).max ** 0.5 * 1e3, dtype=dtype)
    scale[::2] = 1
    e, groups = torch.randn(8, 11, dtype=dtype), groups_of(8, 9, 3)
    plain, large = e[None].clone().requires_grad_(), (e * scale)[None].clone().requires_grad_()
    expected, _ = ops.group_min_similarity(plain, groups)
    similarity, _ = ops.group_min_similarity(large, groups)
    torch.testing.assert_close(similarity, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ops.pairwise_cosine(large), ops.pairwise_cosine(plain), rtol=1e-5, atol=1e-6)
    # cosines do not depend on the scale, so the gradient is divided by it
    (wanted,) = torch.autograd.grad(expected.sum(), plain)
    (gradient,) = torch.autograd.grad(similarity.sum(), large)
    torch.testing.assert_close(gradient[0] * scale, wanted[0], rtol=1e-4, atol=1e-5)


def test_the_row_that_is_not_finite_is_named():
    x = groups_of(6, 3, 2)
    bad = torch.randn(2, 6, 3)
    bad[1, 4, 2] = torch.inf
    with pytest.raises(ValueError, match="grs_loss: e_student row 4 of matrix 1 holds NaN or infinity"):
        ops.grs_loss(torch.randn(6, 3), bad, x, x)
