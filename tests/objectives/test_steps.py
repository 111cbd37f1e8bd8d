"""Objectives on the steps of a denoiser, against sums that can be written down."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import laws
from toy_denoiser import ToyFlow, asked

from burnish.core import Denoiser, LatentPlan, Transition
from burnish.formulas import steps
from burnish.formulas.noise import Noise
from burnish.objectives.dpok import DPOK
from burnish.objectives.grpo_guard import GRPOGuard
from burnish.objectives.pcpo import PCPO
from burnish.objectives.rebel import REBEL
from burnish.objectives.reinforce import Reinforce
from burnish.objectives.score_function import ScoreFunction
from burnish.objectives.step_clip import StepClip
from burnish.transitions.consistency import Consistency
from burnish.transitions.cps import CPS
from burnish.transitions.ddim import DDIM
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Batch, Loss, Rollout, Scores, take

OWN = Reinforce(aggregation="token")  # -A log p, mean over steps


def at(policy: Denoiser, rollout: Rollout) -> Rollout:
    """As if `policy` had drawn it, to the last bit of float64."""
    with torch.no_grad():
        now = policy.score(rollout)
    return replace(rollout, decisions=(replace(rollout.decisions[0], logp=now.logp, mean=now.mean, std=now.std),))


def drawn_by(transition: Transition) -> Rollout:
    """Two steps of four, from 3/4 to 1/2 to 1/4, recorded in float64."""
    plan = LatentPlan(group=4, steps=4, stochastic=(1, 2), transition=transition)
    old = ToyFlow(shape=(2, 2, 2), prompts=3).load(torch.device("cpu"))
    rollout = old.sample(asked(4, prompts=3), plan, Noise(3, 0, tuple(range(12))))
    return at(laws.denoiser({}, 0.0), laws.exactly(rollout))


def batch(rollout: Rollout, advantage: torch.Tensor | None = None) -> Batch:
    if advantage is None:
        advantage = torch.linspace(-2.0, 3.0, len(rollout), dtype=torch.float64)
    keep = torch.ones(len(rollout), dtype=torch.bool)
    return Batch(rollout, Scores(advantage, {"one": advantage}, keep), advantage, keep)


def first(objective) -> tuple[Denoiser, Batch]:
    policy = laws.denoiser(dict(objective.needs().copies), moved=0.0)
    return policy, batch(at(policy, laws.drawn_steps()))


def slope(loss: Loss | torch.Tensor, policy: Denoiser) -> torch.Tensor:
    value = loss.total / loss.count if isinstance(loss, Loss) else loss
    parts = torch.autograd.grad(value, [p for _, p in policy.parameters()], retain_graph=True)
    return torch.cat([g.flatten() for g in parts])


def lost(objective, of: Batch, policy: Denoiser) -> Loss:
    return objective.loss(of, policy, laws.NoScorer())


def mean_of(loss: Loss, name: str) -> float:
    return float(loss.metrics[name].total / loss.metrics[name].count)


# --- the first update ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "value"), [
    (StepClip(), -0.5), (StepClip(kl=0.1), -0.5), (DPOK(reward_weight=1.0), -0.5), (GRPOGuard(), -0.5),
    (PCPO(credit="none", clip=0.1), 0.1 * float(torch.linspace(-2, 3, 12).abs().mean())),
])  # fmt: skip
def test_at_the_weights_that_drew_every_ratio_is_one(objective, value):
    policy, of = first(objective)
    loss = lost(objective, of, policy)
    assert mean_of(loss, "ratio_mean") == pytest.approx(1.0, abs=1e-12)
    assert mean_of(loss, "law_gap") == 0
    assert float(loss.total / loss.count) == pytest.approx(value)
    if "kl" in loss.metrics:
        assert mean_of(loss, "kl") == 0


@pytest.mark.parametrize("objective", [StepClip(), DPOK(reward_weight=1.0), PCPO(credit="none"), ScoreFunction()])
def test_and_the_gradient_is_that_of_the_log_probability(objective):
    policy, of = first(objective)
    torch.testing.assert_close(slope(lost(objective, of, policy), policy), slope(lost(OWN, of, policy), policy))


def test_advantages_are_cut():
    policy, of = first(StepClip())
    cut = batch(of.rollout, of.advantage.clamp(-1, 1))
    for objective in (StepClip, GRPOGuard, ScoreFunction, PCPO):
        short = slope(lost(objective(max_advantage=1.0), of, policy), policy)
        torch.testing.assert_close(short, slope(lost(objective(), cut, policy), policy))


@pytest.mark.parametrize("objective", [StepClip(max_advantage=1e9), ScoreFunction(max_advantage=1e9)])
def test_the_expected_gradient_is_that_of_the_expected_reward(objective):
    """One dimension, reward -(x - 2)^2 on what a step draws: E = -(mean - 2)^2 - std^2. Exact by Gauss-Hermite."""
    policy = ToyFlow(shape=(1, 1, 1), prompts=1).load(torch.device("cpu"))
    plan = LatentPlan(group=1, steps=2, stochastic=(0,), transition=FlowSDE())
    one = laws.exactly(policy.sample(asked(1, prompts=1), plan, Noise(0, 0, (0,))))
    for _, weight in policy.parameters():
        weight.data = weight.data.double()
    places, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(12))
    rollout = at(policy, take(one, torch.zeros(12, dtype=torch.long)))
    drawn = rollout.decisions[0]
    after = drawn.mean + (drawn.std[0, 0] * places).view(12, 1, 1, 1, 1)
    rollout = at(policy, replace(rollout, decisions=(replace(drawn, after=after),)))
    reward = -(after.flatten() - 2).square() * weights / weights.sum() * 12
    mean = policy.score(one).mean
    expected = (-(mean - 2).square()).sum()
    torch.testing.assert_close(slope(lost(objective, batch(rollout, reward), policy), policy), -slope(expected, policy))


# --- away from it -------------------------------------------------------------------------------------------------


def away(objective, advantage: float, nats: float) -> torch.Tensor:
    """The gradient where every log-ratio is `nats` and every advantage is `advantage`."""
    policy, of = first(objective)
    rollout = replace(of.rollout, anchor=of.rollout.logp - nats)
    return slope(lost(objective, batch(rollout, torch.full((12,), advantage, dtype=torch.float64)), policy), policy)


@pytest.mark.parametrize("objective", [StepClip(), PCPO(credit="none"), StepClip(clip=1e-5, clip_high=1e-4)])
def test_outside_the_band_on_its_favourable_side_the_gradient_is_zero(objective):
    assert away(objective, 1.0, 2e-4).abs().max() == 0
    assert away(objective, -1.0, -2e-4).abs().max() == 0
    assert away(objective, 1.0, -2e-4).abs().max() > 0.01
    assert away(objective, -1.0, 2e-4).abs().max() > 0.01
    assert away(objective, 1.0, 5e-5).abs().max() > 0.01


def test_clip_high_is_above():
    assert away(StepClip(clip=1e-5, clip_high=1e-3), 1.0, 5e-4).abs().max() > 0.01
    assert away(StepClip(clip=1e-5, clip_high=1e-3), -1.0, -5e-4).abs().max() == 0


def test_dpok_stops_on_both_sides():
    still = DPOK(kl=0.0)
    for advantage in (1.0, -1.0):
        for nats in (2e-4, -2e-4):
            assert away(still, advantage, nats).abs().max() == 0
        assert away(still, advantage, 5e-5).abs().max() > 0.01


def test_the_hinge_by_hand():
    """max(0, xi |A| - A log r) at A = -2, xi = 0.1: log r = 0.03 gives 0.26, log r = -0.2 gives 0."""
    policy, of = first(PCPO())
    for nats, value in ((0.03, 0.26), (-0.2, 0.0)):
        moved = batch(replace(of.rollout, anchor=of.rollout.logp - nats), torch.full((12,), -2.0, dtype=torch.float64))
        loss = lost(PCPO(clip=0.1, credit="none"), moved, policy)
        assert float(loss.total / loss.count) == pytest.approx(value)
        assert mean_of(loss, "clipped") == (value == 0)


# --- the guarded ratio --------------------------------------------------------------------------------------------


def test_the_guarded_ratio_is_the_centred_one():
    rollout = at(laws.denoiser({}, 0.0), laws.drawn_steps())
    drawn, now = rollout.decisions[0], laws.denoiser({}, 0.1).score(rollout)
    square = steps.mean_over_dimensions((now.mean - drawn.mean).square())
    guarded = steps.guarded_log_ratio(now.mean, drawn)
    torch.testing.assert_close(guarded, drawn.std * (now.logp - drawn.logp) + square / (2 * drawn.std))
    # The noise turned round: the guarded ratios of both are centred, the plain ones are below 0 by |.|^2 / std^2.
    other = replace(drawn, after=2 * drawn.mean - drawn.after)
    torch.testing.assert_close(steps.guarded_log_ratio(now.mean, other), -guarded)
    back = laws.denoiser({}, 0.1).score(replace(rollout, decisions=(other,))).logp
    torch.testing.assert_close((now.logp - drawn.logp) + (back - drawn.logp), -square / drawn.std.square())


def test_guard_has_the_gradient_of_its_ratio_and_can_be_balanced():
    policy, of = first(GRPOGuard())
    drawn = of.rollout.decisions[0]
    plain = slope(-(of.advantage[:, None] * drawn.std * policy.logp(of.rollout)).mean(), policy)
    torch.testing.assert_close(slope(lost(GRPOGuard(), of, policy), policy), plain)
    # four equal steps: their length is 1/4, and the mean weight 1
    torch.testing.assert_close(slope(lost(GRPOGuard(balance="length"), of, policy), policy), plain)


@pytest.mark.parametrize("density", [False, True])
def test_guard_takes_the_deviation_of_cps_as_it_is(density):
    """sigma = s sin(eta pi / 2), without the root of the step's length (specification, trap 7), whatever its log p."""
    policy, rollout = laws.denoiser({}, 0.1), drawn_by(CPS(0.7, density))
    drawn, angle = rollout.decisions[0], 0.7 * math.pi / 2
    t, s = (u[..., None, None, None] for u in drawn.time.unbind(-1))
    x, v = drawn.before, policy.score(rollout).velocity
    mean, sigma = (1 - s) * (x - t * v) + s * math.cos(angle) * (x + (1 - t) * v), s * math.sin(angle)
    gap = steps.mean_over_dimensions((drawn.after - drawn.mean) / sigma * (mean - drawn.mean))
    ratio, of = gap.exp(), batch(rollout)
    advantage = of.advantage[:, None]
    expected = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.98, 1.02)).mean()
    loss = lost(GRPOGuard(clip=0.02), of, policy)
    torch.testing.assert_close(loss.total / loss.count, expected)
    torch.testing.assert_close(slope(loss, policy), slope(expected, policy))
    assert 0 < mean_of(loss, "clipped") < 1
    assert mean_of(loss, "ratio_mean") == pytest.approx(float(ratio.detach().mean()))
    if density:
        square, std = (mean - drawn.mean).square(), sigma.flatten(1)
        back = steps.mean_over_dimensions(square) / (2 * std)
        torch.testing.assert_close(gap, std * (policy.logp(rollout) - rollout.logp) + back)


