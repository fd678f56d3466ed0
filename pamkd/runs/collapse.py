"""Signs that a search collapses, read from the rows of its epochs; so a continued search judges as an undisturbed one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pamkd.spaces.architecture import architecture_from_json

WINDOW, FACTOR, DELTA, START = 5, 1.3, 4, 10  # of the rule of Zela et al. 2020 for the dominant eigenvalue
LEAST_ENTROPY = 0.1  # as a share of that of equal weights


class Collapse(NamedTuple):
    reason: str
    good_epoch: int  # the last whose genotypes are to be trusted


def judge(rows: Sequence[dict[str, Any]]) -> Collapse | None:
    """Whether the last of these epochs shows a collapse of any learner: too many skip connections, mixtures without entropy, or a
    rising eigenvalue."""
    learners = range(len(rows[-1]["genotypes"]))
    for k in learners:
        share = _skip_share(rows[-1], k)
        if share > _most_skips(rows[-1], k):
            fine = [row["epoch"] for row in rows if _skip_share(row, k) <= _most_skips(row, k)]
            good = max(fine, default=rows[0]["epoch"])
            return Collapse(f"{100 * share:.0f} % of the operations of learner {k} are skip connections", good)
        share = _entropy_share(rows[-1], k)
        if share < LEAST_ENTROPY:
            good = max((row["epoch"] for row in rows if _entropy_share(row, k) >= LEAST_ENTROPY), default=rows[0]["epoch"])
            return Collapse(f"learner {k} can hardly change any more: its mixtures have {100 * share:.0f} % of their largest entropy", good)
    if not rows[-1].get("eigenvalues"):
        return None
    for k in learners:
        stage = [row for row in rows if row.get("eigenvalues") and _candidates(row, k) == _candidates(rows[-1], k)]
        good = rising([(row["epoch"], row["eigenvalues"][k]) for row in stage])
        if good is not None:
            return Collapse(f"the dominant eigenvalue of learner {k}'s architecture Hessian rises", good)
    return None


def rising(values: Sequence[tuple[int, float]]) -> int | None:
    """The epoch to return to when the last of these (epoch, eigenvalue) shows a rise by more than `FACTOR`, else None.

    Compares the mean of the last `WINDOW` values with that of `DELTA` measurements earlier.
    """
    averages = [
        (values[i][0], sum(value for _, value in values[max(0, i - WINDOW + 1) : i + 1]) / min(WINDOW, i + 1))
        for i in range(2, len(values))
    ]
    if len(averages) <= DELTA:
        return None
    (then, before), (_, now) = averages[-1 - DELTA], averages[-1]
    middle = WINDOW // 2  # the average stands for the epoch of the value in the middle of its window
    good = values[max(0, [at for at, _ in values].index(then) - middle)][0]
    return good if good >= START and before > 0 and now / before > FACTOR else None


def _skip_share(row: dict[str, Any], learner: int) -> float:
    return architecture_from_json(row["genotypes"][learner]).skip_share


def _most_skips(row: dict[str, Any], learner: int) -> float:
    """Half-way between the share of skip connections in a random architecture of the space and 1: in S2 every second one is."""
    edges = _candidates(row, learner)
    chance = sum("skip_connect" in names and 1 / len(set(names) - {"none"}) for names in edges) / len(edges)
    return (1 + chance) / 2


def _entropy_share(row: dict[str, Any], learner: int) -> float:
    """Entropy of the mixtures as a share of that of equal weights."""
    edges = _candidates(row, learner)
    largest = sum(math.log(len(names)) for names in edges) / len(edges)
    return row["entropy"][learner] / largest if largest else 1.0


def _candidates(row: dict[str, Any], learner: int) -> list[list[str]]:
    """The operations of each edge: other ones in each stage of a search."""
    return [list(names) for cell in row["operations"].values() for names in cell[learner]]
