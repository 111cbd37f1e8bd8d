"""ReFL from the state that a plan kept: one cleaning, by its definition, and beside samples that are noised again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objectives.test_reward_gradient import WIDTH, Gaussians, Linear, Near, check_differences, drawn_along_the_ode
from objectives.test_steps import batch, slope
from toy_denoiser import ToyFlow, asked

from burnish.core import LatentPlan
from burnish.formulas.noise import Noise
from burnish.models.denoiser import DenoisingPolicy
from burnish.objectives.refl import ReFL
from burnish.types import Prompt, take

STOPPED = ReFL(last=0, draws=1)


def drawn(waypoint: int):
    """Four steps with guidance 2, in float64: the policy, a batch, and the reward of what is promised there."""
    policy, of = drawn_along_the_ode(waypoint)
    of = replace(of, rollout=replace(of.rollout, plan=replace(of.rollout.plan, guidance=2.0)))
    t = 1 - waypoint / 4
    v = policy.velocity(of.rollout.waypoint, torch.full((12,), t), of.rollout.prompts, 2.0)
    return policy, of, Linear()(policy.decode(of.rollout.waypoint - t * v), ()).total


@pytest.mark.parametrize("waypoint", [0, 1, 3])
def test_it_is_one_cleaning_of_the_state_that_the_plan_kept(waypoint):
    policy, of, reward = drawn(waypoint)
    loss = STOPPED.loss(of, policy, Linear())
    torch.testing.assert_close(slope(loss, policy), slope(-reward.mean(), policy))
    told = loss.metrics["reward"]
    assert float(told.total / told.count) == pytest.approx(reward.mean().item())
    middle = float(reward.mean().detach())
    bound = replace(STOPPED, enough=middle, weight=0.001)
    expected = slope(0.001 * ((middle - reward) * (reward < middle)).mean(), policy)
    torch.testing.assert_close(slope(bound.loss(of, policy, Linear()), policy), expected)


@pytest.mark.parametrize("waypoint", [0, 1, 3])
def test_the_gradient_is_the_difference_that_the_weights_make_there(waypoint):
    policy, of, _ = drawn(waypoint)
    check_differences(lambda: STOPPED.loss(of, policy, Linear()).total, policy)


def test_nothing_before_the_waypoint_has_a_gradient():
    """Drawn by the policy that is trained: the steps before it depend on its weights, and are not differentiated."""
    policy = ToyFlow(shape=(2, 2, 2), prompts=3).load(torch.device("cpu"))
    noise = Noise(3, 0, tuple(range(12)))
    start, plan = (LatentPlan(group=4, steps=4, waypoint=i) for i in (0, 2))
    begun, rollout = (policy.sample(asked(4, prompts=3), p, noise) for p in (start, plan))

    def promised(before: bool) -> torch.Tensor:
        """The loss, from the noise on: two steps, with their gradient or without, and one cleaning at 1/2."""
        x = begun.waypoint
        for t in (1.0, 0.75):
            x = x - 0.25 * policy.velocity(x, torch.full((12,), t), rollout.prompts)
        x = x if before else x.detach()
        x = x - 0.5 * policy.velocity(x, torch.full((12,), 0.5), rollout.prompts)
        return -Linear()(policy.decode(x), ()).total.mean()

    before = policy.network.evaluations
    found = slope(STOPPED.loss(batch(rollout), policy, Linear()), policy)
    assert policy.network.evaluations - before == 12
    torch.testing.assert_close(found, slope(promised(False), policy))
    assert (found - slope(promised(True), policy)).abs().max() > 1e-2


def test_samples_may_come_in_any_order_and_in_parts():
    policy, of, _ = drawn(1)
    whole = STOPPED.loss(of, policy, Linear())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    parts = [STOPPED.loss(take(of, some), policy, Linear()) for some in order.split(5)]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(part.count for part in parts) == whole.count == 12


def test_a_missing_score_counts_for_nothing():
    policy, of, reward = drawn(1)
    loss = STOPPED.loss(of, policy, Linear(missing=3))
    assert loss.count == 9
    torch.testing.assert_close(slope(loss, policy), slope(-reward[3:].mean(), policy))


def gaussians(count: int, width: float, plan: LatentPlan):
    policy = DenoisingPolicy(Gaussians(count, width))
    policy.network.centres.data = torch.linspace(-1, 1, count).view(-1, 1, 1, 1)
    numbered = [Prompt(str(i), "", {"number": i}) for i in range(count)]
    return policy, batch(policy.sample(numbered, plan, Noise(0, 0, tuple(range(count)))))


@pytest.mark.parametrize("waypoint", [5, 7, 9])
def test_of_a_single_point_both_promise_that_point(waypoint):
    """Its flow goes straight, and Euler's steps keep to it: x = (1 - t) c + t noise, and x - t v = c from any."""
    policy, of = gaussians(50, 0.0, LatentPlan(group=1, steps=10, waypoint=waypoint))
    c = policy.network.centres.detach().flatten()
    expected = 2 * (c - 2) / 50  # of the mean of (c - 2)^2
    for objective in (STOPPED, ReFL(last=5, draws=3)):
        found = slope(objective.loss(of, policy, Near()), policy)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_where_the_sampler_keeps_the_law_of_the_flow_so_do_gradients():
    """Of N(c, 1/4), in 90 small steps to t = 1/4 and a last one from there: what is noised again to 1/4 is of the law
    that the draw has there, and gradients of many samples are alike in mean and variance."""
    plan = LatentPlan(group=1, steps=91, waypoint=90, grid=(*range(91), 100))
    policy, of = gaussians(20_000, WIDTH, plan)
    final = 0.5 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)) + policy.network.centres.flatten()
    of = replace(of, rollout=replace(of.rollout, final=final.detach().view(-1, 1, 1, 1)))  # the law itself
    stopped, again = (20_000 * slope(o.loss(of, policy, Near()), policy) for o in (STOPPED, ReFL(draws=1)))
    assert abs(float(stopped.mean() - again.mean())) < 4 * float((stopped.var() + again.var()) / 20_000) ** 0.5
    assert float(stopped.var()) == pytest.approx(float(again.var()), rel=0.05)


def test_what_it_cannot_begin_from_is_explained():
    policy, of = drawn_along_the_ode(None)
    with pytest.raises(ValueError, match="last: 0 cleans the state at the plan's waypoint, and this plan has none"):
        STOPPED.loss(of, policy, Linear())
    with pytest.raises(ValueError, match="draws: with last 0 a sample has one state, which the plan kept: must be 1"):
        ReFL(last=0)
    with pytest.raises(ValueError, match="last: must be 1 or more, or 0 for the state at the plan's waypoint, not -1"):
        ReFL(last=-1)