# --- distances ----------------------------------------------------------------------------------------------------


def test_distances_of_a_flow():
    """With D = |dv|^2: exact h / 2 (1 / sigma + sigma (1 - t) / 2t)^2 D; as released that x h; D; (1 - t)^2 D."""
    rollout = laws.drawn_steps()
    now, other = laws.denoiser({}, 0.1).score(rollout), laws.denoiser({}, 0.0).score(rollout)
    time = rollout.decisions[0].time
    t, h = time[..., 0], time[..., 0] - time[..., 1]
    sigma = 0.7 * (t / (1 - t)).sqrt()
    apart = (now.velocity - other.velocity).square().flatten(2).mean(2)
    exact = h / 2 * (1 / sigma + sigma * (1 - t) / (2 * t)).square() * apart
    for form, value in (("gaussian", exact), ("flow_grpo", exact * h), ("velocity", apart)):
        torch.testing.assert_close(steps.distance(form, now, other, time), value)
    torch.testing.assert_close(steps.distance("noise", now, other, time), (1 - t).square() * apart)
    torch.testing.assert_close(steps.distance("mean", now, other, time), exact * 2 * sigma.square() * h)
    torch.testing.assert_close(
        steps.leverage(FlowSDE().move, time), h.sqrt() / sigma * (1 + sigma**2 * (1 - t) / 2 / t)
    )


