"""The operations on embeddings against their eager compositions in float64, in every size, layout and dtype."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

from pamkd import _ext, ops, reference
from pamkd.ops import _library
from pamkd.ops._library import EXAMPLES, IMPLEMENTATIONS
from tests.ops.cases import assert_accurate, layouts

OPERATIONS = {
    "pairwise_cosine": torch.ops.pamkd.pairwise_cosine.default,
    "group_min_similarity": torch.ops.pamkd.group_min_similarity.default,
    "grs_hinge": torch.ops.pamkd.grs_hinge.default,
}
GRS = (*OPERATIONS, "grs_loss")
# n, d, groups, r: sizes around vector widths and tiles, one group, groups as large as the batch; both ways to the cosines.
SIZES = [(2, 1, 1, 2), (5, 3, 4, 2), (12, 17, 9, 5), (33, 64, 200, 3), (40, 65, 7, 6), (50, 8, 3, 7), (64, 130, 500, 8), (100, 256, 2, 9)]


def groups_of(n: int, count: int, r: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=random)[:r] for _ in range(count)])


def arguments_of(name: str, dtype=torch.float64) -> list:
    """The registered example in a dtype, as leaves."""
    made = EXAMPLES[name].arguments()
    return [a.detach().to(dtype).requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in made]


def first(result):
    return result[0] if isinstance(result, tuple) else result


def run(function, arguments: list, cotangent: Tensor) -> tuple[Tensor, ...]:
    """The (first) result and the gradients of every floating-point argument."""
    result = first(function(*arguments))
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    return result.detach(), *torch.autograd.grad(result, leaves, cotangent.to(result.dtype))


@pytest.mark.parametrize(("n", "d", "count", "r"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sets", [1, 3])
def test_group_min_similarity(n, d, count, r, dtype, sets):
    e, groups = torch.randn(sets, n, d, dtype=torch.float64), groups_of(n, count, r)
    cotangent = torch.randn(sets, count, dtype=torch.float64)
    truth, ours, eager = (
        run(function, [e.to(kind).requires_grad_(), groups], cotangent)
        for function, kind in (
            (reference.group_min_similarity, torch.float64),
            (ops.group_min_similarity, dtype),
            (reference.group_min_similarity, dtype),
        )
    )
    for one, other, exact in zip(ours, eager, truth, strict=True):
        assert_accurate(one, other, exact)
    if dtype == torch.float64:
        assert torch.equal(ops.group_min_similarity(e, groups)[1], reference.group_min_similarity(e, groups)[1])


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(name, dtype):
    """float32 to 1e-5; bfloat16 and float16 are the float32 result of the rounded input."""
    example = EXAMPLES[name]
    arguments = [a.detach().to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments_of(name)]
    exact = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    ours, truth = first(example.operation(*arguments)), first(example.reference(*exact))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", GRS)
def test_gradcheck(name):
    arguments = arguments_of(name)
    small = [
        a.detach()[:, :16, :5].requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() and name != "grs_hinge" else a
        for a in arguments
    ]
    small = [a % 16 if isinstance(a, Tensor) and not a.is_floating_point() else a for a in small]
    assert gradcheck(lambda *a: first(EXAMPLES[name].operation(*a)), small, fast_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "axes"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_strides_of_inputs_and_gradients(name, layout):
    plain = arguments_of(name)
    strided = [layouts(a.detach())[layout].requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in plain]
    operation = EXAMPLES[name].operation
    cotangent = torch.randn_like(first(operation(*plain)))
    expected = run(operation, plain, cotangent)
    for gradient in (cotangent, cotangent.mT.contiguous().mT, torch.stack([cotangent, cotangent], -1)[..., 0]):
        for one, other in zip(run(operation, strided, gradient), expected, strict=True):
            assert torch.equal(one, other)
    ones = run(operation, plain, torch.ones_like(cotangent))
    for one, other in zip(run(operation, strided, torch.ones(()).to(cotangent).expand(cotangent.shape)), ones, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_opcheck(name, dtype):
    opcheck(OPERATIONS[name], tuple(arguments_of(name, dtype)))


@pytest.mark.parametrize("name", GRS)
def test_compile(name):
    arguments = arguments_of(name, torch.float32)
    compiled = torch.compile(EXAMPLES[name].operation, fullgraph=True, backend="aot_eager")
    expected = first(EXAMPLES[name].operation(*arguments))
    torch.testing.assert_close(first(compiled(*arguments)), expected)


@pytest.mark.parametrize("name", GRS)
def test_double_backward_is_refused(name):
    arguments = arguments_of(name)
    leaf = next(a for a in arguments if isinstance(a, Tensor) and a.requires_grad)
    (grad,) = torch.autograd.grad(first(EXAMPLES[name].operation(*arguments)).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative: use pamkd\.reference"):
        grad.sum().backward()


@pytest.mark.parametrize("name", EXAMPLES)
def test_forward_mode_is_refused(name):
    """Of which PyTorch would make a derivative of 0."""
    example = EXAMPLES[name]
    values = [a.detach() if isinstance(a, Tensor) else a for a in example.arguments()]
    place = next(i for i, value in enumerate(values) if isinstance(value, Tensor))

    def of_one(function):
        return torch.func.jvp(
            lambda x: first(function(*values[:place], x, *values[place + 1 :])), (values[place],), (values[place].cos(),)
        )[1]

    assert of_one(example.reference).any()
    with pytest.raises(NotImplementedError, match=f"{name}: .* has a forward-mode tangent"):
        of_one(example.operation)


def test_reference_is_twice_differentiable():
    e, groups = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True), groups_of(6, 5, 3)
    assert torch.autograd.gradgradcheck(lambda x: reference.group_min_similarity(x, groups)[0], (e,))


def test_ties_take_the_first_pair():
    e = torch.eye(5, dtype=torch.float64)[None]  # all cosines of different rows are 0
    groups = torch.tensor([[4, 2, 0], [1, 3, 2]])
    sim, pairs = ops.group_min_similarity(e, groups)
    assert torch.equal(sim, torch.zeros(1, 2, dtype=torch.float64))
    assert pairs[0].tolist() == [[4, 2], [1, 3]]


def test_zero_rows_have_cosine_zero():
    e = torch.randn(1, 4, 9)
    e[0, 1] = 0
    assert torch.equal(ops.pairwise_cosine(e)[0, 1], torch.zeros(4))
    sim, _ = ops.group_min_similarity(e, torch.tensor([[0, 1], [1, 2]]))
    assert torch.equal(sim, torch.zeros(1, 2))
    leaf = e.requires_grad_()
    ops.group_min_similarity(leaf, torch.tensor([[0, 1]]))[0].sum().backward()
    assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e30])
def test_cosines_do_not_depend_on_the_scale(scale):
    e = torch.randn(1, 20, 33)
    torch.testing.assert_close(ops.pairwise_cosine(e * scale), ops.pairwise_cosine(e), rtol=1e-5, atol=1e-6)


def test_equal_teacher_similarities_express_nothing():
    teacher = torch.tensor([[[0.3, 0.3], [0.1, 0.5]]])
    student = torch.tensor([[[0.9, 0.2], [0.4, 0.2]]])
    # only the second pair counts: 0.01 + 0.4 * 0.2
    assert ops.grs_hinge(teacher, student, 0.01).item() == pytest.approx(0.09)


def test_hinge_in_numbers():
    """Three pairs by hand: agreeing beyond the margin, agreeing within it, disagreeing."""
    teacher = torch.tensor([[[0.5, 0.1], [0.5, 0.4], [0.2, 0.6]]], dtype=torch.float64)
    student = torch.tensor([[[0.6, 0.3], [0.35, 0.3], [0.9, 0.1]]], dtype=torch.float64)
    expected = 0 + (0.01 - 0.1 * 0.05) + (0.01 + 0.4 * 0.8)
    assert ops.grs_hinge(teacher, student, 0.01).item() == pytest.approx(expected)


@pytest.mark.parametrize("teachers", [None, 2])
@pytest.mark.parametrize("students", [None, 3])
def test_grs_loss_shapes(teachers, students):
    x, y = groups_of(20, 11, 4), groups_of(20, 11, 4, seed=1)
    teacher = torch.randn(*([teachers] if teachers else []), 20, 7)
    student = torch.randn(*([students] if students else []), 20, 12)
    loss = ops.grs_loss(teacher, student, x, y)
    assert loss.shape == tuple(k for k in (students, teachers) if k)
    torch.testing.assert_close(ops.grs_loss(teacher, student, x, y, reduction="mean"), loss / 11)
    if teachers and students:
        torch.testing.assert_close(loss[2, 1], ops.grs_loss(teacher[1], student[2], x, y))


def test_thread_count_and_repetition_change_nothing():
    e, groups = torch.randn(2, 300, 65), groups_of(300, 4000, 5)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        leaf = e.clone().requires_grad_()
        sim, pairs = ops.group_min_similarity(leaf, groups)
        (sim * torch.arange(4000)).sum().backward()
        results.append((sim.detach(), pairs, leaf.grad))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(1, 60), st.integers(2, 9), st.integers(0, 10**6))
def test_random_sizes(n, d, count, r, seed):
    random = torch.Generator().manual_seed(seed)
    e = torch.randn(2, n, d, generator=random, dtype=torch.float64).requires_grad_()
    groups = torch.randint(0, n, (count, min(r, n)), generator=random)  # rows may repeat within a group
    cotangent = torch.randn(2, count, generator=random, dtype=torch.float64)
    ours = run(ops.group_min_similarity, [e, groups], cotangent)
    torch.testing.assert_close(ours[0], reference.group_min_similarity(e, groups)[0], rtol=1e-12, atol=1e-12)
    # Where rows repeat, two pairs may be equal up to rounding, so the gradient is checked along the pairs that were chosen.
    pairs = ops.group_min_similarity(e, groups)[1]
    cosine = reference.pairwise_cosine(e)[torch.arange(2)[:, None], pairs[..., 0], pairs[..., 1]]
    torch.testing.assert_close(ours[1], torch.autograd.grad(cosine, e, cotangent)[0], rtol=1e-9, atol=1e-9)


E, X = torch.randn(10, 4), groups_of(10, 3, 2)
BAD = {
    "index 10 is out of range for 10": lambda: ops.grs_loss(E, E, X + 10 - X.max(), torch.full_like(X, 10)),
    "index -1 is out of range": lambda: ops.group_min_similarity(E[None], torch.full_like(X, -1)),
    "row 3 holds NaN or infinity": lambda: ops.pairwise_cosine(torch.where(torch.arange(10) == 3, torch.nan, 1.0)[None, :, None]),
    "row 0 holds NaN or infinity": lambda: ops.group_min_similarity(torch.full((1, 4, 2), torch.inf), torch.tensor([[0, 1]])),
    "at least one group of R >= 2": lambda: ops.grs_loss(E, E, X[:, :1], X[:, :1]),
    "R = 11 rows are larger than the batch of 10": lambda: ops.group_min_similarity(E[None], torch.zeros(2, 11, dtype=torch.int64)),
    "without an empty dimension": lambda: ops.grs_loss(E[:0], E[:0], X, X),
    "needed are the same images": lambda: ops.grs_loss(E, E[:9], X, X),
    "convert them to one dtype": lambda: ops.grs_loss(E, E.double(), X, X),
    "needed are floating-point tensors": lambda: ops.pairwise_cosine(torch.ones(1, 2, 2, dtype=torch.int64)),
    "needed are int64 row indices": lambda: ops.group_min_similarity(E[None], X.int()),
    "needed is 'sum' or 'mean'": lambda: ops.grs_loss(E, E, X, X, reduction="max"),
    r"needed are \[Kt, P, 2\]": lambda: ops.grs_hinge(torch.rand(1, 3, 2), torch.rand(1, 4, 2), 0.01),
    "move it there": lambda: ops.group_min_similarity(E[None].to("meta"), X),
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_arguments_are_named(message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        BAD[message]()


def test_no_rows_have_no_gradient():
    """As nobody may call the public function."""
    nothing, pairs = torch.zeros(1, 0), torch.zeros(1, 0, 2, dtype=torch.int64)
    gradient = torch.ops.pamkd.group_min_similarity_backward(nothing, torch.zeros(1, 0, 4), nothing, pairs, nothing)
    assert gradient.shape == (1, 0, 4)


def test_an_instruction_set_that_does_not_exist_is_named():
    code = "import torch; from pamkd.ops import grs_hinge; grs_hinge(*torch.ones(2, 1, 1, 2), 0.1)"
    wish = os.environ | {"PAMKD_CPU_LEVEL": "avx"}
    done = subprocess.run([sys.executable, "-c", code], env=wish, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ValueError: PAMKD_CPU_LEVEL is avx; needed is baseline, avx2 or avx512"


def test_device_without_kernel_warns_once():
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            ops.pairwise_cosine(torch.empty(1, 4, 3, device="meta"))
    assert [str(w.message) for w in caught] == [
        "pamkd.ops.pairwise_cosine has kernels for cpu and cuda, none for meta: the slower eager composition is used"
    ]


def test_device_without_kernel_warns_while_compiling():
    compiled = torch.compile(lambda e: 2 * ops.pairwise_cosine(e), fullgraph=True, backend="eager")
    _library._warned.discard(("pairwise_cosine", "meta"))
    with pytest.warns(UserWarning, match="none for meta"):
        assert compiled(torch.empty(1, 4, 3, device="meta")).shape == (1, 4, 4)


def test_extension_that_is_missing_or_broken_says_so(tmp_path):
    """Four different messages: not built, failed to load, no kernel for a device (above), wrong argument (above)."""
    code = """
