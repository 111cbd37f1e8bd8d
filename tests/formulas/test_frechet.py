"""Closed forms and hand numbers for the distances between sets of features."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.formulas.frechet import coverage, frechet_distance, inception_score, moments


def test_moments_by_hand():
    mean, cov = moments(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert cov.tolist() == [[2.0, 4.0], [4.0, 8.0]]  # divided by n - 1 = 1


def test_one_dimension_is_difference_of_means_and_deviations():
    # (3 - 1)^2 + (sqrt 9 - sqrt 4)^2 = 4 + 1
    d = frechet_distance(torch.tensor([3.0]), torch.tensor([[9.0]]), torch.tensor([1.0]), torch.tensor([[4.0]]))
    assert d == pytest.approx(5.0)


def test_diagonal_covariances_add_up():
    a, b = torch.diag(torch.tensor([1.0, 16.0, 0.0])), torch.diag(torch.tensor([4.0, 9.0, 25.0]))
    d = frechet_distance(torch.zeros(3), a, torch.tensor([1.0, 0.0, 2.0]), b)
    assert d == pytest.approx(5 + 1 + 1 + 25)


def test_covariances_that_do_not_commute_against_scipy():
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(5, 5, generator=generator).double() for _ in range(2))
    a, b = x @ x.T, y @ y.T
    mean_a, mean_b = torch.arange(5.0), torch.ones(5)
    expected = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * sqrtm((a @ b).numpy()).real.trace()
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(float(expected), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_zero_for_equal_and_symmetric_and_unmoved_by_rotation(seed):
    generator = torch.Generator().manual_seed(seed)
    a = moments(torch.randn(6, 4, generator=generator))
    b = moments(torch.randn(3, 4, generator=generator) * 2)  # three rows: a singular covariance
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q
    turned = [(turn @ mean, turn @ cov @ turn.T) for mean, cov in (a, b)]
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), rel=1e-6)
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*turned[0], *turned[1]), rel=1e-5)


def test_coverage_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0]])  # nearest neighbours at 1, 1 and 2: balls [-1, 1], [0, 2] and [1, 5]
    fake = torch.tensor([[-1.5], [-0.5], [1.9], [5.0], [5.1]])
    assert coverage(fake, real, k=1).tolist() == [0, 1, 1, 1, 0]
    # second neighbours at 3, 2 and 3: balls [-3, 3], [-1, 3] and [0, 6]
    assert coverage(torch.tensor([[-3.1], [-3.0], [6.0], [6.1]]), real, k=2).tolist() == [0, 1, 1, 0]


def test_precision_without_recall_is_a_collapsed_sampler():
    real = torch.arange(20.0)[:, None]
    collapsed = torch.linspace(4.0, 4.2, 20)[:, None]
    assert coverage(collapsed, real).mean() == 1
    assert coverage(real, collapsed).mean() == pytest.approx(1 / 20)


def test_coverage_needs_a_neighbour():
    with pytest.raises(ValueError, match="3-th neighbour of a set of 3"):
        coverage(torch.zeros(2, 1), torch.zeros(3, 1), k=3)


def test_inception_score_by_hand():
    assert inception_score(torch.eye(4)) == pytest.approx(4)  # sure and varied
    assert inception_score(torch.full((5, 4), 0.25)) == pytest.approx(1)  # unsure
    assert inception_score(torch.eye(4)[[2, 2, 2]]) == pytest.approx(1)  # sure, of one class
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75]])  # KL to (1/2, 1/2) = ln 2 - H(1/4)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert inception_score(p) == pytest.approx(math.exp(math.log(2) - entropy))


def test_inception_score_wants_distributions():
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(torch.ones(3, 4))
