"""DrNAS (Chen et al. 2021): mixtures drawn from Dirichlet distributions; stages that prune operations and widen the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.spaces.darts import EDGES, PRIMITIVES, Darts
from pamkd.spaces.nasbench201 import NasBench201
from pamkd.spaces.staged import Staged, strongest_columns
from pamkd.spaces.supernet import Candidates, NextStage
from pamkd.spaces.widen import widening


class Dirichlet(Staged):
    """Mixtures ~ Dirichlet(elu(alpha) + 1), drawn anew in each step, with pathwise gradients. (A second derivative takes the drawn
    gamma variables as linear in the concentration.)

    `partials` are k of partial channels and `keep` the operations that an edge keeps, stage by stage (`keep` begins with
    the second). From one stage to the next, weights, their momentum, alphas and Adam's state are copied; new channels are
    copies of random old ones. `kl` weighs sum_edges KL(Dirichlet || Dirichlet(1)) in the architectures' loss
    (the paper's alternative to weight decay on alphas).
    """

    def __init__(self, *, partials: Sequence[int], keep: Sequence[int], kl: float = 0.0, **options: Any) -> None:
        if not partials:
            raise ValueError("partials are []: needed is k of one stage or more")
        if not isinstance(kl, (int, float)) or not kl >= 0:
            raise ValueError(f"kl is {kl!r}: needed is a number of 0 or more")
        if len(keep) != len(partials) - 1:
            raise ValueError(
                f"keep is {list(keep)}: needed are {len(partials) - 1} numbers, one for each of the stages of `partials` but the first"
            )
        self.partials, self.keep, self.kl, self.stages = tuple(partials), tuple(keep), kl, len(partials)
        super().__init__(**options)
        if any(not isinstance(k, int) or not 1 <= k <= before or self.channels % k for before, k in pairwise(self.partials)):
            raise ValueError(f"partials are {list(partials)}: needed are falling divisors of the number of channels, {self.channels}")
        counts = [len(self.candidates(False)[0]), *self.keep]
        if any(not isinstance(count, int) or not 1 <= count <= before for before, count in pairwise(counts)):
            raise ValueError(f"keep is {list(keep)}: needed are falling numbers of operations, {counts[0]} at most and 1 at least")

    @property
    def stochastic(self) -> bool:
        return True

    def enter_stage(self) -> None:
        self.partial = self.partials[self.stage]

    def sample(self, alphas: Tensor) -> tuple[Tensor, ...]:
        shape = concentration(alphas)
        fixed = shape.detach().cpu()
        gammas = torch._standard_gamma(fixed, generator=self.random("dirichlet")).clamp(min=1e-30)
        slopes = torch._standard_gamma_grad(fixed, gammas)  # PyTorch has no second derivative of its own sample
        drawn = gammas.to(alphas.device) + slopes.to(alphas.device) * (shape - shape.detach())
        mixtures = drawn / drawn.sum(-1, keepdim=True)
        if self.partial > 1:  # what bypasses the operations has the weight 1
            mixtures = torch.cat([mixtures, torch.ones_like(mixtures[..., :1])], -1)
        return tuple(mixtures)

    def regulariser(self, alphas: Tensor) -> Tensor | None:
        return self.kl * kl_to_uniform(alphas).sum() if self.kl else None

    def next_stage(self, alphas: Tensor, generator: torch.Generator) -> NextStage:
        columns = strongest_columns(alphas, self.keep[self.stage])
        following = self.pruned(columns)
        flat = torch.arange(alphas.numel()).view(alphas.shape)
        return NextStage(following, None, flat.gather(-1, torch.tensor(columns)), widening(self, following, generator))


class DrNas(Dirichlet, Darts):
    """alphas [2, 14, 7, then 4]: DARTS's operations without `none`."""

    stages = 2  # by default

    def __init__(self, *, partials: Sequence[int] = (6, 4), keep: Sequence[int] = (4,), **options: Any) -> None:
        super().__init__(partials=partials, keep=keep, **options)

    def candidates(self, reduction: bool) -> Candidates:
        return super().candidates(reduction) if self.stage else (PRIMITIVES[1:],) * EDGES


class DrNasTopology(Dirichlet, NasBench201):
    """alphas [1, 6, 5]: NAS-Bench-201's cell; by default one stage, `partials=[4,2] keep=[3]` is the paper's progressive search."""

    def __init__(self, *, partials: Sequence[int] = (1,), keep: Sequence[int] = (), **options: Any) -> None:
        super().__init__(partials=partials, keep=keep, partial=partials[0] if partials else 1, **options)


def concentration(alphas: Tensor) -> Tensor:
    """elu(alpha) + 1, the parameters of the Dirichlet distributions, above 0."""
    return F.elu(alphas) + 1


def kl_to_uniform(alphas: Tensor) -> Tensor:
    """KL(Dirichlet(elu(alpha) + 1) || Dirichlet(1, ..., 1)) of every edge. alphas [..., operations]."""
    c = concentration(alphas)
    total, count = c.sum(-1), alphas.shape[-1]
    normaliser = torch.lgamma(total) - torch.lgamma(c).sum(-1) - torch.lgamma(total.new_tensor(float(count)))
    return normaliser + ((c - 1) * (torch.digamma(c) - torch.digamma(total)[..., None])).sum(-1)
