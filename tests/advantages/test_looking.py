"""Advantages that look at the pictures expected of states on the way, by the run's reward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import laws
from toy_denoiser import ToyFlow, asked

from burnish.advantages.reward_shaped_value import RewardShapedValue
from burnish.advantages.step_preview import StepPreview
from burnish.advantages.trimmed import Trimmed
from burnish.core import LatentPlan, Scorer
from burnish.engine.memory import begun
from burnish.formulas import values
from burnish.formulas.noise import Noise
from burnish.formulas.steps import clean_of
from burnish.plans.candidates import Candidates
from burnish.transitions.cps import CPS
from burnish.transitions.ddim import DDIM
from burnish.transitions.score_action import ScoreAction
from burnish.types import Rollout, Scores

ACTIONS = LatentPlan(group=4, steps=4, stochastic=(0, 1, 2), transition=ScoreAction(DDIM()))


class Fussy(Scorer):
    """Brightness, which the first picture it is shown of a call does not have."""

    def __call__(self, images, prompts) -> Scores:
        total = images.mean((1, 2, 3)).double()
        total[0] = torch.nan
        return Scores.of("bright", total)


def drawn(plan=ACTIONS, step: int = 0) -> tuple:
    policy = ToyFlow(prompts=2).load(torch.device("cpu"))
    rollout = policy.sample(asked(plan.group), plan, Noise(0, step, tuple(range(2 * plan.group))))
    rollout = replace(rollout, reference=rollout.logp - 0.1)
    return policy, rollout, laws.Bright()(rollout.media, rollout.prompts)


def looks_of(policy, rollout: Rollout) -> torch.Tensor:
    steps = rollout.decisions[0]
    clean = clean_of(rollout.plan.transition.move, steps).flatten(0, 1)
    return laws.Bright()(policy.decode(clean).detach(), ()).total.view(steps.logp.shape).double()


# --- the value -------------------------------------------------------------------------------------------------------


def test_before_it_has_learned_the_value_is_a_share_of_what_is_seen():
    policy, rollout, scores = drawn()
    steps, beta = rollout.decisions[0], 0.5
    at_work = RewardShapedValue(beta=beta, rows=5).looking(policy, laws.Bright())
    found = at_work(scores, rollout)
    t, s = steps.time.unbind(-1)
    noise = ACTIONS.transition.stir(t.flatten(), s.flatten()).view(8, 3)
    cost = beta * values.strayed(rollout.reference.double(), steps.std.double(), noise)
    value = torch.cos(torch.pi / 2 * t) * looks_of(policy, rollout)
    expected = torch.cat([value[:, 1:], scores.total.double().unsqueeze(1)], 1) - value - cost
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    told = at_work.metrics()
    assert told["cost"] == pytest.approx(float(cost.sum(1).mean())) and told["look_invalid"] == 0
    assert told["value_error"] == pytest.approx(
        float((value - values.to_go(scores.total.double(), cost)).square().mean())
    )


@pytest.mark.parametrize("name, broken", [
    ("shares", lambda t: (torch.sin(torch.pi / 2 * t), torch.cos(torch.pi / 2 * t))),  # the reward at the wrong end
    ("strayed", lambda logp, std, noise: torch.zeros_like(logp)),  # leaving the reference costs nothing
    ("added", lambda value, final, cost: values.to_go(final, cost) - value),  # the whole return for every step
])  # fmt: skip
def test_the_value_is_seen_to_be_wrong(monkeypatch, name, broken):
    module = "burnish.advantages.reward_shaped_value.values"
    monkeypatch.setattr(f"{module}.{name}", broken)
    policy, rollout, scores = drawn()
    found = RewardShapedValue(beta=0.5).looking(policy, laws.Bright())(scores, rollout)
    monkeypatch.undo()
    expected = RewardShapedValue(beta=0.5).looking(policy, laws.Bright())(scores, rollout)
    assert not torch.allclose(found, expected, atol=1e-3)


def test_it_learns_what_is_still_to_come():
    policy, rollout, scores = drawn()
    scores = replace(scores, total=torch.arange(8.0))
    at_work = RewardShapedValue(lr=3e-3, width=32, beta=0.0, updates=20).looking(policy, laws.Bright())
    errors = []
    for _ in range(8):
        found = at_work(scores, rollout)
        errors.append(at_work.metrics()["value_error"])
    assert errors[-1] < 0.1 * errors[0] and errors == sorted(errors, reverse=True)
    assert (found[:, -1] - (scores.total - found.new_tensor(at_work.metrics()["value"]))).isfinite().all()


def test_a_picture_without_a_score_takes_the_mean_of_the_others():
    policy, rollout, scores = drawn()
    whole = RewardShapedValue(beta=0.0, rows=24).looking(policy, Fussy())._looked(rollout.decisions[0], rollout)
    assert whole[0, 0] == pytest.approx(float(whole[1:, 0].mean())) and whole.isfinite().all()
    at_work = RewardShapedValue(beta=0.0, rows=24).looking(policy, Fussy())
    assert at_work(scores, rollout).isfinite().all() and at_work.metrics()["look_invalid"] == pytest.approx(1 / 24)


def test_the_engine_hands_it_the_reward():
    policy, *_ = drawn()
    for settings in (RewardShapedValue(), StepPreview()):
        working, found = begun(Trimmed(settings), policy, "advantage", laws.Bright())
        assert isinstance(working.inner._scorer, laws.Bright) and list(found) == ["advantage.inner"]
        assert begun(Trimmed(settings), policy, "advantage")[0].inner._scorer is None


def test_normalised_by_the_root_of_the_mean_square():
    policy, rollout, scores = drawn()
    plain, normed = (
        RewardShapedValue(normalise=n).looking(policy, laws.Bright())(scores, rollout) for n in (False, True)
    )
    torch.testing.assert_close(normed, plain / plain.square().mean().sqrt())


def test_centred_steps_have_mean_zero_over_valid_samples():
    policy, rollout, scores = drawn()
    scores = Scores.of("bright", torch.where(torch.arange(8) == 3, torch.nan, scores.total))
    plain, centred = (
        RewardShapedValue(centre=c).looking(policy, laws.Bright())(scores, rollout) for c in (False, True)
    )
    torch.testing.assert_close(centred[scores.valid], (plain - plain[scores.valid].mean(0))[scores.valid])
    assert plain[scores.valid].mean(0).abs().max() > 1e-3 and (centred[3] == 0).all()


def test_what_it_cannot_read_is_a_sentence():
    _, rollout, scores = drawn(replace(ACTIONS, trained=(0, 2)))
    with pytest.raises(ValueError, match="without gaps"):
        RewardShapedValue()(scores, rollout)
    _, rollout, scores = drawn(replace(ACTIONS, transition=CPS()))
    with pytest.raises(ValueError, match="scores no density"):
        RewardShapedValue()(scores, rollout)
    with pytest.raises(ValueError, match="expected 1 or more"):
        RewardShapedValue(updates=0)


# --- candidates ------------------------------------------------------------------------------------------------------

CANDIDATES = Candidates(DDIM(), group=4, steps=6, first=2, candidates=4).at(1)


@pytest.mark.parametrize("counted", ["all", "ends"])
def test_candidates_are_compared_by_the_pictures_expected_of_them(counted):
    policy, rollout, scores = drawn(CANDIDATES)
    steps, before = rollout.decisions[0], policy.evaluations
    at_work = StepPreview(counted=counted, rows=7, eps=0.0).looking(policy, laws.Bright())
    found = at_work(scores, rollout)
    assert policy.evaluations - before == 8 * 3, "one evaluation for each candidate of each step"
    x, s = steps.after.flatten(0, 1), steps.time[..., 1].flatten()
    prompts = [prompt for prompt in rollout.prompts for _ in range(3)]
    clean = x - s.float().view(-1, 1, 1, 1) * policy.velocity(x, s.float(), prompts).detach()
    r = laws.Bright()(policy.decode(clean), prompts).total.detach().view(2, 4, 3)
    expected = (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True)
    if counted == "ends":
        ends = (expected == expected.amax(1, keepdim=True)) | (expected == expected.amin(1, keepdim=True))
        assert ends.sum() == 2 * 3 * 2
        expected = torch.where(ends, expected, 0.0)
    torch.testing.assert_close(found.view(2, 4, 3), expected, atol=1e-4, rtol=1e-4)
    assert at_work.metrics()["preview_std"] == pytest.approx(float(r.std(1).mean()), rel=1e-4)


def test_a_candidate_without_a_score_is_left_out():
    policy, rollout, scores = drawn(CANDIDATES)
    found = StepPreview(rows=24).looking(policy, Fussy())(scores, rollout)
    assert found[0, 0] == 0 and (found[1:4, 0] != 0).all() and float(found[:4, 0].sum()) == pytest.approx(0, abs=1e-5)


def test_a_step_up_makes_the_better_candidate_likelier():
    policy, rollout, scores = drawn(CANDIDATES)
    advantage = StepPreview(counted="ends").looking(policy, laws.Bright())(scores, rollout)
    live = [weight for _, weight in policy.parameters()]
    before = policy.logp(rollout)
    slope = torch.autograd.grad((advantage * before).sum(), live)
    with torch.no_grad():
        for weight, step in zip(live, slope, strict=True):
            weight += 1e-4 * step
        change = policy.logp(rollout) - before
    assert float((advantage * change).sum()) > 0
