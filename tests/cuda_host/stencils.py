"""The device code of csrc/cuda/stencil*.cuh as functions of CPU tensors, in the signatures of the operations."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pamkd.ops._library import IMPLEMENTATIONS
from tests.cuda_host.build import build

DTYPES = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}


def run(
    kernel: str,
    x: Tensor,  # [models, images, h, w, c]
    weights: Tensor,  # [models, sum of c k k]
    grad: Tensor | None,  # [maps, models, images, h', w', c]
    kernels: list[int],
    dilations: list[int],
    stride: int,
    pools: bool,
    *,
    seed: int = 0,
    without: int | None = None,
) -> Tensor:
    """`kernel` is "forward", "input" or "weight"; `without` a line whose barrier is left out; `seed` orders the threads."""
    models, images, h, w, c = x.shape
    to = (len(kernels) + 2 * pools, models, images, (h + stride - 1) // stride, (w + stride - 1) // stride, c)
    words = [kernel, DTYPES[x.dtype], stride, models, images, c, h, w, int(pools), seed]
    words += [number for branch in zip(kernels, dilations, strict=True) for number in branch]
    words += [] if without is None else ["without", without]
    tensors = (x, weights) if grad is None else (x, weights, grad)
    data = b"".join(t.detach().float().contiguous().numpy().tobytes() for t in tensors)
    done = subprocess.run([build("stencil"), *map(str, words)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    shape = {"forward": to, "input": x.shape, "weight": weights.shape}[kernel]
    return torch.from_numpy(np.frombuffer(done.stdout, np.float32).copy()).view(shape).to(x.dtype)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Lets `pamkd.ops.stencils` run this device code for CPU tensors."""

    def forward(x, weights, kernels, dilations, stride, pools):
        return run("forward", x, weights, None, kernels, dilations, stride, pools)

    def backward(grad, x, weights, kernels, dilations, stride, pools, need_x, need_weights):
        needed = {"input": need_x, "weight": need_weights and weights.numel() > 0}
        return tuple(
            run(kernel, x, weights, grad, kernels, dilations, stride, pools) if need else x.new_empty(0) for kernel, need in needed.items()
        )

    with torch.library._scoped_library("pamkd", "IMPL") as library:
        library.impl("stencils_forward", forward, "CPU")
        library.impl("stencils_backward", backward, "CPU")
        IMPLEMENTATIONS["stencils"]["cpu"] = "device code on fibers"
        try:
            yield
        finally:
            del IMPLEMENTATIONS["stencils"]["cpu"]
