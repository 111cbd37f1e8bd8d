"""Intervals: numbers worked by hand, and whether 95 % means 95 %."""

from __future__ import annotations

import math

import numpy as np
import pytest

from burnish.formulas.statistics import Interval, mean_interval, paired_difference


def test_constant_differences_have_an_interval_of_no_width() -> None:
    found = paired_difference(np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.5, 2.5]))
    assert found == Interval(0.5, 0.5, 0.5, 3)
    assert found.verdict() == "better" and found.verdict(lower_is_better=True) == "worse"


def test_two_clusters_by_hand() -> None:
    # Means drawn: 0 with chance 1/4, 1 with 1/2, 2 with 1/4. The 2.5 % and 97.5 % points are 0 and 2.
    found = mean_interval(np.array([0.0, 0.0, 2.0, 2.0]), np.array([7, 7, 3, 3]))
    assert found == Interval(1.0, 0.0, 2.0, 2)
    assert found.verdict() == "not distinguishable"


def test_clusters_weigh_by_their_samples() -> None:
    # Cluster a: 3 samples of 0; b: 1 sample of 4. The mean is over samples, 1, and not over clusters, 2.
    found = mean_interval(np.array([0.0, 0.0, 0.0, 4.0]), np.array([0, 0, 0, 1]))
    assert (found.mean, found.low, found.high) == (1.0, 0.0, 4.0)


def test_what_is_not_known_is_left_out_in_pairs() -> None:
    before, after = np.array([0.0, np.nan, 1.0, 5.0]), np.array([1.0, 9.0, 2.0, np.nan])
    assert paired_difference(before, after) == Interval(1.0, 1.0, 1.0, 2)


def test_too_little_to_say() -> None:
    for values in ([], [3.0], [np.nan, 3.0]):
        found = mean_interval(np.array(values))
        assert math.isnan(found.low) and found.verdict() == "not distinguishable"
    one = mean_interval(np.array([1.0, 2.0, 3.0]), np.array([4, 4, 4]))
    assert one.mean == 2.0 and math.isnan(one.low), "one prompt, however often it is asked, is one question"


def test_lists_that_are_not_pairs() -> None:
    with pytest.raises(ValueError, match="3 values before and 2 after"):
        paired_difference(np.zeros(3), np.zeros(2))


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values) == mean_interval(values.copy())


def test_agrees_with_the_normal_interval_where_that_is_right() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found, error = mean_interval(values), 1.96 * values.std(ddof=1) / 20
    assert abs((found.high - found.low) / 2 / error - 1) < 0.06


@pytest.mark.slow
def test_ninety_five_percent_is_about_that_when_samples_share_prompts() -> None:
    """40 prompts of 8 samples, half of the variance between prompts: who forgets them covers far too little."""
    random = np.random.default_rng(2)
    cluster = np.repeat(np.arange(40), 8)
    hits, forgetful, trials = 0, 0, 200
    for _ in range(trials):
        values = 0.3 + random.normal(size=40)[cluster] + random.normal(size=320)
        found = mean_interval(values, cluster)
        hits += found.low <= 0.3 <= found.high
        forgetful += abs(values.mean() - 0.3) < 1.96 * values.std() / np.sqrt(320)
    assert 0.90 <= hits / trials <= 0.985
    assert forgetful / trials < 0.8
