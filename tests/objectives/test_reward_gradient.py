"""Gradients through the reward, against finite differences and against sums that can be written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import laws
from objectives.test_steps import at, batch, slope
from tiny_diffusers import noise, prompts, sd
from toy_denoiser import ToyFlow, asked

from burnish.core import LatentPlan, Scorer
from burnish.formulas import gaussian
from burnish.formulas.matching import noised
from burnish.formulas.noise import Noise
from burnish.models.denoiser import DenoisingPolicy, Network
from burnish.objectives.refl import ReFL
from burnish.objectives.reward_gradient import RewardGradient
from burnish.transitions.ddim import DDIM
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Prompt, Scores


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


def drawn_along_the_ode(
    waypoint: int | None = 1, solver: str = "euler", stochastic: tuple[int, ...] = (), finish: str | None = None
):
    """Four steps; those of `stochastic` are drawn at random."""
    policy = laws.denoiser({}, 0.0)
    plan = LatentPlan(
        group=4,
        steps=4,
        solver=solver,
        finish=finish,
        waypoint=waypoint,
        stochastic=stochastic,
        transition=FlowSDE() if stochastic else None,
    )
    old = ToyFlow(shape=(2, 2, 2), prompts=3).load(torch.device("cpu"))
    rollout = old.sample(asked(4, prompts=3), plan, Noise(3, 0, tuple(range(12))))
    rollout = laws.exactly(rollout) if stochastic else rollout
    rollout = replace(rollout, waypoint=None if waypoint is None else rollout.waypoint.double())
    return policy, batch(rollout)


def check_differences(value, policy) -> None:
    """The gradient against central differences in every weight."""
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


@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_gradient_is_the_difference_that_the_weights_make(last):
    policy, of = drawn()
    check_differences(lambda: RewardGradient(last=last).loss(of, policy, Linear()).total, policy)


@pytest.mark.parametrize("waypoint", [0, 1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_from_a_waypoint_it_is_too(waypoint, recompute):
    policy, of = drawn_along_the_ode(waypoint)
    objective = RewardGradient(last=0, weight=0.01, recompute=recompute)
    check_differences(lambda: objective.loss(of, policy, Linear()).total, policy)
    again, number = objective._drawn_again(of, policy)
    assert number == 4 - waypoint
    torch.testing.assert_close(again, of.rollout.final.double(), atol=1e-5, rtol=1e-5)


def test_where_nothing_is_cut_it_is_the_difference_in_the_whole_draw():
    """The draw itself made again with other weights: the reward of its end is what changes."""
    policy, of = drawn_along_the_ode(0)
    start = of.rollout.waypoint

    def value():
        x, times = start, policy.times(4)
        for i in range(4):
            t, h = torch.full((12,), float(times[i])), float(times[i] - times[i + 1])
            x = x - h * policy.velocity(x, t, of.rollout.prompts)
        return -Linear()(policy.decode(x), ()).total.sum()

    found = RewardGradient(last=0).loss(of, policy, Linear()).total
    torch.testing.assert_close(slope(found, policy), slope(value(), policy))
    check_differences(value, policy)


def test_a_detached_input_leaves_the_sum_of_the_steps():
    policy, of = drawn_along_the_ode(1)
    states, times = [of.rollout.waypoint], policy.times(4)
    for i in range(1, 4):
        t, h = torch.full((12,), float(times[i])), float(times[i] - times[i + 1])
        states.append((states[-1] - h * policy.velocity(states[-1], t, of.rollout.prompts)).detach())
    x = states[0]
    for i in range(1, 4):
        t, h = torch.full((12,), float(times[i])), float(times[i] - times[i + 1])
        x = x - h * policy.velocity(states[i - 1], t, of.rollout.prompts)
    expected = slope(-Linear()(policy.decode(x), ()).total.sum(), policy)
    cut, whole = (RewardGradient(last=0, detach_input=d).loss(of, policy, Linear()).total for d in (True, False))
    torch.testing.assert_close(slope(cut, policy), expected)
    lighter = RewardGradient(last=0, detach_input=True, weight=0.01).loss(of, policy, Linear()).total
    torch.testing.assert_close(slope(lighter, policy), 0.01 * expected)
    assert (slope(whole, policy) - expected).abs().max() > 1e-3


def test_steps_are_computed_again_if_asked_and_only_then():
    """Three steps of twelve samples; once more in the backward pass."""
    for recompute, evaluations in ((False, 3 * 12), (True, 2 * 3 * 12)):
        policy, of = drawn_along_the_ode(1)
        policy.network.evaluations = 0
        loss = RewardGradient(last=0, recompute=recompute).loss(of, policy, Linear())
        slope(loss, policy)
        assert policy.network.evaluations == evaluations
        assert float(loss.metrics["steps"].total / loss.metrics["steps"].count) == 3


def test_the_last_step_needs_no_record_of_its_own():
    """Plans draw no noise in it: it begins where the one before ended."""
    policy, of = drawn_along_the_ode(3, stochastic=(0, 1, 2))
    expected = slope(RewardGradient(last=0).loss(of, policy, Linear()), policy)
    plan = replace(of.rollout.plan, waypoint=None)
    blind = replace(of, rollout=replace(of.rollout, plan=plan, waypoint=None))
    found = slope(RewardGradient(last=1).loss(blind, policy, Linear()), policy)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stochastic", [(), (0, 1, 2)])
def test_what_a_sampler_leaves_of_the_noise_is_in_the_picture_and_its_gradient(tmp_path, stochastic):
    """Stable Diffusion 1.5 as released: set_alpha_to_one false."""
    policy, p = sd(tmp_path, {"set_alpha_to_one": False}).load(torch.device("cpu")), prompts()
    plan = LatentPlan(2, steps=4, waypoint=1, stochastic=stochastic, transition=DDIM() if stochastic else None)
    of = batch(policy.sample(p, plan, noise(len(p))))
    again, _ = RewardGradient(last=0)._drawn_again(of, policy)
    torch.testing.assert_close(policy.decode(again).clamp(0, 1), of.rollout.media, atol=1e-5, rtol=1e-5)
    if stochastic:
        return
    x, times = of.rollout.waypoint, policy.times(4)
    for i in range(1, 4):
        t = times[i].expand(len(x))
        v = policy.velocity(x, t.float(), p)
        before, x = x, x - float(times[i] - times[i + 1]) * v
    other = before + (1 - float(times[3])) * v
    expected = (1 - 0.00085) ** 0.5 * x + 0.00085**0.5 * other
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        slope((again * weight).sum(), policy), slope((expected * weight).sum(), policy), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("solver", ["dpm2", "unipc"])
def test_steps_of_other_solvers_may_lie_before(solver):
    """Two steps by Euler behind a random one; what led to that is not drawn again."""
    policy, of = drawn_along_the_ode(1, solver, stochastic=(1,), finish="euler")
    policy.network.evaluations = 0
    again, _ = RewardGradient(last=2)._drawn_again(of, policy)
    torch.testing.assert_close(again, of.rollout.final, atol=1e-5, rtol=1e-5)


def test_what_it_cannot_begin_from_is_explained():
    policy, of = drawn_along_the_ode(None)
    with pytest.raises(ValueError, match="0 begins at the plan's waypoint, and this plan has none; plan truncated"):
        RewardGradient(last=0).loss(of, policy, Linear())
    for solver in ("dpm2", "unipc"):
        for waypoint, stochastic in ((1, ()), (3, ()), (0, (0, 1, 3)), (0, (0, 2, 3))):
            policy, of = drawn_along_the_ode(waypoint, solver=solver, stochastic=stochastic)
            with pytest.raises(ValueError, match=f"plan.solver euler, not {solver}"):
                RewardGradient(last=0).loss(of, policy, Linear())
    with pytest.raises(ValueError, match=r"weight: must be above 0, not 0.0"):
        RewardGradient(weight=0.0)


@pytest.mark.parametrize("last", [1, 3])
def test_where_it_drew_it_is_the_same_picture(last):
    policy, of = drawn()
    again, _ = RewardGradient(last=last)._drawn_again(of, policy)
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
    some = noised(of, 3, "steps", policy.times(4)[-3:])
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


def test_draft_lv_varies_less_the_more_it_draws():
    """Of given samples: noises are independent, so that eight have an eighth of the variance, and the same mean."""
    policy, of = drawn()
    one, eight = (
        torch.stack([slope(ReFL(draws=n).loss(replace(of, seed=k), policy, Linear()), policy) for k in range(300)])
        for n in (1, 8)
    )
    varied = one.var(0) > 1e-12
    assert varied.sum() > 4
    ratio = (eight.var(0)[varied] / one.var(0)[varied]).mean()
    assert 0.11 < ratio < 0.14
    error = (one.var(0) / 300 + eight.var(0) / 300).sqrt()[varied]
    assert ((one.mean(0) - eight.mean(0))[varied].abs() < 4.5 * error).all()


WIDTH = 0.5  # of the data of `Gaussians`


class Gaussians(Network):
    """The exact velocity of data N(c, width^2) in one dimension, with a centre c of its own for every prompt."""

    def __init__(self, prompts: int, width: float = WIDTH) -> None:
        self.device, self.shape, self.width = torch.device("cpu"), (1, 1, 1), width
        self.centres = torch.nn.Parameter(torch.zeros(prompts, 1, 1, 1))

    def conditions(self, prompts):
        return torch.tensor([prompt.facts["number"] for prompt in prompts])

    def velocity(self, x, t, conditions, guidance):
        c, t = self.centres[conditions], gaussian.rows(t, x)
        away = (x - (1 - t) * c) / ((1 - t) ** 2 * self.width**2 + t**2)
        return t * away - c - (1 - t) * self.width**2 * away

    def times(self, steps):
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return 3 * even / (1 + 2 * even)

    def start(self, noise, steps):
        return noise

    def decode(self, latents):
        return latents / 20 + 0.5

    def trained(self):
        return [("centres", self.centres)]

    def export(self, folder) -> None: ...


class Near(Scorer):
    """-(x - 2)^2 of the latent x that a picture of `Gaussians` shows."""

    def __call__(self, images, prompts) -> Scores:
        return Scores.of("near", -(20 * images.flatten() - 12).square())


def test_at_equal_cost_draft_lv_varies_less_than_one_step_while_its_draws_are_few():
    """A gradient varies by B between samples, and by W with the noise that the last step begins with. One draw: B + W
    for T + 1 evaluations; n draws: B + W / n for T + n. At equal cost n vary less than one while n < T W / B, here 8:
    two do; 64, which vary the least for a sample, do not."""
    count, steps = 20_000, 10
    policy = DenoisingPolicy(Gaussians(count))
    plan = LatentPlan(group=1, steps=steps, waypoint=steps - 1)
    asked_of = [Prompt(str(i), "", {"number": i}) for i in range(count)]
    of = batch(policy.sample(asked_of, plan, Noise(0, 0, tuple(range(count)))))
    drawing = policy.evaluations

    def varies(objective, evaluations: int) -> float:
        """Variance of the gradient of a sample, whose picture and update cost so many evaluations."""
        before = policy.evaluations
        found = count * slope(objective.loss(of, policy, Near()), policy).double()
        assert drawing + policy.evaluations - before == count * evaluations
        return float(found.var())

    step = varies(RewardGradient(last=1), steps + 1)
    one, two, many = (varies(ReFL(draws=n), steps + n) for n in (1, 2, 64))
    assert many < two < one and two < step
    for alone in (step, one):
        assert two * (steps + 2) < 0.9 * alone * (steps + 1) and many * (steps + 64) > 2 * alone * (steps + 1)

    # x - t v = c + kept (x - (1 - t) c), t 1/4: the gradient of (x - t v - 2)^2 is 2 (x - t v - 2) (1 - kept (1 - t))
    kept = 0.75 * WIDTH**2 / (0.75**2 * WIDTH**2 + 0.25**2)
    scale = (2 * kept * (1 - 0.75 * kept)) ** 2
    between, within = 0.75**2 * float(of.rollout.final.var()), 0.25**2
    assert steps * within / between == pytest.approx(8, abs=0.3)
    assert step == pytest.approx(scale * float(of.rollout.waypoint.var()), rel=1e-3)
    for draws, found in ((1, one), (2, two), (64, many)):
        assert found == pytest.approx(scale * (between + within / draws), rel=0.04)


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
    with pytest.raises(ValueError, match="last"):
        RewardGradient(last=-1)
