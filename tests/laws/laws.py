"""What every component of a kind must obey. Each law takes a component, and fails with an AssertionError."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import torch
from torch import Tensor
from toys import ToyPolicy, ToyRaster, toy_prompts

from burnish.core import Advantage, Objective, Planner, Reward, Scorer
from burnish.formulas.noise import Noise
from burnish.types import Batch, Prompt, Rollout, Scores, TokenPlan, concatenate, take
from burnish.worlds.scenes.grammar import train

CLAIM = "Sums to zero over the valid members of each group"  # what an advantage's docstring says if it does


class NoScorer(Scorer):
    """Objectives that do not differentiate the reward must not ask for it."""

    def __call__(self, images, prompts) -> Scores:
        raise AssertionError("asked for the reward without saying so in needs()")


def toy() -> ToyPolicy:
    return ToyRaster(dtype=torch.float64).load(torch.device("cpu"))


def drawn(group: int = 4) -> Rollout:
    """Three prompts, with a reference, drawn by other weights than `toy()` has: ratios differ from 1."""
    b = 3 * group
    old = ToyRaster(dtype=torch.float64, spread=0.65).load(torch.device("cpu"))
    rollout = old.sample(toy_prompts(3, group), TokenPlan(group=group), Noise(3, 0, tuple(range(b))))
    random = torch.Generator().manual_seed(1)
    return replace(rollout, reference=rollout.logp + 0.1 * torch.randn(rollout.logp.shape, generator=random))


def scored(rollout: Rollout, parts: int = 2) -> Scores:
    """Scores of two parts, three of them invalid: one in the first group, and all but one of the last."""
    b = len(rollout)
    values = torch.randn(parts, b, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    valid = torch.ones(b, dtype=torch.bool)
    valid[1], valid[b - 3 :] = False, False
    values = torch.where(valid, values, torch.nan)
    return Scores(values.sum(0), {f"part{i}": v for i, v in enumerate(values)}, valid)


def batch(rollout: Rollout | None = None, scale: float = 1.0) -> Batch:
    rollout = drawn() if rollout is None else rollout
    scores = scored(rollout)
    advantage = scale * torch.where(scores.valid, scores.total, 0.0)
    return Batch(rollout, scores, advantage, scores.valid)


def outcome(objective: Objective, of: Batch, policy: ToyPolicy | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Total, count, and gradient of the total."""
    policy = toy() if policy is None else policy
    loss = objective.loss(of, policy, NoScorer())
    live = [p for _, p in policy.parameters()]
    parts = torch.autograd.grad(loss.total, live, allow_unused=True)
    slope = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(live, parts)])
    return loss.total.detach(), loss.count, slope


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], why: str) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=1e-9, rtol=1e-6, msg=lambda m: f"{why}: {m}")


# --- objectives ---------------------------------------------------------------------------------------------------


def order_of_samples_does_not_matter(objective: Objective) -> None:
    whole = batch()
    shuffled = take(whole, torch.randperm(len(whole.rollout), generator=torch.Generator().manual_seed(0)))
    same(outcome(objective, shuffled), outcome(objective, whole), "shuffled samples changed the loss")


def a_split_changes_nothing(objective: Objective) -> None:
    """Sums and counts add up over micro-batches. Not asked of aggregation local, which says that it depends on them."""
    if vars(objective).get("aggregation") == "local":
        return
    whole, parts = batch(), [outcome(objective, take(batch(), torch.arange(i, i + 4))) for i in (0, 4, 8)]
    same(tuple(sum(p) for p in zip(*parts)), outcome(objective, whole), "micro-batches do not add up")


def no_advantage_no_gradient(objective: Objective) -> None:
    if objective.needs().copies:
        return  # a leash to a reference pulls with no advantage too
    flat = replace(batch(), advantage=torch.zeros(12, dtype=torch.float64))
    assert outcome(objective, flat)[2].abs().max() == 0, "a zero advantage gave a gradient"


def dropped_samples_have_no_influence(objective: Objective) -> None:
    whole = batch()
    drop = ~whole.keep
    tokens = whole.rollout.decisions[0]
    other = replace(
        tokens,
        ids=torch.where(drop[:, None], (tokens.ids + 1) % 4, tokens.ids),
        logp=torch.where(drop[:, None], torch.full_like(tokens.logp, -77.0), tokens.logp),
    )
    spoiled = replace(
        whole,
        rollout=replace(
            whole.rollout,
            decisions=(other,),
            reference=torch.where(drop[:, None], torch.nan, whole.rollout.reference),
        ),
        advantage=torch.where(drop, 1e6, whole.advantage),
        scores=replace(whole.scores, total=torch.where(drop, 1e6, whole.scores.total)),
    )
    same(outcome(objective, spoiled), outcome(objective, whole), "a sample that does not count did")


