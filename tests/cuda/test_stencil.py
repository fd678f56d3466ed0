"""The stencils' device code, executed on the CPU under tests/cuda_host, against the eager composition in float64."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from pamkd.reference.stencils import stencils
from tests.cuda_host.build import COMPILER, SOURCES, build

DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat": torch.bfloat16}
KERNELS = ("forward", "input", "weight")
BRANCHES = ((3, 1), (5, 1), (3, 2), (5, 2))  # kernel, dilation

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++, which compiles the device code for the CPU")


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int, int]  # models, images, channels, height, width
    stride: int = 1
    branches: tuple[tuple[int, int], ...] = BRANCHES
    pools: bool = True
    dtype: str = "float"

    not_a_number: bool = False

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
        return t.to(DTYPES[self.dtype]).double()

    def expected(self) -> dict[str, Tensor]:
        x, weights = self.tensors()
        y = stencils(x, weights, [dilation for _, dilation in self.branches], self.stride, self.pools)
        dx, *dw = torch.autograd.grad(y, [x, *weights], self.cotangent(y))
        flat = torch.cat([w.flatten(1) for w in dw], 1) if dw else torch.empty(len(x), 0)
        return {"forward": channels_last(y.detach()), "input": channels_last(dx), "weight": flat}

    def cotangent(self, y: Tensor) -> Tensor:
        return self.exact(torch.randn(y.shape, generator=torch.Generator().manual_seed(4)))

    def run(self, kernel: str, seed: int = 0, without: int | None = None) -> subprocess.CompletedProcess:
        x, weights = self.tensors()
        values = [channels_last(x), *([torch.cat([w.flatten(1) for w in weights], 1)] if weights else [])]
        if kernel != "forward":
            h, w = ((size + self.stride - 1) // self.stride for size in x.shape[-2:])
            y = torch.empty(len(self.branches) + 2 * self.pools, *x.shape[:3], h, w)
            values.append(channels_last(self.cotangent(y)))
        words = [kernel, self.dtype, self.stride, *self.shape, int(self.pools), seed, *(n for branch in self.branches for n in branch)]
        words += [] if without is None else ["without", without]
        data = b"".join(t.detach().float().contiguous().numpy().tobytes() for t in values)
        return subprocess.run([build("stencil"), *map(str, words)], input=data, capture_output=True, check=False)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(-3, -1)


def result(done: subprocess.CompletedProcess, like: Tensor) -> Tensor:
    assert done.returncode == 0, done.stderr.decode()
    return torch.from_numpy(np.frombuffer(done.stdout, np.float32).copy()).view(like.shape)


def agrees(ours: Tensor, truth: Tensor, dtype: str) -> bool:
    """float32: 1e-5 of the largest value. Others: float32 within, rounded once at the end."""
    rounding = 0 if dtype == "float" else 0.51 * torch.finfo(DTYPES[dtype]).eps
    close = 1e-5 * truth.abs().max() + rounding * truth.abs()
    return bool(((ours.double() - truth).abs() <= close).all())  # NaN, as of memory that was never written, is not


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
    Case((2, 1, 32, 9, 18), dtype="bfloat"),
    Case((1, 2, 16, 18, 9), dtype="bfloat", stride=2),
    Case((1, 1, 13, 5, 6), dtype="bfloat"),
    Case((2, 1, 16, 10, 17), dtype="half"),
    Case((1, 1, 7, 6, 5), dtype="half", stride=2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case):
    for kernel, truth in case.expected().items():
        if truth.numel():
            assert agrees(result(case.run(kernel), truth), truth, case.dtype), kernel


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_order_of_threads_does_not_matter(kernel, stride):
    case = Case((1, 2, 8, 9, 17), stride=stride)
    first, second = (case.run(kernel, seed) for seed in (1, 2))
    assert first.returncode == 0 and first.stdout == second.stdout


@pytest.mark.parametrize("stride", [1, 2])
def test_nan_shows_where_pytorch_shows_it(stride):
    case = Case((1, 1, 4, 9, 9), stride=stride, not_a_number=True)
    for kernel, truth in case.expected().items():
        ours = result(case.run(kernel), truth)
        assert truth.isnan().any() or kernel == "input"
        if kernel == "weight":  # a NaN times the 0 beyond the edge of a map may show at more taps of the channel
            assert ours.isnan()[truth.isnan()].all()
        else:
            assert torch.equal(ours.isnan(), truth.isnan())


def barriers() -> list:
    """Every __syncthreads() of the kernels, with the kernel that it belongs to."""
    found = []
    for path in SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "__syncthreads()" in line:
                found.append(pytest.param(path.stem.removeprefix("stencil_"), number, id=f"{path.name}:{number}"))
    return found


@pytest.mark.parametrize(("kernel", "line"), barriers())
def test_every_barrier_is_needed(kernel, line):
    """Without any one of them, some order of the threads gives a wrong result."""
    case = Case((1, 1, 8, 17, 18), branches=BRANCHES * 2)
    truth = case.expected()[kernel]
    assert agrees(result(case.run(kernel), truth), truth, case.dtype)
    assert not all(agrees(result(case.run(kernel, seed, without=line), truth), truth, case.dtype) for seed in range(3))
