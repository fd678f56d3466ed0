"""`opcheck` of what computes each operation on CUDA: schema, fake kernel, autograd, tracing. On CPU tensors where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
from tests.cuda_host.build import COMPILER
from tests.kernels.device import DEVICE

# The interpreter divides by zero in lanes that are masked afterwards.
pytestmark = [pytest.mark.usefixtures("through_operations"), pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")]
OPERATIONS = torch.ops.pamkd
QUICK = ("test_schema", "test_faketensor")
SPEC = CellSpec(3, (("nor_conv_1x1", "avg_pool_3x3"),), inputs=1, nodes=1)
DRAWS = Disturbance(2**64 - 1, drop_path=0.2).encode()
GROUPS = torch.tensor([[0, 1, 2], [4, 3, 1]])


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype).requires_grad_()


def forward_calls(dtype: torch.dtype) -> dict[str, tuple]:
    """Arguments of every operation that is differentiated, in a dtype that its kernels take."""
    groups, cell = GROUPS.to(DEVICE), (leaf(2, 3, 3, 2, dtype=dtype), None, leaf(9, dtype=dtype), leaf(1, 2, dtype=dtype))
    layer = [leaf(*shape, dtype=dtype) for shape in ((2, 3, 3, 2), (4, 3, 1, 1), (4,), (4,))]
    calls = {
        "pairwise_cosine": (leaf(1, 5, 3, dtype=dtype),),
        "group_min_similarity": (leaf(1, 5, 3, dtype=dtype), groups),
        "grs_hinge": (leaf(2, 3, 2, dtype=dtype), leaf(1, 3, 2, dtype=dtype), 0.01),
        "grs_loss": (leaf(5, 3, dtype=dtype), leaf(2, 5, 4, dtype=dtype), groups, groups.flip(1), 0.01, True),
        "mixed_cell_forward": (*cell, SPEC.encode(), True),
        "disturbed_cell_forward": (*cell, SPEC.encode(), DRAWS, True),
        "relu_conv_norm_forward": (layer[0], None, *layer[1:], 1, 1, 1e-5),
        "sgd_update": (leaf(2, 5), leaf(2, 5), leaf(2, 5), 0.1, 0.9, 3e-4, 5.0),
        "perturb": (leaf(2, 5), leaf(2, 5), 0.01),
    }
    return calls if dtype == torch.float32 else {name: calls[name] for name in calls if name not in ("sgd_update", "perturb")}


FORWARD = [(name, dtype) for dtype in (torch.float32, torch.bfloat16) for name in forward_calls(dtype)]


@pytest.mark.parametrize(("name", "dtype"), FORWARD, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in FORWARD])
def test_operations(name, dtype):
    """Autograd and tracing, the slow half, in float32 alone: they do not depend on the dtype."""
    checks = {} if dtype == torch.float32 else {"test_utils": QUICK}
    opcheck(getattr(OPERATIONS, name).default, forward_calls(dtype)[name], **checks)


def test_sets_of_weights():
    tensors = [leaf(2, 1, 3, 2, 2), leaf(2, 4, 3, 1, 1)]
    layer = (tensors[0], None, tensors[1], None, None, 1, 1, 1e-5)
    cell = (leaf(2, 1, 3, 2, 2), None, leaf(2, 9), leaf(2, 1, 2), SPEC.encode(), True)
    opcheck(OPERATIONS.relu_conv_norm_forward.default, layer, test_utils=QUICK)
    opcheck(OPERATIONS.mixed_cell_forward.default, cell, test_utils=QUICK)


def backward_calls() -> dict[str, tuple]:
    """Arguments of the operations that are no further differentiated."""
    given = {name: tuple(a.detach() if isinstance(a, Tensor) else a for a in call) for name, call in forward_calls(torch.float32).items()}
    kept = {name: getattr(OPERATIONS, name)(*given[name]) for name in given}
    e, _ = given["group_min_similarity"]
    teacher, student, *_ = given["grs_loss"]
    *cell, spec, _ = given["mixed_cell_forward"]
    mixed, disturbed = (kept[f"{name}_cell_forward"] for name in ("mixed", "disturbed"))
    x, depthwise, pointwise, weight, _, stride, dilation, _ = given["relu_conv_norm_forward"]
    y, *statistics = kept["relu_conv_norm_forward"]
    return {
        "pairwise_cosine_backward": (kept["pairwise_cosine"][0], given["pairwise_cosine"][0], *kept["pairwise_cosine"]),
        "group_min_similarity_backward": (kept["group_min_similarity"][0], e, *kept["group_min_similarity"]),
        "grs_hinge_backward": (kept["grs_hinge"], *given["grs_hinge"]),
        "grs_loss_backward": (kept["grs_loss"][0], teacher, student, *kept["grs_loss"][1:], 0.01, True, True, False),
        "mixed_cell_backward": (mixed[0], *cell, *mixed, spec, *[True, False] * 2),
        "disturbed_cell_backward": (disturbed[0], *cell, *disturbed, spec, DRAWS, *[True, False] * 2),
        "relu_conv_norm_backward": (y, x, depthwise, pointwise, weight, *statistics, stride, dilation, [1, 0, 1, 1, 0]),
    }


BACKWARD = [f"{name.removesuffix('_forward')}_backward" for name in forward_calls(torch.bfloat16)]


@pytest.mark.parametrize("name", BACKWARD)
def test_backward_operations(name):
    opcheck(getattr(OPERATIONS, name).default, backward_calls()[name], test_utils=QUICK)


@pytest.mark.skipif(COMPILER is None and DEVICE == "cpu", reason="no g++, which compiles the device code for the CPU")
@pytest.mark.parametrize("stride", [1, 2])
def test_stencils(stride):
    shape, x = ([3, 5], [2, 1], stride), leaf(2, 1, 3, 4, 2)
    weights = leaf(2, 2 * (9 + 25))
    opcheck(OPERATIONS.stencils_forward.default, (x, weights, *shape, True))
    x, weights = x.detach(), weights.detach()
    grad = OPERATIONS.stencils_forward(x, weights, *shape, True)
    opcheck(OPERATIONS.stencils_backward.default, (grad, x, weights, *shape, True, True, False), test_utils=QUICK)
    arguments = (grad, x, weights, *shape[:2], [0, 18], stride, True, False, True, torch.zeros_like(x))
    opcheck(OPERATIONS.stencils_input.default, arguments, test_utils=QUICK)
