"""The Kullback-Leibler divergence between softened predictions: sum over classes, mean over the batch."""

from __future__ import annotations

from torch import Tensor


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """mean_n sum_c p_c log(p_c / q_c), p = softmax(teacher / T), q = softmax(student / T); logits [..., n, classes] -> [...].

    Gradients flow to both. No factor T^2.
    """
    p, q = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean(-1)
