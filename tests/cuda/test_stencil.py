"""The stencils' device code, executed on the CPU under tests/cuda_host, against the eager composition in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pamkd.reference.stencils import stencils
from tests.cuda_host.build import COMPILER, SOURCES
from tests.cuda_host.stencils import run

KERNELS = ("forward", "input", "weight")
BRANCHES = ((3, 1), (5, 1), (3, 2), (5, 2))  # kernel, dilation

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++, which compiles the device code for the CPU")


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int, int]  # models, images, channels, height, width
    stride: int = 1
    branches: tuple[tuple[int, int], ...] = BRANCHES
    pools: bool = True
    dtype: torch.dtype = torch.float32
    not_a_number: bool = False

    def __str__(self) -> str:
        kernels = "".join(f"{k}{'abc'[d]}" for k, d in self.branches)
        return f"{'x'.join(map(str, self.shape))}-s{self.stride}-{kernels}-{'pools' if self.pools else ''}-{str(self.dtype)[6:]}"

    def tensors(self) -> tuple[Tensor, list[Tensor]]:
        """x and the weights in float64, exact in the case's dtype. Coarse values of x make ties among maxima."""
        random = torch.Generator().manual_seed(3)
        x = (torch.randn(self.shape, generator=random) * 2).round() / 4 + torch.randn(self.shape, generator=random).round() / 64
        if self.not_a_number:
            x[0, 0, 1, 4, 5] = float("nan")
        models, _, c, _, _ = self.shape
        weights = [torch.randn(models, c, 1, k, k, generator=random) / k for k, _ in self.branches]
        return self.exact(x).requires_grad_(), [self.exact(w).requires_grad_() for w in weights]

    def exact(self, t: Tensor) -> Tensor:
        return t.to(self.dtype).double()

    def expected(self) -> dict[str, Tensor]:
        x, weights = self.tensors()
        y = stencils(x, weights, [dilation for _, dilation in self.branches], self.stride, self.pools)
        dx, *dw = torch.autograd.grad(y, [x, *weights], self.cotangent(y))
        return {"forward": channels_last(y.detach()), "input": channels_last(dx), "weight": flat(dw, len(x))}

    def cotangent(self, y: Tensor) -> Tensor:
        return self.exact(torch.randn(y.shape, generator=torch.Generator().manual_seed(4)))

    def run(self, kernel: str, **options) -> Tensor:
        x, weights = self.tensors()
        h, w = ((size + self.stride - 1) // self.stride for size in x.shape[-2:])
        y = torch.empty(len(self.branches) + 2 * self.pools, *x.shape[:3], h, w)
        tensors = [channels_last(x), flat(weights, len(x)), channels_last(self.cotangent(y))]
        if kernel == "forward":
            tensors[2] = None
        kernels, dilations = ([branch[i] for branch in self.branches] for i in (0, 1))
        tensors = [t if t is None else t.to(self.dtype) for t in tensors]
        return run(kernel, *tensors, kernels, dilations, self.stride, self.pools, **options)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(-3, -1)


def flat(weights: list[Tensor], models: int) -> Tensor:
    return torch.cat([w.flatten(1) for w in weights], 1) if weights else torch.empty(models, 0)


def agrees(ours: Tensor, truth: Tensor) -> bool:
    """1e-5 of the largest value, and one rounding of the result where that is narrower than float32."""
    rounding = 0 if ours.dtype == torch.float32 else 0.51 * torch.finfo(ours.dtype).eps
    close = 1e-5 * truth.abs().max() + rounding * truth.abs()
    return bool(((ours.double() - truth).abs() <= close).all())  # NaN, as of memory that was never written, is not


BFLOAT, HALF = {"dtype": torch.bfloat16}, {"dtype": torch.float16}
CASES = [
    Case((2, 3, 16, 12, 20)),
    Case((2, 2, 16, 13, 33), stride=2),
    Case((1, 1, 8, 17, 16), branches=BRANCHES * 2),  # two edges: the taps' two buffers come round again
    Case((1, 1, 5, 9, 7)),  # channels that are not whole vectors
    Case((3, 2, 11, 7, 10), stride=2),
    Case((1, 1, 4, 1, 1)),
    Case((1, 2, 9, 1, 1), stride=2),
    Case((1, 1, 3, 1, 35)),
    Case((1, 1, 3, 35, 2), stride=2),
    Case((2, 1, 8, 16, 16), pools=False),
    Case((4, 1, 8, 15, 17), branches=((3, 1),), pools=False),  # second halves: models are edges
    Case((1, 2, 12, 6, 6), stride=2, branches=((5, 2), (3, 1), (3, 2)), pools=False),
    Case((1, 1, 24, 8, 8), branches=()),
    Case((1, 1, 24, 8, 8), branches=(), stride=2),
    Case((2, 1, 32, 9, 18), **BFLOAT),
    Case((1, 2, 16, 18, 9), **BFLOAT, stride=2),
    Case((1, 1, 13, 5, 6), **BFLOAT),
    Case((2, 1, 16, 10, 17), **HALF),
    Case((1, 1, 7, 6, 5), **HALF, stride=2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case):
    for kernel, truth in case.expected().items():
        if truth.numel():
            assert agrees(case.run(kernel), truth), kernel


@pytest.mark.parametrize("case", [Case((2, 2, 8, 9, 17)), Case((1, 2, 13, 11, 6), **BFLOAT, stride=2)], ids=str)
def test_gradient_of_x_is_added_within_wider_rows(case):
    x = case.tensors()[0]
    before = channels_last(case.exact(torch.randn(x.shape)))
    truth = before + case.expected()["input"]
    assert agrees(case.run("input", onto=before.to(case.dtype)), truth)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_with_an_x_each(stride):
    """What they send back is what each alone would."""
    random = torch.Generator().manual_seed(0)
    kernels, dilations = zip(*BRANCHES, strict=True)
    x = torch.randn(4, 2, 2, 10, 18, 8, generator=random)
    grad = torch.randn(4, 2, 2, 10 // stride, 18 // stride, 8, generator=random)
    weights = [torch.randn(2, 8 * k * k, generator=random) for k in kernels]
    onto = torch.zeros_like(x)
    found = run("input", x, torch.cat(weights, 1), grad, list(kernels), list(dilations), stride, False, onto=onto)
    for i, single in enumerate(found):
        alone = run("input", x[i], weights[i], grad[i : i + 1], [kernels[i]], [dilations[i]], stride, False)
        assert torch.equal(single, alone)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_order_of_threads_does_not_matter(kernel, stride):
    case = Case((1, 2, 8, 9, 17), stride=stride)
    assert torch.equal(case.run(kernel, seed=1), case.run(kernel, seed=2))


@pytest.mark.parametrize("stride", [1, 2])
def test_nan_shows_where_pytorch_shows_it(stride):
    case = Case((1, 1, 4, 9, 9), stride=stride, not_a_number=True)
    for kernel, truth in case.expected().items():
        ours = case.run(kernel)
        assert truth.isnan().any() or kernel == "input"
        if kernel == "weight":  # a NaN times the 0 beyond the edge of a map may show at more taps of the channel
            assert ours.isnan()[truth.isnan()].all()
        else:
            assert torch.equal(ours.isnan(), truth.isnan())


def barriers() -> list:
    """Every __syncthreads() of the kernels, with the kernel that it belongs to."""
    return [
        pytest.param(path.stem.removeprefix("stencil_"), number, id=f"{path.name}:{number}")
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "__syncthreads()" in line
    ]


@pytest.mark.parametrize(("kernel", "line"), barriers())
def test_every_barrier_is_needed(kernel, line):
    """Without any one of them, some order of the threads gives a wrong result."""
    case = Case((1, 1, 8, 17, 18), branches=BRANCHES * 2)
    truth = case.expected()[kernel]
    assert agrees(case.run(kernel), truth)
    assert not all(agrees(case.run(kernel, seed=seed, without=line), truth) for seed in range(3))
