"""The device code of csrc/cuda/stencil*.cuh as functions of CPU tensors, in the signatures of the operations."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
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
    onto: Tensor | None = None,
    seed: int = 0,
    without: int | None = None,
) -> Tensor:
    """`kernel` is "forward", "input" or "weight"; `without` a line whose barrier is left out; `seed` orders the threads.

    With "input", `onto` is what the gradient is added to, and x may be [branches, models, images, h, w, c], one for each convolution.
    """
    models, images, h, w, c = x.shape[-5:]
    to = (len(kernels) + 2 * pools, models, images, (h + stride - 1) // stride, (w + stride - 1) // stride, c)
    words = [kernel, DTYPES[x.dtype], stride, models, images, c, h, w, int(pools), seed]
    words += [number for branch in zip(kernels, dilations, strict=True) for number in branch]
    shape = {"forward": to, "input": x.shape, "weight": weights.shape}[kernel]
    tensors = [x, weights] if grad is None else [x, weights, grad]
    if onto is not None:  # three channels beside those of x, which must be neither read nor written
        tensors = [F.pad(x, (0, 3), value=float("nan")), weights, grad, F.pad(onto, (0, 3), value=7)]
        words += ["rows", c + 3, int(x.dim() == 6)]
        shape = tensors[0].shape
    words += [] if without is None else ["without", without]
    data = b"".join(t.detach().float().contiguous().numpy().tobytes() for t in tensors)
    done = subprocess.run([build("stencil"), *map(str, words)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    result = torch.from_numpy(np.frombuffer(done.stdout, np.float32).copy()).view(shape).to(x.dtype)
    if onto is None:
        return result
    assert (result[..., c:] == 7).all()
    return result[..., :c]


def composed_gradient(
    grad: Tensor, x: Tensor, weights: list[Tensor], kernels: list[int], dilations: list[int], stride: int, pools: bool, paired: bool
) -> Tensor:
    """The gradient of x in float64, by PyTorch's backward operations: what runs below autograd cannot use it."""
    c, aten = x.shape[-1], torch.ops.aten

    def one(x: Tensor, gradients: Tensor, weights: list[Tensor], kernels: list[int], dilations: list[int]) -> Tensor:
        """Of one set of weights: x [n, c, h, w]."""
        total = torch.zeros_like(x)
        for g, w, k, d in zip(gradients, weights, kernels, dilations, strict=False):
            shape = [None, [stride] * 2, [d * (k // 2)] * 2, [d] * 2, False, [0, 0], c, [True, False, False]]
            total += aten.convolution_backward(g, x, w.view(c, 1, k, k), *shape)[0] * (x > 0)
        if pools:
            window = [3, 3], [stride] * 2, [1, 1]
            places = F.max_pool2d(x, 3, stride, 1, return_indices=True)[1]
            total += aten.max_pool2d_with_indices_backward(gradients[-2], x, *window, [1, 1], False, places)
            total += aten.avg_pool2d_backward(gradients[-1], x, *window, False, False, None)
        return total

    def of_sets(x: Tensor, gradients: Tensor, weights: list[Tensor], kernels: list[int], dilations: list[int]) -> Tensor:
        x, gradients = (t.movedim(-1, -3).contiguous() for t in (x, gradients))
        rows = [one(x[m], gradients[:, m], [w[m] for w in weights], kernels, dilations) for m in range(len(x))]
        return torch.stack(rows).movedim(-3, -1)

    if not paired:
        return of_sets(x, grad, weights, kernels, dilations)
    return torch.stack([of_sets(x[i], grad[i : i + 1], [weights[i]], [kernels[i]], [dilations[i]]) for i in range(len(x))])


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Lets `pamkd.ops.stencils`, and the cell of the GPU, run this device code for CPU tensors."""

    def forward(x, weights, kernels, dilations, stride, pools):
        return run("forward", x, weights, None, kernels, dilations, stride, pools)

    def backward(grad, x, weights, kernels, dilations, stride, pools, need_x, need_weights):
        needed = {"input": need_x, "weight": need_weights and weights.numel() > 0}
        return tuple(
            run(kernel, x, weights, grad, kernels, dilations, stride, pools) if need else x.new_empty(0) for kernel, need in needed.items()
        )

    def gradient(grad, x, weights, kernels, dilations, offsets, stride, pools, paired, add, dx):
        c = x.shape[-1]
        packed = [weights[:, begin : begin + c * k * k] for begin, k in zip(offsets, kernels, strict=True)]
        onto = dx if add else torch.zeros_like(dx)
        if x.dtype in DTYPES:
            dx.copy_(run("input", x, torch.cat([weights[:, :0], *packed], 1), grad, kernels, dilations, stride, pools, onto=onto))
        else:
            dx.copy_(onto + composed_gradient(grad, x, packed, kernels, dilations, stride, pools, paired))

    with torch.library._scoped_library("pamkd", "IMPL") as library:
        library.impl("stencils_forward", forward, "CPU")
        library.impl("stencils_backward", backward, "CPU")
        library.impl("stencils_input", gradient, "CPU")
        IMPLEMENTATIONS["stencils"]["cpu"] = "device code on fibers"
        try:
            yield
        finally:
            del IMPLEMENTATIONS["stencils"]["cpu"]
