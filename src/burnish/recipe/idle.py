"""Settings that cannot act. A setting that does nothing is worse than none: somebody believes in it.

What an advantage does with scores is not looked up by its name; it is tried on a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.recipe.encode import encode
from burnish.recipe.recipe import Recipe
from burnish.types import Latents, Plan, Prompt, Rollout, Scores, TokenPlan, Tokens


@dataclass(frozen=True)
class Idle:
    faults: tuple[str, ...]  # nothing would be learned
    warnings: tuple[str, ...]


def idle(recipe: Recipe) -> Idle:
    """What in a recipe has no effect. The prompts of its source must be readable."""
    plan = recipe.source.plan_at(1)
    faults = tuple(_group_of_one(recipe, plan))
    warnings = (*_ratios(recipe, plan), *_distance(recipe), *_law(plan), *_reward_scale(recipe, plan), *_clock(recipe))
    return Idle(faults, warnings)


def _settings(component: Any) -> tuple[str, Mapping[str, Any]]:
    """Recipe name and plain settings of a component."""
    data = encode(component)
    return (data, {}) if isinstance(data, str) else next(iter(data.items()))


def _ratios(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """With one update a rollout every ratio is 1, unless the law drawn from is not the law trained."""
    name, settings = _settings(recipe.objective)
    clips = [f for f in ("clip", "clip_high", "dual_clip", "cap") if settings.get(f) is not None]
    several = recipe.optim.epochs * recipe.optim.minibatches > 1 or recipe.optim.by_step
    needs = recipe.objective.needs()
    averaged = any(copy.decay is not None for copy in needs.copies.values())  # ratios may be to one of these
    on_law = needs.anchor == "recomputed" or plan.one_law
    if clips and not several and on_law and needs.draw_from == "live" and not averaged:
        yield (
            f"objective.{name}: {', '.join(clips)} cannot act: with one update a rollout (optim.epochs x "
            "optim.minibatches = 1) every ratio is 1"
        )
    if needs.anchor == "recomputed" and plan.one_law and several:
        yield f"objective.{name}.anchor: 'recomputed' gives what was recorded: the law trained is the law drawn from"


def _distance(recipe: Recipe) -> Iterator[str]:
    """KL without a weight, or without a reference to be far from."""
    name, settings = _settings(recipe.objective)
    kept = recipe.objective.needs().copies
    if settings.get("kl", 0) > 0 and "reference" not in kept:
        yield f"objective.{name}.kl: {settings['kl']} cannot act: no reference copy is kept"
    if settings.get("kl") == 0 and settings.get("kl_estimator", "k3") != "k3":
        yield f"objective.{name}.kl_estimator: cannot act while kl is 0"
    if settings.get("kl", 0) > 0 and settings.get("kl_estimator") == "k1":
        yield f"objective.{name}.kl_estimator: k1 in the loss has a gradient of mean zero, so it holds nothing back"
    if settings.get("length", 0) and settings.get("aggregation") != "constant":
        yield f"objective.{name}.length: cannot act: only aggregation 'constant' divides by it"


def _law(plan: Plan) -> Iterator[str]:
    if not isinstance(plan, TokenPlan):
        return
    where = "plan"
    if plan.guidance == 1 and plan.detach_null:
        yield f"{where}.detach_null: cannot act: with guidance 1 there is no unconditional branch"
    if plan.law == "conditional" and plan.detach_null:
        yield f"{where}.detach_null: cannot act: law 'conditional' does not train through the unconditional branch"
    if plan.law != "sampled" and plan.one_law:
        yield f"{where}.law: {plan.law!r} is the same as 'sampled' with this guidance, temperature and filter"
    if plan.top_k == 1:
        yield f"{where}.top_k: 1 draws one and the same sample for a whole group; there is nothing to compare"


def _group_of_one(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """An advantage that compares within a group gives 0, or nothing at all, where the group is one sample.

    Objectives that differentiate the reward learn without it.
    """
    if plan.group > 1 or recipe.objective.needs().reward_gradient:
        return
    name, _ = _settings(recipe.advantage)
    values = _tried(recipe, plan, 1.0)
    if values is not None and bool((values == 0).all()):
        yield (
            f"plan.group: with groups of 1, {name} is 0 for every sample and nothing is learned; "
            "group: 2 or more would work, or an advantage over the batch (global_norm: {baseline: batch})"
        )


def _reward_scale(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """Under an advantage divided by a standard deviation, the scale of a reward is divided out."""
    name, settings = _settings(recipe.reward)
    scales = [f"{key}: {value}" for key, value in settings.items() if key == "scale" and value != 1]
    weights = settings.get("weights")
    if isinstance(weights, Mapping):
        acting = {part: weight for part, weight in weights.items() if weight != 0}
        scales += [
            f"weights: {{{part}: {weight}}}" for part, weight in acting.items() if len(acting) == 1 and weight != 1
        ]
    if not scales:
        return
    one, ten = _tried(recipe, plan, 1.0), _tried(recipe, plan, 10.0)
    if one is not None and ten is not None and torch.allclose(one, ten, rtol=1e-2, atol=1e-3):
        yield (
            f"reward.{name}: {', '.join(scales)} cannot act: advantage {_settings(recipe.advantage)[0]} divides the "
            "scale of the reward out"
        )


def _tried(recipe: Recipe, plan: Plan, scale: float) -> Tensor | None:
    """The advantage of made-up scores times `scale`; None where it asks for more than can be made up."""
    b, k = 4 * plan.group, 2
    values = torch.from_numpy(generator("scores").normal(size=b)).float() * scale
    zeros = torch.zeros(b, k)
    if isinstance(plan, TokenPlan):
        plan, decisions = replace(plan, law="sampled"), Tokens(zeros.long(), zeros - 1, zeros + 1, zeros.long(), zeros)
    else:
        state, number = torch.zeros(b, k, 1), torch.arange(b * k).view(b, k)
        times, ones = torch.zeros(b, k, 2), zeros + 1
        decisions = Latents(state, state, times, zeros - 1, state, ones, ones, zeros, number % k, number, number)
    group = torch.arange(4).repeat_interleave(plan.group)
    rollout = Rollout(
        tuple(Prompt(str(i), "") for i in group.tolist()), group, (decisions,), torch.zeros(b, 3, 1, 1),
        plan, tuple(range(b)), anchor=zeros - 1, reference=zeros - 1,
    )  # fmt: skip
    weights = _settings(recipe.advantage)[1].get("weights") or {}
    scores = replace(Scores.of("made up", values), parts=dict.fromkeys(weights or ("made up",), values))
    try:
        return recipe.advantage(scores, rollout)
    except ValueError:
        return None


def _clock(recipe: Recipe) -> Iterator[str]:
    """Settings that come due after the last step, or that wait for what happens at once."""
    optim, updates = recipe.optim, recipe.steps * recipe.optim.epochs * recipe.optim.minibatches
    if optim.warmup >= updates:
        yield f"optim.warmup: the learning rate never arrives: {optim.warmup} updates of warm-up, {updates} in the run"
    if optim.ema and optim.ema.every > recipe.steps:
        yield f"optim.ema.every: the average never moves: {optim.ema.every} steps, {recipe.steps} in the run"
    if recipe.evaluate_every > 0 and not recipe.suites:
        yield "evaluate_every: cannot act: there are no suites to run"
    elif recipe.evaluate_every >= recipe.steps:
        yield f"evaluate_every: {recipe.evaluate_every} does not come before the last of {recipe.steps} steps"
    b = len(recipe.source.prompts_at(1, recipe.seed)) * recipe.source.plan_at(1).group
    rows = getattr(recipe.source, "rows", 0)
    if recipe.overlap and (rows == 0 or rows >= b):
        yield (
            f"overlap: no reward can be at work while more is drawn: all {b} samples of a step are drawn at once "
            f"(source.on_policy.rows: {rows}); only the texts of the next step are read ahead"
        )
    if optim.micro > b // optim.minibatches:
        yield f"optim.micro: {optim.micro} is more than the {b // optim.minibatches} samples of a minibatch"
