"""Every law is seen to fail: a component is broken on purpose, in the way the law is there to catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from laws import found, laws

from burnish.advantages.group_mean import GroupMean
from burnish.advantages.group_norm import GroupNorm
from burnish.advantages.prompt_history import PromptHistory
from burnish.core import Advantage, Denoiser, LatentPlan, Needs, Objective, Planner, Policy, Reward, Scorer, Transition
from burnish.objectives.ppo_clip import PPOClip
from burnish.objectives.step_clip import StepClip
from burnish.rewards.jpeg import Jpeg
from burnish.transitions.ddim import DDIM
from burnish.types import Batch, Loss, Mean, Plan, Scores, TokenPlan


@dataclass(frozen=True)
class Broken(Objective[Policy]):
    """PPOClip, with its batch or its loss tampered with.

    Metrics:
        ratio_mean    mean ratio
    """

    before: Callable[[Batch], Batch] = field(default=lambda batch: batch)
    after: Callable[[Loss, Batch], Loss] = field(default=lambda loss, batch: loss)

    def needs(self) -> Needs:
        return PPOClip().needs()

    def loss(self, batch: Batch, policy: Policy, reward: Scorer) -> Loss:
        return self.after(PPOClip().loss(self.before(batch), policy, reward), batch)


@dataclass(frozen=True)
class BrokenSteps(Objective[Denoiser]):
    """StepClip, with its batch or its loss tampered with.

    Metrics:
        ratio_mean    mean ratio
    """

    before: Callable[[Batch], Batch] = field(default=lambda batch: batch)
    after: Callable[[Loss, Batch], Loss] = field(default=lambda loss, batch: loss)

    def needs(self) -> Needs:
        return Needs()

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        return self.after(StepClip().loss(self.before(batch), policy, reward), batch)


@dataclass(frozen=True)
class Direct(Objective[Policy]):
    """A loss written down in one line from (log-probability, ratio, batch)."""

    values: Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor]

    def needs(self) -> Needs:
        return Needs()

    def loss(self, batch: Batch, policy: Policy, reward: Scorer) -> Loss:
        logp, rollout = policy.logp(batch.rollout), batch.rollout
        old = rollout.logp if rollout.anchor is None else rollout.anchor
        values = self.values(logp, (logp - old).exp(), batch)
        weight = rollout.weight * batch.keep[:, None]
        return Loss((values * weight).sum(), weight.sum(), {"surprise": Mean(values.sum(), weight.sum())})


def everything_kept(batch: Batch) -> Batch:
    return replace(batch, keep=torch.ones_like(batch.keep))


def padding_counted(batch: Batch) -> Batch:
    tokens = batch.rollout.decisions[0]
    weight = torch.ones_like(tokens.weight)
    return replace(batch, rollout=replace(batch.rollout, decisions=(replace(tokens, weight=weight),)))


def edited(batch: Batch) -> Batch:
    batch.advantage.mul_(0.5)
    return batch


def by_place(batch: Batch) -> Batch:
    return replace(batch, advantage=batch.advantage * torch.arange(len(batch.advantage)))


def upside_down(loss: Loss, batch: Batch) -> Loss:
    return replace(loss, total=-loss.total)


def averaged(loss: Loss, batch: Batch) -> Loss:
    return replace(loss, total=loss.total / loss.count)


def one_too_many(loss: Loss, batch: Batch) -> Loss:
    return replace(loss, count=loss.count + 1)


OBJECTIVES = {
    laws.order_of_samples_does_not_matter: Broken(before=by_place),
    laws.a_split_changes_nothing: Broken(after=averaged),
    laws.no_advantage_no_gradient: Direct(lambda logp, ratio, batch: -(batch.advantage[:, None] + 0.1) * logp),
    laws.dropped_samples_have_no_influence: Broken(before=everything_kept),
    laws.padding_has_no_influence: Broken(before=padding_counted),
    laws.extreme_ratios_stay_finite: Direct(lambda logp, ratio, batch: -(ratio**3) * batch.advantage[:, None]),
    laws.nothing_kept_is_a_zero_sum: Broken(after=one_too_many),
    laws.a_step_down_the_loss_makes_good_samples_likelier: Broken(after=upside_down),
    laws.metrics_are_those_documented: Broken(),
    laws.inputs_are_left_alone: Broken(before=edited),
}

# Of denoisers. That extreme ratios stay finite is one function's affair, which token objectives share.
OBJECTIVES_OF_STEPS = {
    law: BrokenSteps(broken.before, broken.after) for law, broken in OBJECTIVES.items() if isinstance(broken, Broken)
} | {laws.no_advantage_no_gradient: BrokenSteps(before=lambda batch: replace(batch, advantage=batch.advantage + 0.1))}


@dataclass(frozen=True)
class Weighs(Advantage):
    """Any function as an advantage. Sums to zero over the valid members of each group, it says."""

    rule: Callable

    def __call__(self, scores, rollout):
        return self.rule(scores, rollout)


def without_looking_at_valid(scores, rollout):
    return GroupMean()(replace(scores, valid=torch.isfinite(scores.total)), rollout)


@dataclass(frozen=True)
class Forgets(Advantage):
    """PromptHistory, of which nothing is saved.

    Metrics:
        known         share
    """

    def begin(self, policy):
        at_work = PromptHistory(buffer=8, least=8).begin(policy)
        at_work.state = lambda: {"rewards": {}}
        return at_work

    def __call__(self, scores, rollout):
        return self.begin(None)(scores, rollout)


@dataclass(frozen=True)
class Keeps(Advantage):
    """Settings with a memory of their own."""

    seen: list = field(default_factory=list)

    def __call__(self, scores, rollout):
        self.seen.append(scores.total)
        return GroupMean()(scores, rollout) * len(self.seen)


ADVANTAGES = {
    laws.it_says_what_it_reads: Weighs(lambda s, r: GroupMean()(s, r) * r.media.mean((1, 2, 3))),
    laws.advantages_follow_their_samples: Weighs(lambda s, r: GroupNorm()(s, r) * torch.arange(len(r))),
    laws.invalid_members_get_and_give_nothing: Weighs(without_looking_at_valid),
    laws.advantages_sum_to_zero_in_each_group: Weighs(lambda s, r: torch.where(s.valid, s.total, 0.0)),
    laws.a_better_sample_has_the_larger_advantage: Weighs(lambda s, r: -GroupMean()(s, r)),
    laws.what_it_remembers_comes_back: Forgets(),
    laws.settings_remember_nothing: Keeps(),
}


@dataclass(frozen=True)
class Judges(Reward):
    """Any function as a reward."""

    rule: Callable

    def load(self, device: torch.device) -> Scorer:
        return _Judge(self.rule)


class _Judge(Scorer):
    def __init__(self, rule: Callable) -> None:
        self._rule = rule

    def __call__(self, images, prompts) -> Scores:
        return self._rule(images, prompts)


def in_company(images, prompts) -> Scores:
    sizes = Jpeg().load(torch.device("cpu"))(images, prompts).total
    return Scores.of("rank", sizes - sizes[sizes.isfinite()].mean())


def never_invalid(images, prompts) -> Scores:
    total = images.mean((1, 2, 3)).nan_to_num(0.0)
    return Scores.of("mean", total)


REWARDS = {
    laws.a_sample_is_scored_by_itself: Judges(in_company),
    laws.scores_are_numbers_or_invalid: Judges(never_invalid),
}


class Counting(Planner):
    """A plan that depends on how often it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def at(self, step: int) -> TokenPlan:
        self.asked += 1
        return TokenPlan(temperature=1.0 + self.asked)

    def evaluation(self) -> TokenPlan:
        return TokenPlan(group=1)


