"""What every component of a kind must obey. Each law takes a component, and fails with an AssertionError."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import torch
from torch import Tensor
from toy_denoiser import ToyFlow, asked
from toys import ToyRaster, toy_prompts

from burnish.advantages.group_mean import GroupMean
from burnish.core import (
    Advantage,
    Copy,
    Denoiser,
    LatentPlan,
    Memory,
    Objective,
    Planner,
    Policy,
    Remembers,
    Reward,
    Scorer,
    Stirred,
    Transition,
    Watches,
)
from burnish.engine.ranks import read_by, slim
from burnish.formulas.matching import noised
from burnish.formulas.noise import Noise
from burnish.recipe.check import accepts
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Batch, Plan, Prompt, Rollout, Scores, TokenPlan, concatenate, take
from burnish.worlds.scenes.grammar import train

CLAIM = "Sums to zero over the valid members of each group"  # what an advantage's docstring says if it does
STEPS = "Reads the steps of a denoiser"  # and this, if it needs them
IMITATES = "Imitates"  # samples of its own, whatever their advantage
BESIDES = "not weighed by their scores alone"  # what an advantage's docstring says if something else counts as well
DATA = "learns from data all the same"  # and of one whose gradient also leads to data, as much as `weight` says
PULLS = "no advantage"  # what an objective's docstring speaks of if it has a gradient there


class NoScorer(Scorer):
    """Objectives that do not differentiate the reward must not ask for it."""

    def __call__(self, images, prompts) -> Scores:
        raise AssertionError("asked for the reward without saying so in needs()")


class Bright(Scorer):
    """For those that do."""

    def __call__(self, images, prompts) -> Scores:
        return Scores.of("bright", images.square().mean((1, 2, 3)))


def judge(objective: Objective) -> Scorer:
    return Bright() if objective.needs().reward_gradient else NoScorer()


def says(component: Any, phrase: str) -> bool:
    return phrase in " ".join((type(component).__doc__ or "").split())


def of_steps(component: Objective | Advantage) -> bool:
    """Whether it is for denoisers alone; all others are tried on tokens."""
    if isinstance(component, Objective):
        return accepts(type(component)) is Denoiser
    return says(component, STEPS)


def exactly(rollout: Rollout) -> Rollout:
    """In float64."""
    (steps,) = rollout.decisions
    values = {f.name: getattr(steps, f.name) for f in fields(steps)}
    steps = replace(steps, **{name: v.double() if v.is_floating_point() else v for name, v in values.items()})
    return replace(rollout, decisions=(steps,), final=rollout.final.double())


def denoiser(copies: dict[str, Copy], moved: float) -> Denoiser:
    """In float64, at the weights that `drawn_steps` draws by if `moved` is 0. Its copies are at those weights."""
    policy = ToyFlow(shape=(2, 2, 2), prompts=3).load(torch.device("cpu"))
    random = torch.Generator().manual_seed(7)
    for _, weight in policy.parameters():
        weight.data = weight.data.double()
    policy.keep(copies)
    for _, weight in policy.parameters():
        weight.data = weight.data + moved * torch.randn(weight.shape, generator=random, dtype=torch.float64)
    return policy


def drawn_steps(group: int = 4) -> Rollout:
    old = ToyFlow(shape=(2, 2, 2), prompts=3).load(torch.device("cpu"))
    plan = LatentPlan(group=group, steps=4, stochastic=(1, 2, 3), transition=FlowSDE())
    return exactly(old.sample(asked(group, prompts=3), plan, Noise(3, 0, tuple(range(3 * group)))))


def toy(of: Objective, moved: float = 0.001) -> Policy:
    """A policy that the objective accepts, with the copies it asks for. A denoiser's have the weights that drew."""
    if of_steps(of):
        return denoiser(dict(of.needs().copies), moved)
    return ToyRaster(dtype=torch.float64).load(torch.device("cpu"))


def drawn(of: Objective | Advantage, group: int = 4) -> Rollout:
    """Three prompts, with a reference, drawn by other weights than `toy()` has: ratios differ from 1."""
    if of_steps(of):
        rollout = drawn_steps(group)
    else:
        old = ToyRaster(dtype=torch.float64, spread=0.65).load(torch.device("cpu"))
        rollout = old.sample(toy_prompts(3, group), TokenPlan(group=group), Noise(3, 0, tuple(range(3 * group))))
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


