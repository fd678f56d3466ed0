"""Groups of rows of a batch."""

from __future__ import annotations

import pytest
import torch

from pamkd.data.groups import sample_groups


def test_groups_are_distinct_fixed_and_even():
    x, y = sample_groups(11, 3, 4000, seed=9)
    rows = torch.cat([x, y], 1)
    assert all(len(set(line)) == 6 for line in rows[:200].tolist())
    share = rows.reshape(-1).bincount(minlength=11) / rows.numel()
    assert (share - 1 / 11).abs().max() < 0.01  # 24,000 draws: a standard deviation is 0.0019
    for place in range(6):
        assert (rows[:, place].bincount(minlength=11) / 4000 - 1 / 11).abs().max() < 0.025
    assert torch.equal(sample_groups(11, 3, 4000, seed=9)[1], y) and not torch.equal(sample_groups(11, 3, 4000, seed=10)[1], y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((9, 5, 3), "a batch of 9 images is too small"), ((9, 1, 3), "group_size is 1"), ((9, 2, 0), "pairs is 0")],
)
def test_impossible_groups(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_groups(*arguments, seed=0)
