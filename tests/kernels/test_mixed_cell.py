"""What mixed_cell runs on a GPU; without one on CPU tensors: Triton's interpreter, the stencils' gradients in PyTorch or on fibers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pamkd import ops
from pamkd.reference import mixed_cell as reference
from pamkd.reference.cell_spec import OPERATIONS, CellSpec
from tests.cuda_host.build import COMPILER
from tests.kernels.device import DEVICE
from tests.ops.test_mixed_cell import cell, make, run

POINTWISE = ("skip_connect", "nor_conv_1x1", "avg_pool_3x3")

# One of each kind of branch in few kernels: the interpreter takes a millisecond for each tap of each block.
SPECS = {
    "normal": cell(5, ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"), nodes=2),
    "reduction": cell(5, ("avg_pool_3x3", "skip_connect", "sep_conv_3x3"), nodes=1, reduction=True),
    "partial": cell(8, ("max_pool_3x3", "dil_conv_3x3"), nodes=2, partial=4),
    "partial reduction": cell(6, ("skip_connect", "dil_conv_3x3"), nodes=2, partial=2, reduction=True),
    "NAS-Bench-201": cell(4, ("none", *POINTWISE), nodes=3, inputs=1, output="last"),
    "pools without norm": cell(3, ("avg_pool_3x3", "max_pool_3x3"), nodes=2, pool_norm=False),
    "subsets": CellSpec(3, (("dil_conv_5x5", "sep_conv_5x5"), ("skip_connect",), (), ("max_pool_3x3", "sep_conv_3x3"), ("none",)), nodes=2),
    "repeated": cell(3, ("avg_pool_3x3", "dil_conv_3x3", "avg_pool_3x3", "dil_conv_3x3"), nodes=1),
    "several tiles": cell(70, ("dil_conv_3x3", "avg_pool_3x3"), nodes=1, inputs=1),
}


pytestmark = pytest.mark.usefixtures("through_operations")
DTYPE, TOLERANCE = (torch.float64, 1e-10) if DEVICE == "cpu" else (torch.float32, 1e-4)  # the stencils on a GPU take no float64


def there(tensors: list, dtype: torch.dtype = DTYPE) -> list:
    return [t if t is None else t.detach().to(DEVICE, dtype).requires_grad_() for t in tensors]


def assert_agrees(ours: list[Tensor], truth: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.double().cpu(), b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_agrees_with_the_composition(spec):
    tensors = make(spec, 2, 4, 6)
    assert_agrees(run(ops.mixed_cell, there(tensors), spec), run(reference.mixed_cell, tensors, spec))


@pytest.mark.skipif(COMPILER is None and DEVICE == "cpu", reason="no g++, which compiles the device code for the CPU")
@pytest.mark.parametrize("name", ["normal", "reduction"])
def test_agrees_over_the_device_code(name):
    tensors = make(SPECS[name], 2, 5, 7)
    truth = run(reference.mixed_cell, tensors, SPECS[name])
    assert_agrees(run(ops.mixed_cell, there(tensors, torch.float32), SPECS[name]), truth, 1e-4)


@pytest.mark.parametrize("within_vmap", [False, True])
def test_sets_of_weights_share_a_call(within_vmap):
    spec = SPECS["reduction"]
    sets = [make(spec, 2, 4, 4, seed=seed) for seed in range(2)]
    together = [torch.stack([t.detach() for t in tensors]).requires_grad_() for tensors in zip(*sets, strict=True)]
    cotangent = torch.randn(2, 2, spec.out_channels, 2, 2, dtype=torch.float64)
    alone = [run(reference.mixed_cell, tensors, spec, g) for tensors, g in zip(sets, cotangent, strict=True)]
    call = torch.vmap(ops.mixed_cell, (0, 0, 0, 0, None)) if within_vmap else ops.mixed_cell
    assert_agrees(run(call, there(together), spec, cotangent), [torch.stack(of) for of in zip(*alone, strict=True)])


def test_only_the_gradients_that_are_asked_for():
    spec = cell(3, ("skip_connect", "dil_conv_3x3"), nodes=1)
    tensors = there(make(spec, 2, 4, 4))
    everything = run(ops.mixed_cell, tensors, spec)
    for i in range(4):
        for j, t in enumerate(tensors):
            t.requires_grad_(i == j)
        assert torch.equal(run(ops.mixed_cell, tensors, spec)[1], everything[1 + i])


def test_every_operation_but_full_convolutions_is_a_branch():
    names = [name for name in OPERATIONS if name not in ("noise", "nor_conv_3x3")]
    assert set(names) == {name for spec in SPECS.values() for candidates in spec.candidates for name in candidates}