class Always(Planner):
    """One plan to draw by, and one to look by."""

    def __init__(self, plan: Plan, looked_at: Plan) -> None:
        self.plan, self.looked_at = plan, looked_at

    def at(self, step: int) -> Plan:
        return self.plan

    def evaluation(self) -> Plan:
        return self.looked_at


TO_THE_END = LatentPlan(group=2, steps=3, stochastic=(0, 1, 2), transition=DDIM())  # the last step has no noise

PLANS = {
    laws.a_plan_depends_on_the_step_only: Counting(),
    laws.what_a_plan_draws_can_be_scored_again: Always(TO_THE_END, LatentPlan(group=1)),
    laws.one_of_each_prompt_is_looked_at: Always(LatentPlan(), LatentPlan()),
}


class Moves(Transition):
    """DDIM, with what it returns tampered with."""

    def __init__(self, step: Callable = lambda mean, std: (mean, std), score: Callable = lambda logp: logp) -> None:
        self.step, self.score = step, score

    def move(self, x, velocity, t, s):
        return self.step(*DDIM().move(x, velocity, t, s))

    def logp(self, after, mean, std):
        return self.score(DDIM().logp(after, mean, std))


TRANSITIONS = {
    laws.a_point_mass_stays_where_it_is: Moves(lambda mean, std: (mean, 1.1 * std)),
    laws.a_row_moves_by_itself: Moves(lambda mean, std: (mean, std.mean().expand_as(std))),
    laws.every_step_but_the_last_has_a_likelihood: Moves(lambda mean, std: (mean, 0 * std)),
    laws.a_state_is_likelier_nearer_the_mean: Moves(score=lambda logp: -logp),
    laws.the_likelihood_can_be_learned_from: Moves(score=lambda logp: -logp),
}
ALL = {**OBJECTIVES, **ADVANTAGES, **REWARDS, **PLANS, **TRANSITIONS}