def padding_has_no_influence(objective: Objective) -> None:
    whole = batch()
    tokens = whole.rollout.decisions[0]
    weight = tokens.weight.clone()
    weight[::2, -1] = 0.0
    pad = weight == 0
    loud = replace(tokens, weight=weight, logp=torch.where(pad, -99.0, tokens.logp))
    quiet = replace(tokens, weight=weight)
    found = outcome(objective, replace(whole, rollout=replace(whole.rollout, decisions=(loud,))))
    expected = outcome(objective, replace(whole, rollout=replace(whole.rollout, decisions=(quiet,))))
    same(found, expected, "a decision of weight 0 counted")


def extreme_ratios_stay_finite(objective: Objective) -> None:
    for nats in (-300.0, 300.0):
        rollout = drawn()
        far = replace(rollout, anchor=rollout.logp + nats, reference=rollout.logp - nats)
        for value in outcome(objective, batch(far, scale=50.0)):
            assert torch.isfinite(value).all(), f"a log-ratio of {-nats} nats gave {value}"


def nothing_kept_is_a_zero_sum(objective: Objective) -> None:
    none = replace(batch(), keep=torch.zeros(12, dtype=torch.bool))
    total, count, slope = outcome(objective, none)
    assert total == 0 and count == 0 and slope.abs().max() == 0, "an empty batch weighs something"


def a_step_down_the_loss_makes_good_samples_likelier(objective: Objective) -> None:
    """At the weights that drew, the loss goes down where sum of advantage x log-probability goes up."""
    policy = toy()
    rollout = policy.sample(toy_prompts(3, 4), TokenPlan(group=4), Noise(4, 0, tuple(range(12))))
    of = batch(replace(rollout, reference=rollout.logp))
    slope = outcome(objective, of, policy)[2]
    better = (of.advantage.unsqueeze(1) * policy.logp(rollout)).sum()
    up = torch.cat([g.flatten() for g in torch.autograd.grad(better, [p for _, p in policy.parameters()])])
    assert torch.cosine_similarity(slope, -up, dim=0) > 0.9, "the gradient does not lead towards good samples"


def metrics_are_those_documented(objective: Objective) -> None:
    doc = (type(objective).__doc__ or "").partition("Metrics:")[2]
    named = set(re.findall(r"^ +(\w+)  ", doc, re.M))
    found = set(objective.loss(batch(), toy(), NoScorer()).metrics)
    assert named == found, f"docstring lists {sorted(named)}, loss returns {sorted(found)}"


OBJECTIVE_LAWS = [
    order_of_samples_does_not_matter,
    a_split_changes_nothing,
    no_advantage_no_gradient,
    dropped_samples_have_no_influence,
    padding_has_no_influence,
    extreme_ratios_stay_finite,
    nothing_kept_is_a_zero_sum,
    a_step_down_the_loss_makes_good_samples_likelier,
    metrics_are_those_documented,
]


# --- advantages ---------------------------------------------------------------------------------------------------


def advantages_follow_their_samples(advantage: Advantage) -> None:
    rollout = drawn()
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(0))
    found = advantage(take(scored(rollout), order), take(rollout, order))
    same((found,), (advantage(scored(rollout), rollout)[order],), "shuffled samples changed an advantage")


def invalid_members_get_and_give_nothing(advantage: Advantage) -> None:
    rollout, scores = drawn(), scored(drawn())
    found = advantage(scores, rollout)
    assert torch.isfinite(found).all(), "an advantage is not finite"
    assert found[~scores.valid].abs().max() == 0, "an invalid sample has an advantage"
    lied = replace(
        scores,
        total=torch.where(scores.valid, scores.total, 1e6),
        parts={name: torch.where(scores.valid, part, -1e6) for name, part in scores.parts.items()},
    )
    same((advantage(lied, rollout),), (found,), "the value of an invalid sample was used")


