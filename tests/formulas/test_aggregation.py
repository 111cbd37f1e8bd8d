from __future__ import annotations

import pytest
import torch

from burnish.formulas.aggregation import aggregate, token_mean

VALUES = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 7.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
WEIGHT = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
KEEP = torch.tensor([True, True, False])


@pytest.mark.parametrize("name, length, total, count", [
    ("token", 0, 24.0, 6.0),
    ("sequence", 0, 3.0 + 6.0, 2.0),
    ("constant", 0, 24.0, 8.0),
    ("constant", 16, 24.0, 32.0),
    ("constant", 1, 24.0, 2.0),
    ("local", 0, 4.0, 1.0),
])  # fmt: skip
def test_aggregations_by_hand(name, length, total, count):
    found = aggregate(name, VALUES, WEIGHT, KEEP, length)
    assert (found[0].item(), found[1].item()) == (total, count)


@pytest.mark.parametrize("name", ["token", "sequence", "constant", "local"])
def test_nothing_kept_is_a_zero_sum_and_no_count(name):
    total, count = aggregate(name, VALUES, WEIGHT, torch.zeros(3, dtype=torch.bool))
    assert (total.item(), count.item()) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["token", "sequence", "constant", "local"])
def test_what_stands_on_padding_and_on_dropped_samples_has_no_say(name):
    spoiled = VALUES.clone()
    spoiled[2], spoiled[1, 2:] = torch.nan, torch.inf
    spoiled.requires_grad_()
    total, count = aggregate(name, spoiled, WEIGHT, KEEP)
    assert (total, count) == aggregate(name, VALUES, WEIGHT, KEEP)
    (grad,) = torch.autograd.grad(total, [spoiled])
    assert torch.isfinite(grad).all() and grad[2].abs().sum() == 0 and grad[1, 2:].abs().sum() == 0


@pytest.mark.parametrize("name, halves", [("sequence", True), ("token", False), ("constant", False)])
def test_doubling_one_sequence_halves_the_weight_of_its_tokens_per_sequence_only(name, halves):
    """Section 1, test (d): weight of the second sequence's tokens relative to the first's."""

    def relative(weight: torch.Tensor) -> float:
        values = torch.ones(2, 4, requires_grad=True)
        total, count = aggregate(name, values, weight, torch.tensor([True, True]))
        (grad,) = torch.autograd.grad(total / count, [values])
        return (grad[1, 0] / grad[0, 0]).item()

    short = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    doubled = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert relative(doubled) / relative(short) == (0.5 if halves else 1.0)


def test_a_metric_is_the_mean_over_what_counts():
    mean = token_mean(VALUES, WEIGHT, KEEP)
    assert mean.total.item() / mean.count.item() == 4.0
    shared = token_mean(torch.tensor([[2.0], [8.0], [99.0]]), WEIGHT, KEEP)  # one value a sequence
    assert shared.total.item() / shared.count.item() == 4.0
