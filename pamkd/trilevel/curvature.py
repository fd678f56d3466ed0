"""The dominant eigenvalue of the validation loss's Hessian in the architecture: large where a search is about to collapse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.trilevel.passes import Batch
from pamkd.trilevel.step import Learner


def architecture_eigenvalue(learner: Learner, valid: Batch, *, steps: int = 30, seed: int = 0) -> float:
    """The largest (signed) eigenvalue of d2L(W, A; val)/dA2, matrix-free: `steps` Hessian-vector products at most.

    Zela et al. 2020. One forward pass through the eager cells, whose backward pass is differentiated once for each product.
    """
    alphas = learner.alphas.detach().clone().requires_grad_()
    output = learner.network.twice_differentiable().forward(learner.w, alphas, valid.images)
    (grad,) = torch.autograd.grad(F.cross_entropy(output.logits, valid.labels), alphas, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        (image,) = torch.autograd.grad(grad, alphas, vector.view_as(alphas), retain_graph=True, materialize_grads=True)
        return image.flatten()

    random = torch.Generator().manual_seed(seed)
    start = torch.randn(alphas.numel(), generator=random, dtype=torch.float64).to(alphas)
    return largest_eigenvalue(product, start, steps)


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float = 1e-9) -> float:
    """Lanczos iteration with full orthogonalisation on a symmetric `product` [n] -> [n], from the vector `start` [n].

    Ends when the value changes by less than `tolerance` of itself, when the space is exhausted, or after `steps` products.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    value = float("-inf")
    for _ in range(min(steps, start.numel())):
        image = product(basis[-1])
        diagonal.append(torch.dot(image, basis[-1]).item())
        known = torch.stack(basis)
        for _ in range(2):  # twice is enough
            image = image - known.T @ (known @ image)
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            off = torch.tensor(beside, dtype=torch.float64)
            matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
        before, value = value, torch.linalg.eigvalsh(matrix)[-1].item()
        norm = image.norm().item()
        if norm <= 1e-12 * max(1.0, abs(value)) or (len(diagonal) > 2 and abs(value - before) <= tolerance * abs(value)):
            break
        beside.append(norm)
        basis.append(image / norm)
    return value