@pytest.mark.parametrize("kind", [StepClip, DPOK, PCPO, GRPOGuard, ScoreFunction])
def test_the_leash_pulls_back_to_the_reference(kind):
    objective = kind(kl=0.5, kl_form="velocity")
    policy = laws.denoiser(dict(objective.needs().copies), moved=0.1)
    of = batch(at(policy, laws.drawn_steps()), torch.zeros(12, dtype=torch.float64))
    with torch.no_grad(), policy.using("reference"):
        there = policy.score(of.rollout).velocity
    apart = (policy.score(of.rollout).velocity - there).square().mean()
    loss = lost(objective, of, policy)
    assert mean_of(loss, "kl") == pytest.approx(float(apart))
    torch.testing.assert_close(slope(loss, policy), 0.5 * slope(apart, policy))
    assert not kind(kl=0.0).needs().copies


# --- weights of steps ---------------------------------------------------------------------------------------------


def test_steps_weigh_as_they_are_noisy_with_mean_one():
    policy, of = first(StepClip())
    std = of.rollout.decisions[0].std
    expected = -(of.advantage[:, None] * std / std.mean() * policy.logp(of.rollout)).mean()
    loss = lost(StepClip(step_weights="std"), of, policy)
    torch.testing.assert_close(slope(loss, policy), slope(expected, policy))
    part = take(of, torch.tensor([0, 5]))
    alone = replace(part, rollout=replace(part.rollout, plan=replace(part.rollout.plan, trained=(1, 2, 3))))
    same = lost(StepClip(step_weights="std"), alone, policy).total
    torch.testing.assert_close(same, lost(StepClip(step_weights="std"), part, policy).total)


