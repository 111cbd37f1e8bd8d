"""What a step adds to the value of a state, by hand, and against the equation it stands for."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.formulas import gaussian, values


def exact(*numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_the_value_is_the_reward_at_the_end():
    skip, out = values.shares(exact(0.0, 0.5, 1.0))
    torch.testing.assert_close(skip, exact(1.0, math.sqrt(0.5), 0.0))
    torch.testing.assert_close(out, exact(0.0, math.sqrt(0.5), 1.0))


def test_what_was_to_come_and_what_a_step_adds_by_hand():
    """Reward 1, costs 0.1 and 0.2, values 0.5 and 0.6: 0.7 and 0.8 to come; 0.6 - 0.5 - 0.1 and 1 - 0.6 - 0.2."""
    final, cost, value = exact(1.0), exact([0.1, 0.2]), exact([0.5, 0.6])
    torch.testing.assert_close(values.to_go(final, cost), exact([0.7, 0.8]))
    torch.testing.assert_close(values.added(value, final, cost), exact([0.0, 0.2]))


def test_steps_add_up_to_the_return():
    random = torch.Generator().manual_seed(0)
    value, cost = (torch.randn(5, 7, generator=random, dtype=torch.float64) for _ in range(2))
    final = torch.randn(5, generator=random, dtype=torch.float64)
    returned = values.to_go(final, cost)[:, 0]
    torch.testing.assert_close(values.added(value, final, cost).sum(1), returned - value[:, 0])


def test_straying_by_hand():
    """0.3 from the reference's mean, noise 0.6: 0.09 / (2 x 0.36) = 0.125, whatever the deviation it was drawn with."""
    for std in (0.1, 2.0):
        logp = gaussian.logp(exact([0.3, -0.3]), exact([0.0, 0.0]), exact(std))
        found = values.strayed(logp.view(1, 1), exact([std]), exact([0.6]))
        assert found.item() == pytest.approx(0.125)