def advantages_sum_to_zero_in_each_group(advantage: Advantage) -> None:
    """Of those that claim it; so that a sample without valid siblings gets 0."""
    if CLAIM not in " ".join((type(advantage).__doc__ or "").split()):
        return
    rollout = drawn()
    found = advantage(scored(rollout), rollout)
    for group in rollout.group.unique():
        total = found[rollout.group == group].sum(0).abs().max()
        assert total < 1e-9, f"group {group} sums to {total}"
    assert found.abs().max() > 0.1, "no advantage at all"


def a_better_sample_has_the_larger_advantage(advantage: Advantage) -> None:
    rollout = drawn()
    rollout = replace(rollout, reference=rollout.logp)  # no penalty to tell siblings apart by
    total = torch.arange(12, dtype=torch.float64)
    scores = Scores(total, {"only": total}, torch.ones(12, dtype=torch.bool))
    found = advantage(scores, rollout).view(3, 4, -1)
    assert (found.diff(dim=1) > 0).all(), "a better sample of a group is not worth more"


ADVANTAGE_LAWS = [
    advantages_follow_their_samples,
    invalid_members_get_and_give_nothing,
    advantages_sum_to_zero_in_each_group,
    a_better_sample_has_the_larger_advantage,
]


# --- rewards ------------------------------------------------------------------------------------------------------


def pictures(n: int = 6) -> Tensor:
    """Smooth pictures, differing in how much there is to see."""
    random = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, 3, 8, 8, generator=random) * torch.linspace(0.2, 1, n).view(-1, 1, 1, 1)
    return torch.nn.functional.interpolate(coarse, 64, mode="bilinear")


def questions(n: int = 6) -> list[Prompt]:
    return list(train()[:n])


def a_sample_is_scored_by_itself(reward: Reward) -> None:
    """Neither the order nor the company of samples changes a score."""
    scorer, images, prompts = reward.load(torch.device("cpu")), pictures(), questions()
    whole = scorer(images, prompts)
    order = [4, 0, 5]
    some = scorer(images[order], [prompts[i] for i in order])
    expected = take(whole, torch.tensor(order))
    torch.testing.assert_close(some.total, expected.total, equal_nan=True, msg="a score depends on its company")
    for name, part in expected.parts.items():
        torch.testing.assert_close(some.parts[name], part, equal_nan=True, msg=f"{name} depends on its company")


def scores_are_numbers_or_invalid(reward: Reward) -> None:
    images = pictures()
    images[2] = torch.nan
    scores = reward.load(torch.device("cpu"))(images, questions())
    assert scores.total.shape == scores.valid.shape == (6,), "one score a picture"
    assert torch.equal(torch.isfinite(scores.total), scores.valid), "valid and finite are not the same samples"
    assert not scores.valid[2], "a picture of NaN has a score"
    assert scores.valid[[0, 1, 3, 4, 5]].all(), "a sound picture has none"
    assert all(part.shape == (6,) for part in scores.parts.values()) and scores.parts, "parts are one a picture"
    assert all(len(words) == 6 for words in scores.notes.values()), "notes are one a picture"


REWARD_LAWS = [a_sample_is_scored_by_itself, scores_are_numbers_or_invalid]


# --- plans, and everything ----------------------------------------------------------------------------------------


def a_plan_depends_on_the_step_only(planner: Planner) -> None:
    for step in (0, 7, 1000):
        plan = planner.at(step)
        assert isinstance(plan, TokenPlan), "a planner writes plans"
        planner.at(step + 3)
        assert planner.at(step) == plan, "the plan of a step changed when another was asked for"


PLAN_LAWS = [a_plan_depends_on_the_step_only]


def settings_are_a_value(settings: Any) -> None:
    """Frozen, and equal to a copy of itself."""
    for f in fields(settings):
        try:
            setattr(settings, f.name, None)
        except FrozenInstanceError:
            continue
        raise AssertionError(f"{type(settings).__name__}.{f.name} can be assigned to")
    assert replace(settings) == settings, "a copy is not equal"
    assert type(settings).__doc__ and not type(settings).__doc__.startswith(f"{type(settings).__name__}("), "no words"


def inputs_are_left_alone(objective: Objective) -> None:
    """A stage returns a new record, and never edits the one it was given."""
    of, before = batch(), batch()
    outcome(objective, of)
    both = concatenate([of.rollout, before.rollout])
    assert torch.equal(both.logp[:12], both.logp[12:]), "the rollout was edited"
    assert torch.equal(of.advantage, before.advantage), "the advantage was edited"


OBJECTIVE_LAWS.append(inputs_are_left_alone)