@pytest.mark.parametrize("law, broken", [pytest.param(law, broken, id=law.__name__) for law, broken in ALL.items()])
def test_the_law_catches_it(law, broken):
    with pytest.raises(AssertionError):
        law(broken)


@pytest.mark.parametrize("law", OBJECTIVES_OF_STEPS, ids=lambda law: law.__name__)
def test_the_law_catches_it_in_steps_too(law):
    with pytest.raises(AssertionError):
        law(OBJECTIVES_OF_STEPS[law])


def test_no_law_is_without_its_mutation():
    every = laws.OBJECTIVE_LAWS + laws.ADVANTAGE_LAWS + laws.REWARD_LAWS + laws.PLAN_LAWS
    every += laws.TRANSITION_LAWS
    assert {law.__name__ for law in every} == {law.__name__ for law in ALL}


def test_the_unbroken_wrapper_passes():
    """So that what fails above is the mutation, and not the wrapping."""
    for law in laws.OBJECTIVE_LAWS:
        if law is not laws.metrics_are_those_documented:
            law(Broken())
            law(BrokenSteps())
    for law in laws.ADVANTAGE_LAWS:
        law(Weighs(lambda s, r: GroupMean()(s, r)))
    for law in laws.REWARD_LAWS:
        law(Judges(Jpeg().load(torch.device("cpu"))))
    for law in laws.PLAN_LAWS:
        law(Always(replace(TO_THE_END, stochastic=(0, 1)), LatentPlan(group=1)))
    for law in laws.TRANSITION_LAWS:
        law(Moves())


@dataclass
class Soft:
    """Settings that can be changed under way."""

    size: int = 1


def test_settings_that_can_be_changed_are_caught():
    with pytest.raises(AssertionError, match="assigned"):
        laws.settings_are_a_value(Soft())


@dataclass(frozen=True)
class Bare:
    """One setting is explained."""

    told: int = 1  # what it is
    silent: int = 2


def test_a_setting_without_a_comment_is_caught():
    assert found.undocumented(Bare) == ["silent"]
