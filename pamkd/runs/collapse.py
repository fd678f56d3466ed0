"""Signs that a search collapses, read from the rows of its epochs; so a continued search judges as an undisturbed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pamkd.spaces.architecture import architecture_from_json

WINDOW, FACTOR, DELTA, START = 5, 1.3, 4, 10  # of the rule of Zela et al. 2020 for the dominant eigenvalue


class Collapse(NamedTuple):
    reason: str
    good_epoch: int  # the last whose genotypes are to be trusted


def judge(rows: Sequence[dict[str, Any]]) -> Collapse | None:
    """Whether the last of these epochs shows a collapse of any learner: too many skip connections, or a rising eigenvalue."""
    epoch = rows[-1]["epoch"]
    for k, genotype in enumerate(rows[-1]["genotypes"]):
        share = architecture_from_json(genotype).skip_share
        if share > 0.5:
            return Collapse(f"{100 * share:.0f} % of the operations of learner {k} are skip connections", _before_skips(rows, k))
    measured = [(row["epoch"], row["eigenvalues"]) for row in rows if row.get("eigenvalues")]
    if not measured or measured[-1][0] != epoch:
        return None
    for k in range(len(rows[-1]["genotypes"])):
        good = rising([(at, values[k]) for at, values in measured])
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


def _before_skips(rows: Sequence[dict[str, Any]], learner: int) -> int:
    fine = [row["epoch"] for row in rows if architecture_from_json(row["genotypes"][learner]).skip_share <= 0.5]
    return max(fine, default=rows[0]["epoch"])
