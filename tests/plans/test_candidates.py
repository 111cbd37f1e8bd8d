"""Several candidates for a step, of which one is gone on with: what they share, what they cost, and whose law it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_denoiser import ToyFlow, asked

from burnish.core import LatentPlan
from burnish.formulas import sharing
from burnish.formulas.noise import Noise
from burnish.models.denoiser import DenoisingPolicy
from burnish.plans.candidates import Candidates
from burnish.transitions.ddim import DDIM
from burnish.types import Latents, Rollout

PLAN = Candidates(DDIM(), group=4, steps=6, first=2, candidates=4).at(1)


def drawn(plan: LatentPlan = PLAN, prompts: int = 2) -> tuple[DenoisingPolicy, Rollout, Latents]:
    policy = ToyFlow().load(torch.device("cpu"))
    rollout = policy.sample(asked(plan.group, prompts), plan, Noise(0, 1, tuple(range(prompts * plan.group))))
    (steps,) = rollout.decisions
    assert isinstance(steps, Latents)
    return policy, rollout, steps


def one_state_many_draws() -> None:
    """All candidates of a step begin with one state; the next state is what one of them drew."""
    _, rollout, steps = drawn()
    assert steps.step.tolist() == [[2, 3, 4]] * 8 and rollout.group.tolist() == [0] * 4 + [1] * 4
    for way in (slice(0, 4), slice(4, 8)):
        before, after = steps.before[way], steps.after[way]
        assert (before == before[:1]).all() and len(steps.origin[way].unique()) == 3
        for k in range(3):
            assert len(torch.unique(after[:, k], dim=0)) == 4, "candidates are alike"
        for k in range(2):
            taken = (after[:, k] == before[0, k + 1]).flatten(1).all(1)
            assert taken.sum() == 1, "the next state is not what one of them drew"
        assert (rollout.media[way] == rollout.media[way][:1]).all()
    assert len(steps.node.unique()) == 2 * 4 * 3 and (steps.weight == 1).all()


def a_step_is_one_evaluation() -> None:
    """Six for each way, not six for each sample; and three for all that are scored of it."""
    policy, rollout, _ = drawn()
    assert policy.evaluations == 2 * 6 and rollout.evaluations.tolist() == [6 / 4] * 8
    before = policy.evaluations
    policy.score(rollout)
    assert policy.evaluations - before == 2 * 3


def test_one_state_many_draws():
    one_state_many_draws()


def test_a_step_is_one_evaluation():
    a_step_is_one_evaluation()


def chosen(prompts: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every way and candidate step but the last: which candidate was gone on with, and the noise it drew."""
    _, _, steps = drawn(replace(PLAN, guidance=0.5), prompts)
    after, before = steps.after.unflatten(0, (prompts, 4))[:, :, :-1], steps.before.unflatten(0, (prompts, 4))[:, :, 1:]
    which = (after == before).flatten(3).all(3).int().argmax(1)
    z = ((steps.after - steps.mean) / steps.std[..., None, None, None]).unflatten(0, (prompts, 4))[:, :, :-1]
    at = which[:, None, :, None, None, None].expand(-1, 1, -1, *z.shape[3:])
    return which, z.gather(1, at).squeeze(1)


def test_any_of_them_is_gone_on_with_as_often(monkeypatch):
    prompts = torch.arange(150)
    monkeypatch.setattr("toy_denoiser.ToyNetwork.conditions", lambda self, prompts: torch.zeros(len(prompts)).long())
    which, z = chosen(len(prompts))
    counts = which.flatten().bincount(minlength=4)
    assert (counts - 75).abs().max() < 4 * (300 * 3 / 16) ** 0.5, counts.tolist()
    assert torch.corrcoef(which.T.double())[0, 1].abs() < 4 / 150**0.5
    # and looks at nothing: what it drew is standard normal, as a single sample's would be
    assert z.mean().abs() < 4 / z.numel() ** 0.5 and (z.std() - 1).abs() < 4 / (2 * z.numel()) ** 0.5


def test_the_way_until_then_is_drawn_at_random_too():
    """Without guidance or prompts of their own, two ways of a group differ from the first step on."""
    _, rollout, steps = drawn(replace(PLAN, group=8))
    assert not torch.equal(steps.before[0, 0], steps.before[4, 0]) and rollout.group.tolist() == sorted(
        [0, 1, 2, 3] * 4
    )
    _, rollout, shared = drawn(replace(PLAN, group=8, shared_start=True, stochastic=(2, 3, 4)))
    assert (shared.before[:8, 0] == shared.before[:1, 0]).all() and not torch.equal(
        shared.before[0, 1], shared.before[4, 1]
    )
    assert rollout.evaluations.sum() == 2 * (3 + 2 * 3)


@pytest.mark.parametrize("name, broken, check", [
    ("authors", lambda leader, candidates, parted: leader[:, 1:], one_state_many_draws),  # all draw what one draws
    ("lanes", lambda c, steps, parted, chosen: torch.arange(c * len(chosen))[:, None].repeat(1, steps + 1),
     one_state_many_draws),  # each goes on from its own
    ("lanes", lambda c, steps, parted, chosen: torch.arange(c * len(chosen))[:, None].repeat(1, steps + 1),
     a_step_is_one_evaluation),
])  # fmt: skip
def test_these_are_seen_to_fail(monkeypatch, name, broken, check):
    monkeypatch.setattr(sharing, name, broken)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("make, sentence", [
    (lambda: Candidates(DDIM(), group=6), "6 is not a multiple of 4 candidates"),
    (lambda: Candidates(DDIM(), candidates=1), "candidates must be at least 2"),
    (lambda: Candidates(DDIM(), first=19), "first must be from 0 to 18, got 19"),
    (lambda: replace(PLAN, forks=((2, 4),)), "no forks and no branches"),
    (lambda: LatentPlan(group=4, candidates=2), "candidates: drawn at steps that are learned from"),
])  # fmt: skip
def test_plans_that_cannot_be(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