import sys, pathlib, torch
path = {path}
exists, load = pathlib.Path.exists, torch.ops.load_library
pathlib.Path.exists = lambda self: path is not None if self.name == "_C.so" else exists(self)
torch.ops.load_library = lambda name: load(path)
import pamkd
try:
    pamkd.ops.pairwise_cosine(torch.ones(1, 2, 2))
except NotImplementedError as error:
    print(error)
"""
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    for path, message in (("None", "is not built; reinstall with"), (repr(str(broken)), "is built but failed to load under PyTorch")):
        done = subprocess.run([sys.executable, "-c", code.format(path=path)], capture_output=True, text=True, check=False)
        assert message in done.stdout, done.stdout + done.stderr


def test_extension_cut_short_is_refused_before_the_loader_dies_of_it(tmp_path, monkeypatch):
    whole = _ext.PATH.read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "_C.so"
        cut.write_bytes(whole[:size])
        monkeypatch.setattr(_ext, "PATH", cut)
        assert f"cut short ({len(whole) - size} bytes are missing" in _ext.load()


def test_one_implementation_per_operation_and_device():
    assert set(IMPLEMENTATIONS) == set(EXAMPLES)
    assert all(set(found) <= {"cpu", "cuda"} for found in IMPLEMENTATIONS.values())
