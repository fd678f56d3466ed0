"""Cells as graphs: every edge of the genotype is there, and nothing is drawn over something else."""

from __future__ import annotations

import itertools

import pytest

from pamkd.report import cells
from pamkd.report.charts import ticks
from pamkd.spaces.genotype import PUBLISHED

ALL = [(getattr(genotype, kind), getattr(genotype, f"{kind}_concat")) for genotype in PUBLISHED.values() for kind in ("normal", "reduce")]
WIDE = ([("sep_conv_3x3", 0), ("dil_conv_5x5", 1)] * 4, range(2, 6))
CHAIN = ([("skip_connect", 0), ("skip_connect", 1), *[(op, s) for s in range(2, 7) for op, s in (("none", 0), ("none", s))]], [7])


@pytest.mark.parametrize("genes, concat", [*ALL, WIDE, CHAIN])
def test_graph(genes, concat):
    ranks, edges = cells._graph(genes, concat)
    order = cells._order(ranks, edges)
    assert [set(rank) for rank in order] == [set(rank) for rank in ranks]
    assert all(b[2] == a[2] + 1 for a, b, _ in edges)

    def source(item):
        above = [(a, state) for a, b, state in edges if b == item]
        assert len(above) == 1
        return above[0][1] if above[0][0][0] == "state" else source(above[0][0])

    for i, (_, state) in enumerate(genes):
        (box,) = [item for rank in ranks for item in rank if item[:2] == ("op", i)]
        assert source(box) == state
        assert [b[1] for a, b, _ in edges if a == box] == [i // 2 + 2]
    assert sorted(state for _, b, state in edges if b[0] == "out") == sorted(concat)

    place = cells._coordinates(order, edges)
    for rank in order:
        for left, right in itertools.pairwise(rank):
            assert place[right] - place[left] >= (cells._width(left) + cells._width(right)) / 2 + cells.SEPARATION - 1e-6


def test_isotonic():
    """Least squares under x0 <= x1 <= x2 in closed form."""
    assert cells._isotonic([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == [1.0, 2.0, 3.0]
    assert cells._isotonic([3.0, 1.0, 5.0], [1.0, 3.0, 1.0]) == [1.5, 1.5, 5.0]
    assert cells._isotonic([6.0, 3.0, 0.0], [1.0, 1.0, 1.0]) == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    "low, high, count, whole, expected",
    [
        (0, 1, 5, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1, 6, True, [0, 1]),
        (0, 600, 6, True, [0, 100, 200, 300, 400, 500, 600]),
        (-3, 7, 5, False, [-2, 0, 2, 4, 6]),
    ],
)
def test_ticks(low, high, count, whole, expected):
    assert ticks(low, high, count, whole=whole) == pytest.approx(expected)