def test_credit_is_proportional():
    policy, of = first(PCPO())
    time = of.rollout.decisions[0].time
    w = steps.leverage(FlowSDE().move, time)
    by_time, by_noise = (PCPO(credit=c)._credit(of.rollout, policy) * w for c in ("time", "noise"))
    torch.testing.assert_close(by_time, w.sum(1, keepdim=True) / 0.75 * (time[..., 0] - time[..., 1]))
    each = w / (1 - time[..., 0])
    torch.testing.assert_close(by_noise / (1 - time[..., 0]), each.mean(1, keepdim=True).expand_as(each))


def of_sde(t, s):
    """sqrt(h) / sigma (1 + (1 - t) sigma^2 / 2t)."""
    sigma = 0.7 * (t / (1 - t)).sqrt()
    return (t - s).sqrt() / sigma * (1 + (1 - t) * sigma.square() / (2 * t))


def of_cps(t, s):
    """Of the mean (1 - s) (x - t v) + s cos (x + (1 - t) v), the deviation s sin."""
    angle = 0.7 * math.pi / 2
    return ((1 - s) * t - s * math.cos(angle) * (1 - t)) / (s * math.sin(angle))


def of_ddim(t, s):
    """(c1 - c2) / sigma for noise, of which a change of the velocity by 1 is 1 - t."""
    bar, bar_after = ((1 - u).square() / ((1 - u).square() + u.square()) for u in (t, s))
    square = (1 - bar_after) / (1 - bar) * (1 - bar / bar_after)
    c1, c2 = ((1 - bar) * bar_after / bar).sqrt(), (1 - bar_after - square).sqrt()
    return (1 - t) * (c1 - c2) / square.sqrt()


@pytest.mark.parametrize(("transition", "by_hand"), [
    (FlowSDE(), of_sde), (CPS(density=True), of_cps), (DDIM(), of_ddim), (Consistency(), lambda t, s: (1 - s) * t / s),
])  # fmt: skip
def test_a_log_ratio_is_what_its_leverage_says(transition, by_hand):
    """log r = -w dv . z - w^2 |dv|^2 / 2 (specification, 5.3); GRPO-Guard's is -std w dv . z, its first term alone."""
    rollout = drawn_by(transition)
    drawn, now = rollout.decisions[0], laws.denoiser({}, 0.1).score(rollout)
    dv = now.velocity - laws.denoiser({}, 0.0).score(rollout).velocity
    z = (drawn.after - drawn.mean) / drawn.std[..., None, None, None]
    w = by_hand(*drawn.time.unbind(-1))
    linear, square = w * steps.mean_over_dimensions(dv * z), w.square() * steps.mean_over_dimensions(dv.square())
    torch.testing.assert_close(now.logp - drawn.logp, -linear - square / 2)
    torch.testing.assert_close(steps.guarded_log_ratio(now.mean, drawn), -drawn.std * linear)
    torch.testing.assert_close(steps.leverage(transition.move, drawn.time), w)


