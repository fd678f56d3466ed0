"""The spaces S1 to S4 on which DARTS collapses (Zela et al. 2020): other candidates on the edges of DARTS's cells, no other code."""

from __future__ import annotations

from typing import Any

from pamkd.spaces.darts import EDGES, PRIMITIVES, Darts
from pamkd.spaces.supernet import Candidates

_SKIP, _MAX, _AVG = "skip_connect", "max_pool_3x3", "avg_pool_3x3"
_SEP3, _DIL3, _DIL5 = "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"

# space: candidates of the normal and of the reduction cell
CANDIDATES: dict[str, tuple[Candidates, Candidates]] = {
    "s1": (
        (
            *((_SKIP, _DIL3), (_SKIP, _DIL5)),
            *((_SKIP, _DIL5), (_SKIP, _SEP3), (_SKIP, _DIL3)),
            *((_MAX, _SKIP), (_SKIP, _SEP3), (_SKIP, _SEP3), (_SKIP, _DIL3)),
            *((_SKIP, _SEP3), (_MAX, _SKIP), (_SKIP, _DIL3), (_DIL3, _DIL5), (_DIL3, _DIL5)),
        ),
        (
            *((_MAX, _AVG), (_MAX, _DIL3)),
            *((_MAX, _AVG), (_MAX, _AVG), (_SKIP, _DIL5)),
            *((_MAX, _AVG), (_MAX, _SEP3), (_SKIP, _DIL3), (_SKIP, _DIL5)),
            *((_MAX, _AVG), (_MAX, _AVG), (_SKIP, _DIL5), (_SKIP, _DIL5), (_SKIP, _DIL5)),
        ),
    ),
    "s2": (((_SKIP, _SEP3),) * EDGES,) * 2,
    "s3": ((("none", _SKIP, _SEP3),) * EDGES,) * 2,
    "s4": ((("noise", _SEP3),) * EDGES,) * 2,
    "s5": ((PRIMITIVES,) * EDGES,) * 2,  # DARTS's own
}


class RobustDarts(Darts):
    """alphas [2, 14, operations of the space]."""

    def __init__(self, *, space: str, **options: Any) -> None:
        if space not in CANDIDATES:
            raise ValueError(f"space is {space!r}: it is one of {', '.join(CANDIDATES)}")
        self.space = space
        super().__init__(**options)

    def candidates(self, reduction: bool) -> Candidates:
        return CANDIDATES[self.space][reduction]
