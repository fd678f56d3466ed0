"""The two halves of a training set."""

from __future__ import annotations

import pytest
import torch

from pamkd.data import halves


@pytest.mark.parametrize("portion", [0.5, 0.3, (0.1, 0.025)])
def test_halves_are_disjoint_stratified_and_fixed(portion):
    labels = torch.arange(4000) % 7
    first, second = halves(labels, 3, portion)
    shares = portion if isinstance(portion, tuple) else (portion, 1 - portion)
    assert [len(first), len(second)] == [pytest.approx(4000 * share, abs=1) for share in shares]
    assert not set(first.tolist()) & set(second.tolist())
    for part, share in zip((first, second), shares, strict=True):
        assert (labels[part].bincount() - share * labels.bincount()).abs().max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(halves(labels, 3, portion), (first, second), strict=True))
    assert not torch.equal(halves(labels, 4, portion)[0], first)


@pytest.mark.parametrize(
    ("count", "portion", "message"),
    [
        (10, 1.0, "needed are positive numbers"),
        (10, (0.7, 0.4), "of sum 1 at most"),
        (1, 0.5, "1 images cannot be cut"),
        (20, (0.1, 0.02), "would be empty"),
    ],
)
def test_impossible_halves(count, portion, message):
    with pytest.raises(ValueError, match=message):
        halves(torch.zeros(count), 0, portion)
