"""SGD on flat weight vectors, as a function: stages I and II of the tri-level step are its updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pamkd.ops import sgd_update


@dataclass(frozen=True)
class SGD:
    """w' = w - lr * m',  m' = momentum * m + g,  g = c * gradient + weight_decay * w,  c = min(1, clip / ||gradient||).

    `nesterov`: w' = w - lr * (g + momentum * m').

    `clip` bounds the norm of one learner's gradient (0: no clipping).
    """

    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    nesterov: bool = False

    def update(
        self, weights: Tensor, buffer: Tensor, gradient: Tensor, lr: float, *, norm: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New weights, new momentum buffer, and the clipping coefficient c (a constant for differentiation; with Nesterov's
        momentum (1 + momentum) c).

        All vectors [num_weights]. dw'/dgradient is -lr * c: the step size that the hypergradient sees. Differentiable
        with respect to the gradient. `norm` stands for ||gradient|| where weights are clipped together with others.
        """
        if norm is None and not self.nesterov:
            return sgd_update(weights, buffer, gradient, lr, self.momentum, self.weight_decay, self.clip)
        coefficient = self.clip_coefficient(torch.linalg.vector_norm(gradient.detach()) if norm is None else norm.detach())
        decayed = coefficient * gradient + self.weight_decay * weights
        buffer = self.momentum * buffer + decayed
        if self.nesterov:
            return weights - lr * (decayed + self.momentum * buffer), buffer, (1 + self.momentum) * coefficient
        return weights - lr * buffer, buffer, coefficient

    def clip_coefficient(self, norm: Tensor) -> Tensor:
        """min(1, clip / (norm + 1e-6)); 1 without clipping."""
        if self.clip == 0:
            return torch.ones_like(norm)
        return (self.clip / (norm + 1e-6)).clamp(max=1.0)
