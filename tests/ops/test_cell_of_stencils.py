"""The cell as stencils and matrix products, what mixed_cell runs on a GPU, against the eager composition of the cell."""

from __future__ import annotations

import pytest
import torch

from pamkd.ops import cell_of_stencils
from pamkd.reference import mixed_cell as reference
from pamkd.reference.cell_spec import OPERATIONS, CellSpec
from tests.cuda_host.build import COMPILER
from tests.cuda_host.stencils import on_the_cpu
from tests.ops.test_mixed_cell import cell, converted, make, run

pytestmark = pytest.mark.filterwarnings("ignore:pamkd.ops.stencils has kernels for")

SPECS = {
    "normal": cell(6, nodes=3),
    "reduction": cell(6, nodes=2, reduction=True),
    "partial": cell(8, partial=4),
    "partial reduction": cell(8, partial=2, reduction=True),
    "all operations": cell(5, OPERATIONS[: OPERATIONS.index("noise")], nodes=2),
    "NAS-Bench-201": cell(4, ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"), nodes=3, inputs=1, output="last"),
    "pools without norm": cell(5, ("avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3"), nodes=2, pool_norm=False),
    "repeated": cell(5, ("avg_pool_3x3", "dil_conv_3x3", "avg_pool_3x3", "dil_conv_3x3"), nodes=1),
    "subsets": CellSpec(5, (("dil_conv_5x5", "sep_conv_3x3"), ("skip_connect",), (), ("max_pool_3x3", "sep_conv_3x3"), ("none",)), nodes=2),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_agrees_with_the_composition(spec):
    tensors = make(spec, 2, 6, 8)
    for ours, truth in zip(run(cell_of_stencils.mixed_cell, tensors, spec), run(reference.mixed_cell, tensors, spec), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10 * max(1.0, truth.abs().max().item()))


@pytest.mark.skipif(COMPILER is None, reason="no g++, which compiles the device code for the CPU")
@pytest.mark.parametrize("name", ["normal", "reduction"])
def test_agrees_over_the_device_code(name):
    spec = SPECS[name]
    tensors = make(spec, 2, 5, 7)
    truth = run(reference.mixed_cell, tensors, spec)
    with on_the_cpu():
        ours = run(cell_of_stencils.mixed_cell, converted(tensors, torch.float32), spec)
    for single, double in zip(ours, truth, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4 * max(1.0, double.abs().max().item()))
