"""The score as an action: its equation, what is recorded of it, and the exact gradient of what it earns."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from laws import laws
from toy_denoiser import ToyFlow, asked

from burnish.core import LatentPlan
from burnish.formulas import gaussian, values
from burnish.formulas.noise import Noise
from burnish.objectives.score_function import ScoreFunction
from burnish.objectives.step_clip import StepClip
from burnish.transitions.ddim import DDIM
from burnish.transitions.flow_sde import FlowSDE
from burnish.transitions.score_action import ScoreAction
from burnish.types import Batch, Scores, take

PAPER = ScoreAction(FlowSDE(math.sqrt(2)))  # g^2 = 2 t / (1 - t)
TIMES = [(0.9, 0.8), (0.5, 0.4), (0.3, 0.25)]


def exact(*numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_step_by_hand():
    """t 0.5, s 0.4, x 1, v 2: a = -(1 + 0.5 x 2) / 0.5 = -4, g^2 = 2, and x + 0.1 (2 x + 2 a) = 0.4.

    An action moves the state by 0.1 x 2 times its deviation sqrt(0.05) / 0.5; the noise after it is sqrt(0.2).
    """
    t, s = exact(0.5), exact(0.4)
    mean, std = PAPER.move(exact([1.0]), exact([2.0]), t, s)
    assert mean.item() == pytest.approx(0.4)
    assert std.item() == pytest.approx(0.2 * math.sqrt(0.05) / 0.5)
    assert PAPER.stir(t, s).item() == pytest.approx(math.sqrt(0.2))


def test_a_schedule_that_begins_a_little_below_one_begins_as_one_that_begins_there():
    """DPM-Solver's first time of twenty, shifted by 3, where noise as small as 0.0003 of a state was divided by."""
    action = ScoreAction(DDIM(eta=0.3), variance=0.2)
    x, v, s = exact([1.0]), exact([0.5]), exact(0.983)
    (mean, std), (expected, width) = (action.move(x, v, exact(t), s) for t in (0.99967, 1.0))
    torch.testing.assert_close(mean, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(std, width, rtol=0.05, atol=0)


@pytest.mark.parametrize("t, s", TIMES)
def test_it_is_the_equation_of_the_paper(t, s):
    """dX = (-f + g^2 a) dt + g dB, f = -x / (1 - t); ratios are those of the actions, cost g^2 |a - a'|^2 dt / 2."""
    x, v, other, z = (normal(3, 2, 4, seed=i) for i in range(4))
    h, g2 = t - s, 2 * t / (1 - t)
    score = lambda velocity: -(x + (1 - t) * velocity) / t  # noqa: E731
    action = score(v) + math.sqrt(0.05) / t * z
    went = x + h * (x / (1 - t) + g2 * action)
    ends = torch.full((3,), t, dtype=torch.float64), torch.full((3,), s, dtype=torch.float64)
    (mean, std), (away, _) = (PAPER.move(x, velocity, *ends) for velocity in (v, other))
    torch.testing.assert_close(mean + std.view(-1, 1, 1) * z, went)
    torch.testing.assert_close(PAPER.stir(*ends), torch.full((3,), math.sqrt(g2 * h), dtype=torch.float64))
    ratio = PAPER.logp(went, mean, std) - PAPER.logp(went, away, std)
    deviation = torch.full((3,), math.sqrt(0.05) / t, dtype=torch.float64)
    of_actions = gaussian.logp(action, score(v), deviation) - gaussian.logp(action, score(other), deviation)
    torch.testing.assert_close(ratio, of_actions)
    cost = values.strayed(PAPER.logp(went, away, std).view(3, 1), std.view(3, 1), PAPER.stir(*ends).view(3, 1))
    torch.testing.assert_close(cost.flatten(), g2 * h / 2 * (action - score(other)).square().flatten(1).mean(1))


# --- drawn -----------------------------------------------------------------------------------------------------------


def noise_follows_every_action() -> None:
    """What is added after an action is normal, as wide as is said, and has nothing to do with the action's noise."""
    policy = ToyFlow().load(torch.device("cpu"))
    plan = LatentPlan(group=64, steps=5, stochastic=(0, 1, 2, 3), transition=ScoreAction(DDIM()))
    steps = policy.sample(asked(64), plan, Noise(0, 0, tuple(range(128)))).decisions[0]
    t, s = steps.time[:, :-1].flatten(0, 1).unbind(1)
    wide = ScoreAction(DDIM()).stir(t, s).float().view(128, 3, 1, 1, 1)
    after = (steps.before[:, 1:] - steps.after[:, :-1]) / wide
    action = ((steps.after - steps.mean) / steps.std[..., None, None, None])[:, :-1]
    for z in (after, action):
        assert z.mean().abs() < 4 / z.numel() ** 0.5 and (z.std() - 1).abs() < 4 / (2 * z.numel()) ** 0.5
    assert (after * action).mean().abs() < 4 / after.numel() ** 0.5


def test_noise_follows_every_action():
    noise_follows_every_action()


def test_and_is_seen_to_be_missing(monkeypatch):
    """The mutation: the noise of the action once more, in place of noise of its own."""
    drawn = Noise.normal
    monkeypatch.setattr(Noise, "normal", lambda self, shape, what="": drawn(self, shape, what.replace("stir", "step")))
    with pytest.raises(AssertionError):
        noise_follows_every_action()


def test_the_law_of_marginals_counts_that_noise(monkeypatch):
    """Another mutation: less noise than is said."""
    law, stir = laws.a_point_mass_stays_where_it_is, ScoreAction.stir
    law(ScoreAction(DDIM()))
    monkeypatch.setattr(ScoreAction, "stir", lambda self, t, s: 0.9 * stir(self, t, s))
    with pytest.raises(AssertionError, match="too noisy"):
        law(ScoreAction(DDIM()))


# --- the exact gradient ----------------------------------------------------------------------------------------------

BETA, PLAN = 0.3, LatentPlan(group=1, steps=3, stochastic=(0, 1), transition=ScoreAction(FlowSDE(0.9, "constant"), 0.2))
PLACES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(5))