def batch(objective: Objective, rollout: Rollout | None = None, scale: float = 1.0) -> Batch:
    rollout = drawn(objective) if rollout is None else rollout
    scores = scored(rollout)
    advantage = GroupMean()(scores, rollout) if of_steps(objective) else torch.where(scores.valid, scores.total, 0.0)
    return Batch(rollout, scores, scale * advantage, scores.valid)


def outcome(objective: Objective, of: Batch, policy: Policy | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Total, count, and gradient of the total."""
    policy = toy(objective) if policy is None else policy
    loss = objective.loss(of, policy, judge(objective))
    live = [p for _, p in policy.parameters()]
    parts = torch.autograd.grad(loss.total, live, allow_unused=True)
    slope = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(live, parts)])
    return loss.total.detach(), loss.count, slope


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], why: str, close: float = 1e-9) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=close, rtol=1e-6, msg=lambda m: f"{why}: {m}")


# --- objectives ---------------------------------------------------------------------------------------------------


def order_of_samples_does_not_matter(objective: Objective) -> None:
    whole = batch(objective)
    shuffled = take(whole, torch.randperm(len(whole.rollout), generator=torch.Generator().manual_seed(0)))
    same(outcome(objective, shuffled), outcome(objective, whole), "shuffled samples changed the loss")


def a_split_changes_nothing(objective: Objective) -> None:
    """Sums and counts add up over micro-batches. Not asked of aggregation local, which says that it depends on them."""
    if vars(objective).get("aggregation") == "local":
        return
    whole, parts = (
        batch(objective),
        [outcome(objective, take(batch(objective), torch.arange(i, i + 4))) for i in (0, 4, 8)],
    )
    same(tuple(sum(p) for p in zip(*parts)), outcome(objective, whole), "micro-batches do not add up")


def no_advantage_no_gradient(objective: Objective) -> None:
    if says(objective, PULLS):
        return
    # A leash to other weights pulls with no advantage too.
    objective = replace(objective, **{f.name: 0.0 for f in fields(objective) if f.name in ("kl", "ema_kl")})
    flat = replace(batch(objective), advantage=torch.zeros(12, dtype=torch.float64))
    assert outcome(objective, flat)[2].abs().max() == 0, "a zero advantage gave a gradient"


def dropped_samples_have_no_influence(objective: Objective) -> None:
    whole = batch(objective)
    drop = ~whole.keep
    taken = whole.rollout.decisions[0]
    what = "after" if of_steps(objective) else "ids"
    value = getattr(taken, what)
    other = replace(
        taken,
        **{what: torch.where(drop.view(-1, *[1] * (value.dim() - 1)), (value + 1) % 4, value)},
        logp=torch.where(drop[:, None], torch.full_like(taken.logp, -77.0), taken.logp),
    )
    final = whole.rollout.final
    spoiled = replace(
        whole,
        rollout=replace(
            whole.rollout,
            decisions=(other,),
            final=None if final is None else torch.where(drop.view(-1, 1, 1, 1), final + 1, final),
            reference=torch.where(drop[:, None], torch.nan, whole.rollout.reference),
        ),
        advantage=torch.where(drop, 1e6, whole.advantage),
        scores=replace(whole.scores, total=torch.where(drop, 1e6, whole.scores.total)),
    )
    same(outcome(objective, spoiled), outcome(objective, whole), "a sample that does not count did")


def padding_has_no_influence(objective: Objective) -> None:
    whole = batch(objective)
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
        rollout = drawn(objective)
        far = replace(rollout, anchor=rollout.logp + nats, reference=rollout.logp - nats)
        for value in outcome(objective, batch(objective, far, scale=50.0)):
            assert torch.isfinite(value).all(), f"a log-ratio of {-nats} nats gave {value}"


def nothing_kept_is_a_zero_sum(objective: Objective) -> None:
    none = replace(batch(objective), keep=torch.zeros(12, dtype=torch.bool))
    total, count, slope = outcome(objective, none)
    assert total == 0 and count == 0 and slope.abs().max() == 0, "an empty batch weighs something"


def a_step_down_the_loss_makes_good_samples_likelier(objective: Objective) -> None:
    """At the weights that drew, the loss goes down where sum of advantage x log-probability goes up."""
    if says(objective, IMITATES) or objective.needs().reward_gradient:
        return
    if says(objective, DATA):
        objective = replace(objective, weight=0.0)
    policy = toy(objective, moved=0.0)
    if of_steps(objective):
        rollout = drawn(objective)
    else:
        rollout = policy.sample(toy_prompts(3, 4), TokenPlan(group=4), Noise(4, 0, tuple(range(12))))
    of = batch(objective, replace(rollout, reference=rollout.logp))
    if hasattr(objective, "draws"):
        objective, likely, least = replace(objective, draws=100), matched(policy, of), 0.3
    else:
        likely, least = policy.logp(rollout), 0.9
    slope = outcome(objective, of, policy)[2]
    better = (of.advantage.unsqueeze(1) * likely).sum()
    up = torch.cat([g.flatten() for g in torch.autograd.grad(better, [p for _, p in policy.parameters()])])
    assert torch.cosine_similarity(slope, -up, dim=0) > least, "the gradient does not lead towards good samples"


def matched(policy: Denoiser, of: Batch) -> Tensor:
    """What stands for the log-probability where samples are noised again: minus the mean error of the velocity."""
    some = noised(of, 100, "uniform", policy.times(4))
    return -some.error(policy.velocity(some.x, some.t, some.prompts)).mean(1, keepdim=True)


def metrics_are_those_documented(objective: Objective) -> None:
    """Those of a copy that may not be kept say so, and may be missing. What is wrapped brings its own."""
    named, each = {}, objective
    while each is not None:
        doc = (type(each).__doc__ or "").partition("Metrics:")[2]
        named = dict(re.findall(r"^ +(\w+)  +(.*)$", doc, re.M)) | named
        each = vars(each).get("inner")
    found = set(objective.loss(batch(objective), toy(objective), judge(objective)).metrics)
    if isinstance(objective, Remembers):
        found |= set(stepped(objective).metrics())
    always = {name for name, words in named.items() if not (of_steps(objective) and "is kept" in words)}
    assert always <= found <= set(named), f"docstring lists {sorted(named)}, loss returns {sorted(found)}"


def stepped(objective: Remembers) -> Memory:
    """What begins of it, after a step."""
    policy, of = toy(objective), batch(objective)
    at_work = objective.begin(policy)
    if isinstance(at_work, Watches):
        at_work.before(take(of, of.keep.nonzero().squeeze(1)))
    at_work.loss(of, policy, judge(objective))
    if isinstance(at_work, Watches):
        at_work.after({})
    return at_work


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
    rollout = drawn(advantage)
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(0))
    found = advantage(take(scored(rollout), order), take(rollout, order))
    same((found,), (advantage(scored(rollout), rollout)[order],), "shuffled samples changed an advantage")


def invalid_members_get_and_give_nothing(advantage: Advantage) -> None:
    rollout, scores = drawn(advantage), scored(drawn(advantage))
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
    rollout = drawn(advantage)
    found = advantage(scored(rollout), rollout)
    for group in rollout.group.unique():
        total = found[rollout.group == group].sum(0).abs().max()
        assert total < 1e-9, f"group {group} sums to {total}"
    assert found.abs().max() > 0.1, "no advantage at all"


def a_better_sample_has_the_larger_advantage(advantage: Advantage) -> None:
    if says(advantage, BESIDES):
        return
    rollout = drawn(advantage)
    rollout = replace(rollout, reference=rollout.logp)  # no penalty to tell siblings apart by
    total = torch.arange(12, dtype=torch.float64)
    scores = Scores(total, {"only": total}, torch.ones(12, dtype=torch.bool))
    found = advantage(scores, rollout).view(3, 4, -1)
    assert (found.diff(dim=1) > 0).all(), "a better sample of a group is not worth more"


def stepwise(advantage: Advantage, steps: int = 3) -> Iterator[tuple[Scores, Rollout]]:
    """What it would see of a run: other scores in every step."""
    rollout = drawn(advantage)
    for step in range(steps):
        some = scored(rollout)
        total = some.total * (step + 1) + torch.arange(12) * step
        yield replace(some, total=total), replace(rollout, media=(rollout.media * (step + 1)).cos())


def what_it_remembers_comes_back(advantage: Advantage) -> None:
    """Saved and restored after two steps, the third is the same to the last bit."""
    if not isinstance(advantage, Remembers):
        return
    one, other = advantage.begin(None), advantage.begin(None)
    *earlier, last = stepwise(advantage)
    for step in earlier:
        one(*step)
    file = io.BytesIO()
    torch.save(one.state(), file)
    file.seek(0)
    other.restore(torch.load(file, weights_only=True))
    assert torch.equal(one(*last), other(*last)), "a resumed run is another run"
    named = re.findall(r"^ +(\w+)  +", (type(advantage).__doc__ or "").partition("Metrics:")[2], re.M)
    assert set(named) == set(one.metrics()), f"docstring lists {sorted(named)}, it reports {sorted(one.metrics())}"


def settings_remember_nothing(advantage: Advantage) -> None:
    """They are called by whoever only wants to see what would come of them."""
    first, *_, last = stepwise(advantage)
    expected = advantage(*first)
    advantage(*last)
    assert torch.equal(advantage(*first), expected), "settings remember what they were asked before"


def it_says_what_it_reads(advantage: Advantage) -> None:
    """Over several processes it is given the pictures and states that it says it reads, and no others."""
    rollout = drawn(advantage)
    expected = advantage(scored(rollout), rollout)
    try:
        found = advantage(scored(rollout), slim(rollout, read_by(advantage)))
    except ValueError as refused:
        raise AssertionError(str(refused)) from refused
    assert torch.equal(found, expected)


ADVANTAGE_LAWS = [
    it_says_what_it_reads,
    advantages_follow_their_samples,
    invalid_members_get_and_give_nothing,
    advantages_sum_to_zero_in_each_group,
    a_better_sample_has_the_larger_advantage,
    what_it_remembers_comes_back,
    settings_remember_nothing,
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


# --- transitions --------------------------------------------------------------------------------------------------


def moved(transition: Transition, t: float, s: float, n: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, velocity, mean, std) of `n` rows, float64."""
    random = torch.Generator().manual_seed(0)
    x, v = (torch.randn(n, 2, 3, 3, generator=random, dtype=torch.float64) for _ in range(2))
    return x, v, *transition.move(x, v, *(torch.full((n,), u, dtype=torch.float64) for u in (t, s)))


def noise_after(transition: Transition, t: float, s: float) -> float:
    """Deviation of the noise that follows a step, where it is a decision and noise after it."""
    ends = (torch.tensor([u], dtype=torch.float64) for u in (t, s))
    return transition.stir(*ends).item() if isinstance(transition, Stirred) else 0.0


def a_point_mass_stays_where_it_is(transition: Transition) -> None:
    """Data all at c: the state is (1 - s) c + s noise, up to noise that falls with the square of the step."""

    def mean(x: float, c: float, t: float, s: float) -> tuple[float, float]:
        state = torch.tensor([[x]], dtype=torch.float64)
        after, std = transition.move(state, (state - c) / t, *(torch.tensor([u], dtype=torch.float64) for u in (t, s)))
        return after.item(), std.item()

    surplus = []
    for h in (0.04, 0.02):
        t, s = 0.7, 0.7 - h
        slope, std = mean(1.0, 0.0, t, s)
        centre = slope * (1 - t) + mean(0.0, 1.0, t, s)[0]
        assert abs(centre - (1 - s)) < 1e-12, f"a share {centre} of the data, and not {1 - s}"
        surplus.append(abs(slope**2 * t**2 + std**2 + noise_after(transition, t, s) ** 2 - s**2))
    assert surplus[1] < 1e-12 or 3.5 < surplus[0] / surplus[1] < 4.5, f"too noisy by {surplus} at steps of 0.04, 0.02"


def a_row_moves_by_itself(transition: Transition) -> None:
    random = torch.Generator().manual_seed(1)
    x, v = (torch.randn(3, 2, 3, 3, generator=random, dtype=torch.float64) for _ in range(2))
    t, s = torch.tensor([1.0, 0.8, 0.3], dtype=torch.float64), torch.tensor([0.9, 0.2, 0.1], dtype=torch.float64)
    mean, std = transition.move(x, v, t, s)
    assert mean.shape == x.shape and std.shape == (3,), "a mean like the state and a deviation a row"
    for i in range(3):
        row = slice(i, i + 1)
        same(transition.move(x[row], v[row], t[row], s[row]), (mean[row], std[row]), "a row depends on its company")


def every_step_but_the_last_has_a_likelihood(transition: Transition) -> None:
    for t, s in ((1.0, 0.9), (0.9, 0.5), (0.1, 0.01)):
        _, _, mean, std = moved(transition, t, s)
        assert (std > 0).all() and std.isfinite().all(), f"deviation {std} from {t} to {s}"
        assert mean.isfinite().all() and transition.logp(mean, mean, std).isfinite().all(), f"not finite at {t}"
    _, _, mean, std = moved(transition, 0.1, 0.0)
    assert mean.isfinite().all() and std.isfinite().all(), "not finite at the end"


def a_state_is_likelier_nearer_the_mean(transition: Transition) -> None:
    _, _, mean, std = moved(transition, 0.6, 0.4)
    found = torch.stack([transition.logp(mean + far, mean, std) for far in (0.0, 0.1, -0.2, 0.3)])
    assert (found.diff(dim=0) < 0).all(), "a state further off is not less likely"


def the_likelihood_can_be_learned_from(transition: Transition) -> None:
    """A step up the log-probability of a state moves the mean towards it."""
    x, v, _, _ = moved(transition, 0.6, 0.4)
    v.requires_grad_()
    t, s = (torch.full((3,), u, dtype=torch.float64) for u in (0.6, 0.4))
    mean, std = transition.move(x, v, t, s)
    after = mean.detach() + 0.1
    (slope,) = torch.autograd.grad(transition.logp(after, mean, std).sum(), v)
    nearer, _ = transition.move(x, v + slope, t, s)
    assert ((nearer - mean) * 0.1 > 0).all(), "the gradient does not lead towards the state"


TRANSITION_LAWS = [
    a_point_mass_stays_where_it_is,
    a_row_moves_by_itself,
    every_step_but_the_last_has_a_likelihood,
    a_state_is_likelier_nearer_the_mean,
    the_likelihood_can_be_learned_from,
]


# --- plans, and everything ----------------------------------------------------------------------------------------


def by_plan(plan: Plan) -> tuple[Policy, Rollout]:
    """Two prompts, drawn by a policy that the plan is for."""
    if isinstance(plan, LatentPlan):
        policy, prompts = ToyFlow().load(torch.device("cpu")), asked(plan.group)
    else:
        policy, prompts = ToyRaster().load(torch.device("cpu")), toy_prompts(2, plan.group)
    return policy, policy.sample(prompts, plan, Noise(0, 1, tuple(range(len(prompts)))))


def a_plan_depends_on_the_step_only(planner: Planner) -> None:
    for step in (0, 7, 1000):
        plan = planner.at(step)
        assert isinstance(plan, Plan), "a planner writes plans"
        planner.at(step + 3)
        assert planner.at(step) == plan, "the plan of a step changed when another was asked for"


def what_a_plan_draws_can_be_scored_again(planner: Planner) -> None:
    for step in (1, 2, 1000):
        policy, rollout = by_plan(planner.at(step))
        found = policy.logp(rollout) if rollout.decisions else rollout.logp
        # float32, and a log-probability near 0 is a difference of numbers near 1
        same((found,), (rollout.logp,), f"at step {step} replay differs from what was recorded", 1e-6)
        assert rollout.logp.isfinite().all(), f"a log-probability at step {step} is not finite"


def one_of_each_prompt_is_looked_at(planner: Planner) -> None:
    plan = planner.evaluation()
    assert plan.group == plan.compared == plan.together == 1, "an evaluation draws each prompt once"
    _, rollout = by_plan(plan)
    assert len(rollout) == 2 and rollout.media.isfinite().all(), "not a picture of each prompt"


PLAN_LAWS = [
    a_plan_depends_on_the_step_only,
    what_a_plan_draws_can_be_scored_again,
    one_of_each_prompt_is_looked_at,
]


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
    of, before = batch(objective), batch(objective)
    outcome(objective, of)
    both = concatenate([of.rollout, before.rollout])
    assert torch.equal(both.logp[:12], both.logp[12:]), "the rollout was edited"
    assert torch.equal(of.advantage, before.advantage), "the advantage was edited"


OBJECTIVE_LAWS.append(inputs_are_left_alone)