def test_the_steps_of_stable_diffusion_3():
    """Ten, shift 3, a 0.7 (specification, 5.2 and 5.3). By hand, the first goes from 1 to 27/28: sigma 0.7 sqrt(28), h
    1/28, std 0.7, w 1 / (28 x 0.7). The last goes from 1/4 to 0: sigma 0.7 / sqrt(3), h 1/4."""
    even = torch.linspace(1, 0, 11, dtype=torch.float64)
    policy = ToyFlow(shape=(2, 2, 2), prompts=3).load(torch.device("cpu"))
    policy.network.times = lambda steps: 3 * even / (1 + 2 * even)
    plan = LatentPlan(group=4, steps=10, stochastic=tuple(range(10)), transition=FlowSDE(0.7))
    rollout = policy.sample(asked(4, prompts=3), plan, Noise(3, 0, tuple(range(12))))
    std, time = rollout.decisions[0].std[0].double(), rollout.decisions[0].time[0]
    assert std.tolist() == pytest.approx([0.70, 0.74, 0.53, 0.44, 0.39, 0.35, 0.32, 0.29, 0.26, 0.20], abs=5e-3)
    assert float(1 / std.mean()) == pytest.approx(2.371, abs=5e-4)
    w = steps.leverage(FlowSDE(0.7).move, time)
    assert w[[0, -1]].tolist() == pytest.approx([1 / 19.6, 3**0.5 / 1.4 * (1 + 1.5 * 0.49 / 3)])
    assert w[[0, -1]].tolist() == pytest.approx([0.051, 1.540], abs=5e-4)
    assert w[0] == w.min() and w[-1] == w.max() and float(w.sum()) == pytest.approx(4.297, abs=5e-4)
    credit = PCPO()._credit(rollout, policy)[0] * w
    torch.testing.assert_close(credit, w.sum() * (time[:, 0] - time[:, 1]))


def test_the_leverage_of_stable_diffusion():
    """50 steps of SD 1.5: from 0.374 to 3.27 deviations a unit of noise, mean 0.51 (specification, 5.3)."""
    signal = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0)
    at = torch.arange(981, 0, -20)
    level = lambda n: (1 / signal[n] - 1).sqrt()  # noqa: E731
    t, s = (level(n) / (1 + level(n)) for n in (at, (at - 20).clamp(min=0)))
    w = steps.leverage(DDIM().move, torch.stack([t, s], -1)) / (1 - t)
    assert float(w.min()) == pytest.approx(0.374, abs=2e-3)
    assert float(w.max()) == pytest.approx(3.27, abs=2e-2)
    assert float(w.mean()) == pytest.approx(0.51, abs=1e-2)


# --- rebel --------------------------------------------------------------------------------------------------------


def test_rebel_is_the_sum_over_pairs():
    policy = laws.denoiser({}, moved=0.05)
    of = batch(at(laws.denoiser({}, 0.0), laws.drawn_steps()))
    apart = 2.0 * (policy.logp(of.rollout) - of.rollout.logp).sum(1) - of.advantage
    pairs = [(g + i, g + j) for g in (0, 4, 8) for i in range(4) for j in range(i)]
    expected = torch.stack([(apart[i] - apart[j]).square() for i, j in pairs])
    loss = lost(REBEL(eta=2.0), of, policy)
    assert loss.count == len(pairs)
    torch.testing.assert_close(loss.total, expected.sum())
    torch.testing.assert_close(slope(loss, policy), slope(expected.mean(), policy))
    solved = batch(of.rollout, 2.0 * (policy.logp(of.rollout) - of.rollout.logp).sum(1).detach())
    assert slope(lost(REBEL(eta=2.0), solved, policy), policy).abs().max() < 1e-12


@pytest.mark.parametrize("make", [
    lambda: StepClip(clip=0.0), lambda: DPOK(clip=2.0), lambda: PCPO(clip=-1.0), lambda: GRPOGuard(clip=0.0),
])  # fmt: skip
def test_settings_that_cannot_work_are_explained(make):
    with pytest.raises(ValueError, match="clip"):
        make()


def test_without_steps_there_is_a_sentence():
    policy, of = first(GRPOGuard())
    none = replace(of, rollout=replace(of.rollout, decisions=()))
    with pytest.raises(ValueError, match="stochastic"):
        lost(GRPOGuard(), none, policy)
