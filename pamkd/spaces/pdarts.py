"""P-DARTS (Chen et al. 2019): three stages of growing depth and fewer operations, dropout after skip connections, few of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pamkd.spaces.darts import STATES, Darts, derive_cell, incoming_edges
from pamkd.spaces.genotype import Gene, Genotype
from pamkd.spaces.staged import Staged, strongest_columns
from pamkd.spaces.supernet import Candidates, NextStage


class PDarts(Staged, Darts):
    """alphas [2, 14, 8, then 5, then 3]; each stage begins anew, `growth` cells deeper than the one before.

    `dropout` is the probability, in each stage, with which values of stride-1 skip connections are dropped: it falls
    linearly during the first two fifths of the stage's epochs, in which architectures stand still by the paper's schedule
    (`warmup_w_epochs` of the search), and exponentially afterwards. `skips` is the largest number of skip connections in
    the normal cell of the genotype.
    """

    stages = 3
    restarts = True

    def __init__(self, *, growth: int = 6, dropout: Sequence[float] = (0.1, 0.4, 0.7), skips: int = 2, **options: Any) -> None:
        if len(dropout) != self.stages or not all(0 <= p < 1 for p in dropout):
            raise ValueError(f"dropout is {dropout!r}: needed are {self.stages} numbers of 0 or more and below 1, one for each stage")
        for name, value in (("growth", growth), ("skips", skips)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} is {value!r}: needed is a whole number of 0 or more")
        self.growth, self.dropout, self.skips = growth, tuple(dropout), skips
        super().__init__(**options)

    @property
    def depth(self) -> int:
        return self.num_cells + self.growth * self.stage

    @property
    def stochastic(self) -> bool:
        return super().stochastic or any(self.dropout)

    @property
    def skip_dropout(self) -> float:
        p, epoch, epochs = self.dropout[self.stage], self.moment.epoch, self.moment.epochs
        still = 0.4 * epochs
        return p * (epochs - epoch - 1) / epochs if epoch < still else p * math.exp(-5 * (epoch - still) / epochs)

    def next_stage(self, alphas: Tensor, generator: torch.Generator) -> NextStage:
        following = self.pruned(strongest_columns(alphas, (5, 3)[self.stage]))
        return NextStage(following, following.init_alphas(generator))

    def genotype(self, alphas: Tensor) -> Genotype:
        normal, reduce = (mix.tolist() for mix in self.mixtures(alphas.detach()))
        few = derive_few_skips(normal, self.candidates(False), self.skips)
        return Genotype(few, STATES, derive_cell(reduce, self.candidates(True), by_state=True), STATES)


def derive_few_skips(mix: Sequence[Sequence[float]], candidates: Candidates, most: int) -> tuple[Gene, ...]:
    """`derive_cell` by state with at most so many skip connections: the weakest that the cell carries is given up until few are left.

    Giving one up changes which operation its edge would have, and thus also which edges the node keeps.
    """
    left = [list(row) for row in mix]
    edges = incoming_edges()
    while True:
        genes = derive_cell(left, candidates, by_state=True)
        carried = [edges[i // 2][state] for i, (name, state) in enumerate(genes) if name == "skip_connect"]
        if len(carried) <= most:
            return genes
        columns = {edge: candidates[edge].index("skip_connect") for edge in carried}
        weakest = min(carried, key=lambda edge: left[edge][columns[edge]])
        left[weakest][columns[weakest]] = 0.0
