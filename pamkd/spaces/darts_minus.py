"""DARTS- (Chu et al. 2021): an auxiliary skip connection beside every edge, whose weight decays to 0 during the search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pamkd.spaces.robust_darts import RobustDarts
from pamkd.spaces.supernet import Candidates


class DartsMinus(RobustDarts):
    """An edge's output is sum_o softmax(alpha)_o o(x) + beta(epoch) * skip(x).

    The auxiliary skip (a FactorizedReduce of its own where the stride is 2) has no part in the genotype. `space` is the
    space below it, s1 to s5 (DARTS's); beta begins at `beta` and follows `decay`.
    """

    def __init__(
        self,
        *,
        space: str = "s5",
        beta: float = 1.0,
        decay: Literal["linear", "cosine", "slow_cosine", "constant"] = "linear",
        **options: Any,
    ) -> None:
        if decay not in DECAYS:
            raise ValueError(f"decay is {decay!r}: it is one of {', '.join(DECAYS)}")
        if not isinstance(beta, (int, float)) or not beta >= 0:
            raise ValueError(f"beta is {beta!r}: needed is a number of 0 or more")
        self.beta, self.decay = beta, decay
        super().__init__(space=space, **options)

    @property
    def skip_weight(self) -> float:
        """beta at this moment."""
        return self.beta * DECAYS[self.decay](self.moment.epoch / self.moment.epochs)

    def computed(self, reduction: bool) -> Candidates:
        return tuple((*names, "skip_connect") for names in self.candidates(reduction))

    def sample(self, alphas: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.cat([mix, mix.new_full((len(mix), 1), self.skip_weight)], 1) for mix in self.mixtures(alphas))


DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "slow_cosine": lambda done: math.cos(math.pi / 2 * done),
    "constant": lambda done: 1.0,
}
