"""Gradients through the reward, against finite differences and against sums that can be written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import laws
from objectives.test_steps import at, batch, slope

from burnish.core import Scorer
from burnish.formulas.matching import noised
from burnish.objectives.refl import ReFL
from burnish.objectives.reward_gradient import RewardGradient
from burnish.types import Scores


class Linear(Scorer):
    """A linear functional of the picture; the first `missing` pictures have no score."""

    def __init__(self, missing: int = 0) -> None:
        self.weight = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.missing = missing

    def __call__(self, images, prompts) -> Scores:
        value = (images * self.weight).sum((1, 2, 3))
        return Scores.of("linear", torch.where(torch.arange(len(images)) < self.missing, torch.nan, value))


def drawn():
    policy = laws.denoiser({}, 0.0)
    return policy, batch(at(policy, laws.drawn_steps()))


@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_gradient_is_the_difference_that_the_weights_make(last):
    policy, of = drawn()
    value = lambda: RewardGradient(last=last).loss(of, policy, Linear()).total  # noqa: E731
    found, differences = slope(value(), policy), []
    for _, weight in policy.parameters():
        flat = weight.data.view(-1)
        for i in range(len(flat)):
            ends = []
            for sign in (1, -1):
                flat[i] += sign * 1e-5
                ends.append(value().item())
                flat[i] -= sign * 1e-5
            differences.append((ends[0] - ends[1]) / 2e-5)
    torch.testing.assert_close(found, torch.tensor(differences, dtype=torch.float64), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("last", [1, 3])
def test_where_it_drew_it_is_the_same_picture(last):
    policy, of = drawn()
    again = RewardGradient(last=last)._drawn_again(of, policy)
    torch.testing.assert_close(again, of.rollout.final, atol=1e-5, rtol=1e-5)


def test_one_step_is_the_last_with_its_input_detached():
    policy, of = drawn()
    known, plan = of.rollout.decisions[0], of.rollout.plan
    t = torch.full((12,), 0.25, dtype=torch.float64)
    v = policy.velocity(known.before[:, 2], t.float(), of.rollout.prompts)
    mean, _ = plan.transition.move(known.before[:, 2], v, t, 0 * t)
    x = mean + known.after[:, 2] - known.mean[:, 2]
    expected = -Linear()(policy.decode(x), ()).total.mean()
    found = RewardGradient(last=1).loss(of, policy, Linear())
    torch.testing.assert_close(slope(found, policy), slope(expected, policy))


def test_refl_by_its_definition():
    policy, of = drawn()
    some = noised(of.rollout, 3, "steps", policy.times(4)[-3:])
    assert set(some.t.tolist()) == {0.25, 0.5}
    x = some.x - some.t.double().view(-1, 1, 1, 1) * policy.velocity(some.x, some.t, some.prompts)
    reward = Linear()(policy.decode(x), ()).total
    middle = float(reward.mean().detach())
    plain, bound = ReFL(last=2, draws=3), ReFL(last=2, draws=3, enough=middle, weight=0.1)
    torch.testing.assert_close(slope(plain.loss(of, policy, Linear()), policy), slope(-reward.mean(), policy))
    expected = 0.1 * ((middle - reward) * (reward < middle)).mean()
    torch.testing.assert_close(slope(bound.loss(of, policy, Linear()), policy), slope(expected, policy))
    done = replace(bound, enough=float(reward.min()) - 1)
    assert slope(done.loss(of, policy, Linear()), policy).abs().max() == 0


@pytest.mark.parametrize("objective", [RewardGradient(), ReFL(draws=1)])
def test_a_missing_score_has_no_gradient(objective):
    policy, of = drawn()
    loss = objective.loss(of, policy, Linear(missing=3))
    rest = replace(of, keep=torch.arange(12) >= 3)
    expected = objective.loss(rest, policy, Linear())
    assert loss.count == expected.count == 9
    torch.testing.assert_close(slope(loss, policy), slope(expected, policy))


def test_a_state_that_was_not_recorded_is_explained():
    policy, of = drawn()
    with pytest.raises(ValueError, match=r"begins at step 0"):
        RewardGradient(last=4).loss(of, policy, Linear())
    for kind in (RewardGradient, ReFL):
        with pytest.raises(ValueError, match="last"):
            kind(last=0)
