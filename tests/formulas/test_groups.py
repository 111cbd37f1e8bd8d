from __future__ import annotations

import math

import torch

from burnish.formulas.groups import flat, group_centred, group_count, group_mean, group_std, leave_one_out

NAN = math.nan
VALUES = torch.tensor([1.0, 10.0, 3.0, NAN, 5.0, 10.0, 4.0, NAN])
GROUP = torch.tensor([7, 2, 7, 7, 7, 2, 40, 9])
VALID = torch.tensor([True, True, True, False, True, True, True, False])


def test_statistics_by_hand():
    """Group 7: 1, 3, 5 and an invalid one. Group 2: 10, 10. Group 40: one alone. Group 9: nothing valid."""
    assert group_count(GROUP, VALID).tolist() == [3, 2, 3, 3, 3, 2, 1, 0]
    assert group_mean(VALUES, GROUP, VALID).tolist() == [3.0, 10.0, 3.0, 3.0, 3.0, 10.0, 4.0, 0.0]
    assert group_std(VALUES, GROUP, VALID).tolist() == [2.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]
    assert group_centred(VALUES, GROUP, VALID).tolist() == [-2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    assert leave_one_out(VALUES, GROUP, VALID).tolist() == [-3.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0]
    assert flat(VALUES, GROUP, VALID).tolist() == [False, True, False, False, False, True, True, True]


def test_leave_one_out_is_the_mean_of_the_others():
    """Section 1, test (c), against a loop."""
    values, group = torch.randn(5, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
    valid = torch.ones(5, dtype=torch.bool)
    found = leave_one_out(values, group, valid)
    for i in range(5):
        others = values[[j for j in range(5) if j != i]]
        torch.testing.assert_close(found[i], values[i] - others.mean())
    torch.testing.assert_close(found, 5 / 4 * group_centred(values, group, valid))


def test_equal_scores_have_exactly_no_spread():
    """In float32 the mean of three times 0.1 is not 0.1."""
    values = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.7])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    valid = torch.ones(7, dtype=torch.bool)
    assert group_centred(values, group, valid).abs().max() == 0
    assert group_std(values, group, valid).abs().max() == 0
    assert flat(values, group, valid).all()


def test_an_empty_batch_has_empty_statistics():
    none = torch.zeros(0)
    assert group_std(none, none.long(), none.bool()).shape == (0,)
    assert flat(none, none.long(), none.bool()).shape == (0,)
