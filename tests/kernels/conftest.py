"""The Triton kernels on a GPU, or on CPU tensors in Triton's interpreter where there is none."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from pamkd.ops import disturbed_cell_cuda, mixed_cell_cuda, relu_conv_norm_cuda
from pamkd.ops._library import IMPLEMENTATIONS
from tests.cuda_host.stencils import on_the_cpu
from tests.kernels.device import DEVICE

GRS = ("pairwise_cosine", "group_min_similarity", "grs_hinge", "grs_loss")
KERNELS = {stem: (stem, f"{stem}_backward") for stem in GRS} | {"flat_update": ("sgd_update", "perturb")}
LAYERS = {"mixed_cell": mixed_cell_cuda, "disturbed_cell": disturbed_cell_cuda, "relu_conv_norm": relu_conv_norm_cuda}


@pytest.fixture
def through_operations(monkeypatch):
    """The operations on `DEVICE` use the GPU's kernels: on a GPU they do anyway, on the CPU in place of the C++ kernels."""
    if DEVICE == "cuda":
        yield
        return
    library = torch.library.Library("pamkd", "IMPL")
    for stem, names in KERNELS.items():
        if stem in GRS:
            monkeypatch.setitem(IMPLEMENTATIONS[stem], "cpu", "Triton")
        for name in names:
            library.impl(name, getattr(importlib.import_module(f"pamkd.kernels.{stem}"), name), "CPU", allow_override=True)
    for stem in ("mixed_cell", "relu_conv_norm"):  # disturbed_cell asks the former
        operation = sys.modules[f"pamkd.ops.{stem}"]
        monkeypatch.setattr(operation, "on_cpu", lambda tensor: False)
        monkeypatch.setitem(operation.KERNEL_DTYPES, "cpu", (torch.float64, *operation.KERNEL_DTYPES["cuda"]))
    for stem, module in LAYERS.items():
        library.impl(f"{stem}_forward", module.forward, "CPU", allow_override=True)
        library.impl(f"{stem}_backward", module.backward, "CPU", allow_override=True)
    with on_the_cpu():
        yield
    library._destroy()


@pytest.fixture(autouse=True, scope="session")
def products_of_bfloat16():
    """Triton's interpreter keeps bfloat16 as the bits of integers, which its matrix product multiplies as integers: convert first."""
    if DEVICE == "cuda":
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    builder, multiply = interpreter.interpreter_builder, interpreter.interpreter_builder.create_dot

    def create_dot(a, b, *rest):
        a, b = (builder.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return multiply(a, b, *rest)

    builder.create_dot = create_dot
    yield
    del builder.create_dot
