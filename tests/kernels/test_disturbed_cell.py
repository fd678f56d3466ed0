"""What disturbed_cell runs on a GPU; without one on CPU tensors: Triton's interpreter, the stencils' gradients in PyTorch."""

from __future__ import annotations

import pytest
import torch

from pamkd import ops
from pamkd.reference import mixed_cell as reference
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
from tests.kernels.test_mixed_cell import DTYPE, TOLERANCE, assert_agrees, there
from tests.ops.test_mixed_cell import cell, converted, make, run

pytestmark = pytest.mark.usefixtures("through_operations")
ALL = Disturbance(2**63 + 5, skip_dropout=0.4, drop_path=0.3, first=3)
ONE = {
    "nothing": Disturbance(1),
    "noise": Disturbance(2),
    "dropout": Disturbance(3, skip_dropout=0.4),
    "drop-path": Disturbance(4, drop_path=0.4),
}
NOISY = (("noise", "skip_connect"), ("skip_connect", "avg_pool_3x3"), ("max_pool_3x3", "noise"))
SPECS = {
    "normal": CellSpec(5, (("skip_connect", "sep_conv_3x3"), *NOISY, ("skip_connect",)), nodes=2),
    "reduction": CellSpec(5, (("noise", "dil_conv_3x3"), *NOISY, ("skip_connect",)), nodes=2, reduction=True),
    "partial": cell(8, ("noise", "skip_connect"), nodes=2, partial=4),
    "partial reduction": cell(6, ("max_pool_3x3", "noise"), nodes=2, partial=2, reduction=True),
    "last": cell(4, ("noise", "skip_connect", "none"), nodes=3, inputs=1, output="last"),
    "subsets": CellSpec(3, (("noise", "dil_conv_3x3"), ("skip_connect",), (), ("noise", "skip_connect", "noise"), ("none",)), nodes=2),
}
DRAWN = ("noise", "skip_connect")


def assert_equals_the_reference(
    spec: CellSpec, disturbance: Disturbance, n: int, h: int, w: int, dtype: torch.dtype = DTYPE, tolerance: float = TOLERANCE
) -> None:
    tensors = make(spec, n, h, w, dtype)
    truth = run(lambda *given: reference.mixed_cell(*given, disturbance), converted(tensors, torch.float64), spec)
    ours = run(lambda *given: ops.disturbed_cell(*given, disturbance), there(tensors, dtype), spec)
    assert all(tensor.dtype == dtype for tensor in ours)
    assert_agrees(ours, truth, tolerance)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_agrees_with_the_reference(spec):
    assert_equals_the_reference(spec, ALL, 2, 4, 6)


@pytest.mark.parametrize("disturbance", ONE.values(), ids=ONE)
def test_one_at_a_time(disturbance):
    assert_equals_the_reference(cell(3, ("noise", "skip_connect", "max_pool_3x3"), nodes=1), disturbance, 3, 3, 5)


@pytest.mark.parametrize(("n", "h", "w", "c"), [(2, 1, 1, 1), (3, 3, 7, 15), (2, 4, 8, 16), (5, 1, 13, 17), (2, 3, 6, 33)])
def test_float32_around_tiles(n, h, w, c):
    """63, 64 and 65 pixels, a chunk of several blocks, channels around 16 and 32, images of one pixel and of a number 4 does not divide."""
    assert_equals_the_reference(cell(c, DRAWN, nodes=1, inputs=1), ALL, n, h, w, torch.float32, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    spec = cell(8, (*DRAWN, "nor_conv_1x1"), nodes=1, inputs=1)
    assert_equals_the_reference(spec, ALL, 3, 5, 6, dtype, 8 * torch.finfo(dtype).eps)


def test_full_convolutions_are_composed():
    with pytest.warns(UserWarning, match="no GPU kernel for nor_conv_3x3"):
        assert_equals_the_reference(cell(3, ("nor_conv_3x3", "skip_connect"), nodes=1, inputs=1), ALL, 2, 3, 3)
