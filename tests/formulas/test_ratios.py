from __future__ import annotations

import math

import pytest
import torch

from burnish.formulas.ratios import (
    capped_ratio,
    clipped,
    clipped_surrogate,
    log_ratio,
    sequence_log_ratio,
    sequence_ratio_per_token,
)


@pytest.mark.parametrize("ratio, advantage, loss", [
    (1.0, 2.0, -2.0),
    (1.5, 2.0, -2.56),  # clipped at 1.28
    (0.5, 2.0, -1.0),  # moving back is never clipped
    (0.5, -2.0, 1.6),  # clipped at 0.8
    (1.5, -2.0, 3.0),
    (9.0, -2.0, 18.0),
])  # fmt: skip
def test_clipped_surrogate_by_hand(ratio, advantage, loss):
    found = clipped_surrogate(torch.tensor([[ratio]]), torch.tensor([[advantage]]), 0.2, 0.28)
    assert found.item() == pytest.approx(loss)


def test_dual_clip_bounds_only_negative_advantages():
    ratio = torch.tensor([[9.0, 2.0, 9.0]])
    advantage = torch.tensor([[-2.0, -2.0, 2.0]])
    found = clipped_surrogate(ratio, advantage, 0.2, 0.2, dual=3.0)
    torch.testing.assert_close(found, torch.tensor([[6.0, 4.0, -2.4]]))


def test_gradient_is_zero_exactly_where_clipped_says_so():
    ratio = torch.tensor([[0.5, 0.5, 1.0, 1.5, 1.5]], requires_grad=True)
    advantage = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0]])
    low, high = clipped(ratio, advantage, 0.2, 0.2)
    assert low.tolist() == [[False, True, False, False, False]]
    assert high.tolist() == [[False, False, False, True, False]]
    (grad,) = torch.autograd.grad(clipped_surrogate(ratio, advantage, 0.2, 0.2).sum(), [ratio])
    assert grad.tolist() == [[-1.0, 0.0, -1.0, 0.0, 1.0]]


def test_sequence_ratio_is_the_geometric_mean():
    gap = torch.tensor([[2.0, 8.0, 99.0]]).log().double()
    weight = torch.tensor([[1.0, 1.0, 0.0]]).double()
    assert sequence_log_ratio(gap, weight).exp().item() == pytest.approx(4.0)
    assert sequence_log_ratio(gap, torch.zeros(1, 3).double()).item() == 0.0


def test_gspo_token_has_the_value_of_the_sequence_and_the_gradient_of_the_token():
    gap = torch.tensor([[2.0, 8.0]]).log().requires_grad_()
    ratio = sequence_ratio_per_token(gap, torch.ones(1, 2))
    torch.testing.assert_close(ratio.detach(), torch.tensor([[4.0, 4.0]]))
    (grad,) = torch.autograd.grad(ratio[0, 0], [gap])
    torch.testing.assert_close(grad, torch.tensor([[4.0, 0.0]]))


def test_log_ratio_is_bounded_and_blind_to_what_does_not_count():
    logp = torch.tensor([[0.0, -1.0, -1000.0, math.nan]], requires_grad=True)
    old = torch.tensor([[-500.0, -2.0, -1.0, 0.0]])
    gap = log_ratio(logp, old, torch.tensor([[True, True, True, False]]))
    assert gap.tolist() == [[20.0, 1.0, -20.0, 0.0]]
    (grad,) = torch.autograd.grad(gap.sum(), [logp])
    assert grad.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_capped_ratio_has_no_gradient():
    found = capped_ratio(torch.tensor([[0.5, 3.0]], requires_grad=True), 2.0)
    assert found.tolist() == [[0.5, 2.0]] and not found.requires_grad