def toy(seed: int):
    policy = ToyFlow(shape=(1, 1, 1), prompts=1, seed=seed).load(torch.device("cpu"))
    for _, weight in policy.parameters():
        weight.data = weight.data.double()
    return policy


def affine(policy, i: int):
    """Of step i: mean = slope x + offset with its gradient, deviation of the action and of the noise."""
    times = policy.times(3)
    x, t, s = exact(0.0, 1.0).view(2, 1, 1, 1), times[i].expand(2), times[i + 1].expand(2)
    v = policy.network.velocity(x, t, torch.zeros(2, dtype=torch.long), 1.0)
    mean, std = PLAN.transition.move(x, v, t, s)
    a, b = mean.flatten()
    return b - a, a, std[0], PLAN.transition.stir(t, s)[0]


def earned(policy, reference, x, first: int = 0):
    """E[-(x_2 - 2)^2 - costs] from state x before step `first`: moments of a Gaussian, in closed form."""
    centre, variance, total = x, torch.zeros_like(x), 0.0
    for i in range(first, 2):
        (slope, offset, std, noise), (was, then, _, _) = affine(policy, i), affine(reference, i)
        apart = (slope - was) * centre + offset - then
        total = total - BETA * (apart.square() + (slope - was).square() * variance + std**2) / (2 * noise**2)
        centre, variance = slope * centre + offset, slope.square() * variance + std**2 + noise**2
    return total - (centre - 2).square() - variance


def gradients(objective, straying=values.strayed):
    """(of the loss over all that can be drawn, of what is earned), the first by quadrature that is exact here."""
    policy, reference = toy(0), toy(1)
    one = laws.exactly(
        ToyFlow(shape=(1, 1, 1), prompts=1).load(torch.device("cpu")).sample(asked(1, 1), PLAN, Noise(0, 0, (0,)))
    )
    z = torch.tensor(list(product(PLACES.tolist(), repeat=4)), dtype=torch.float64)
    weight = torch.tensor(list(product((WEIGHTS / WEIGHTS.sum()).tolist(), repeat=4)), dtype=torch.float64).prod(1)
    n, x = len(z), one.decisions[0].before[0, 0].flatten().expand(len(z))
    kept, wide = {"before": [], "after": [], "mean": [], "std": []}, []
    with torch.no_grad():
        for i in range(2):
            slope, offset, std, noise = affine(policy, i)
            mean = slope * x + offset
            after = mean + std * z[:, 2 * i]
            for name, value in zip(kept, (x, after, mean, std.expand(n)), strict=True):
                kept[name].append(value)
            x, wide = after + noise * z[:, 2 * i + 1], [*wide, noise.expand(n)]
        record = {name: torch.stack(parts, 1) for name, parts in kept.items()}
        states = {name: record[name].view(n, 2, 1, 1, 1) for name in ("before", "after", "mean")}
        rollout = take(one, torch.zeros(n, dtype=torch.long))
        own = torch.arange(2 * n).view(n, 2)  # every state is one of its own
        drawn = replace(rollout.decisions[0], **states, std=record["std"], origin=own, node=own)
        rollout = replace(rollout, decisions=(drawn,))
        rollout = replace(rollout, decisions=(replace(rollout.decisions[0], logp=policy.logp(rollout)),))
        cost = BETA * straying(reference.logp(rollout), record["std"], torch.stack(wide, 1))
        value = torch.stack([earned(policy, reference, record["before"][:, i], i) for i in range(2)], 1)
        advantage = values.added(value, -(x - 2).square(), cost) * weight.unsqueeze(1)
    keep = torch.ones(n, dtype=torch.bool)
    batch = Batch(rollout, Scores(weight, {"one": weight}, keep), advantage, keep)
    loss = objective.loss(batch, policy, laws.NoScorer()).total
    live = [weight for _, weight in policy.parameters()]
    found = torch.autograd.grad(loss, live)
    start = one.decisions[0].before[0, 0].flatten()
    expected = torch.autograd.grad(-earned(policy, reference, start).sum(), live)
    return torch.cat([g.flatten() for g in found]), torch.cat([g.flatten() for g in expected])


@pytest.mark.parametrize("objective", [ScoreFunction(max_advantage=1e9), StepClip(max_advantage=1e9)])
def test_the_gradient_is_that_of_what_is_earned(objective):
    """Reward less the running cost, two actions and two noises: the policy gradient of the paper, to rounding."""
    found, expected = gradients(objective)
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(found, expected)


def test_and_not_with_the_cost_of_another_noise():
    """The mutation: the deviation of the action where that of the noise belongs."""
    found, expected = gradients(
        ScoreFunction(max_advantage=1e9), lambda logp, std, noise: values.strayed(logp, std, std)
    )
    assert (found - expected).abs().max() > 1e-2


@pytest.mark.parametrize("make, sentence", [
    (lambda: ScoreAction(DDIM(), variance=0.0), "variance must be above 0"),
    (lambda: ScoreAction(ScoreAction(DDIM())), "inner: ScoreAction is an action with noise after it already"),
    (lambda: LatentPlan(steps=3, stochastic=(0,), transition=PAPER, transitions=(PAPER,)), "score_action"),
])  # fmt: skip
def test_wrong_settings(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
