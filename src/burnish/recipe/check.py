"""Everything about a recipe that can be known before a model loads.

Faults stop a run. Warnings name settings that cannot act (idle.py). What memory and time it takes is estimate.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch

from burnish.core import LatentPlan, Objective, Policy
from burnish.machine import processes
from burnish.pairs import read_pairs
from burnish.recipe import find
from burnish.recipe.encode import encode
from burnish.recipe.idle import idle
from burnish.recipe.read import leaves
from burnish.recipe.recipe import Recipe
from burnish.recipe.weights import missing_weights


@dataclass(frozen=True)
class Findings:
    """What is wrong with a recipe, and what in it does nothing."""

    faults: tuple[str, ...]  # a run cannot start, or cannot do what it says
    warnings: tuple[str, ...]  # a run can start, but these settings do not act


def check(recipe: Recipe) -> Findings:
    """All faults and warnings of a recipe. Reads prompts and lists of pairs, loads no weights; may ask the hub whether
    it has them."""
    files = (*missing_weights(recipe), *_pairs(recipe))
    faults = [*numbers(recipe), *fit(recipe), *files, *_device(recipe), *_elsewhere(recipe)]
    try:
        recipe.source.prompts_at(1, recipe.seed)
    except ValueError as problem:
        return Findings((f"source: {problem}", *faults), ())
    faults = [*_division(recipe), *faults]
    found = idle(recipe)
    return Findings((*faults, *found.faults), found.warnings)


def require(recipe: Recipe) -> tuple[str, ...]:
    """The warnings of a recipe. Raises ValueError with its faults, if it has any."""
    found = check(recipe)
    if found.faults:
        raise ValueError("; ".join(found.faults))
    return found.warnings


def samples(recipe: Recipe) -> tuple[int, int]:
    """(prompts, samples of each) of a step."""
    return len(recipe.source.prompts_at(1, recipe.seed)), recipe.source.plan_at(1).group


def numbers(recipe: Recipe) -> Iterator[str]:
    """A sentence for every number of the recipe that is out of range."""
    optim = recipe.optim
    at_least = {
        "steps": (recipe.steps, 1),
        "evaluate_every": (recipe.evaluate_every, 0),
        "checkpoint_every": (recipe.checkpoint_every, 0),
        "samples_every": (recipe.samples_every, 0),
        "keep_checkpoints": (recipe.keep_checkpoints, 1),
        "optim.epochs": (optim.epochs, 1),
        "optim.minibatches": (optim.minibatches, 1),
        "optim.micro": (optim.micro, 0),
        "optim.warmup": (optim.warmup, 0),
        "optim.weight_decay": (optim.weight_decay, 0),
        "optim.clip_norm": (optim.clip_norm, 0),
    }
    for name, (value, least) in at_least.items():
        if not value >= least:
            yield f"{name}: expected {least} or more, got {value}"
    if optim.moments == 8 and recipe.shard:
        yield "optim.moments: moments in 8 bits are not divided among processes; 32 bits, or shard: false would work"
    if not optim.lr > 0:
        yield f"optim.lr: expected more than 0, got {optim.lr}"
    if optim.ema and "ema" in recipe.objective.needs().copies:
        yield "optim.ema: the objective keeps a copy of this name; null would work"
    if not all(0 <= beta < 1 for beta in optim.betas):
        yield f"optim.betas: expected two numbers from 0 to below 1, got {list(optim.betas)}"


def _division(recipe: Recipe) -> Iterator[str]:
    """A rollout must fall into equal minibatches, and groups must stay whole where the objective needs them so."""
    prompts, group = samples(recipe)
    b, optim = prompts * group, recipe.optim
    if optim.minibatches < 1:
        return
    whole = recipe.objective.needs().whole_groups
    by_prompt = whole or recipe.source.plan_at(1).shares_learned
    units, unit = (prompts, "prompts, whose groups must stay whole,") if by_prompt else (b, "samples")
    if units % optim.minibatches:
        yield (
            f"optim.minibatches: {units} {unit} cannot be cut into {optim.minibatches} equal minibatches "
            f"({prompts} prompts x {group} = {b} samples a step); {_near(units, optim.minibatches)} would work"
        )
    if whole and optim.micro % group:
        yield (
            f"optim.micro: {optim.micro} would split groups of {group}, which {_called(recipe.objective)} needs whole; "
            f"a multiple of {group} would work"
        )


def _near(units: int, wanted: int) -> str:
    """The divisors of `units` next to `wanted`."""
    divisors = [d for d in range(1, units + 1) if units % d == 0]
    below, above = [d for d in divisors if d < wanted][-1:], [d for d in divisors if d > wanted][:1]
    return " or ".join(map(str, below + above))


def fit(recipe: Recipe) -> Iterator[str]:
    """A sentence for every pair of components that cannot work together."""
    needs = recipe.objective.needs()
    wanted, given = accepts(type(recipe.objective)), loads(recipe)
    name = _called(recipe.objective)
    if not issubclass(given, wanted):
        yield (
            f"objective: {name} needs a {wanted.__name__}, but policy {_called(recipe.policy)} is only a "
            f"{_interface(given).__name__}"
        )
    plan = type(recipe.source.plan_at(1))
    if not issubclass(plan, given.plans):
        yield (
            f"plan: policy {_called(recipe.policy)} is drawn from by a {given.plans.__name__}, and the plan of this "
            f"source is a {plan.__name__}"
        )
    if recipe.optim.by_step:
        first = recipe.source.plan_at(1)
        if not isinstance(first, LatentPlan) or not first.learned:
            yield "optim.by_step: takes steps of a denoiser that are drawn at random, and this plan draws none"
        elif needs.whole_groups or needs.reward_gradient:
            yield f"optim.by_step: {name} learns from whole samples, and not from single steps; false would work"
    if needs.reward_gradient and not recipe.reward.differentiable:
        yield f"reward: {name} differentiates the reward, but {_called(recipe.reward)} has no gradient"
    if recipe.policy.videos:
        yield from _videos(recipe)
    if needs.draw_from not in ("live", *needs.copies):
        yield f"objective: {name} draws from a copy {needs.draw_from!r} that it does not keep"


def _videos(recipe: Recipe) -> Iterator[str]:
    """A sentence for every reward and suite that knows pictures only."""
    rewards = {"reward": recipe.reward, **{f"measures.{name}": reward for name, reward in recipe.measures.items()}}
    draws = f"policy {_called(recipe.policy)} draws videos"
    for place, reward in rewards.items():
        if not reward.videos:
            inside = _called(reward)
            yield (
                f"{place}: {draws}, and {inside} scores pictures; frames: {{of: {inside}}} asks it about some of the "
                "frames"
            )
    for name, suite in recipe.suites.items():
        if not suite.videos:
            yield f"suites.{name}: {draws}, and {_called(suite)} looks at pictures"


def accepts(objective: type[Objective[Any]]) -> type[Policy]:
    """The P of `Objective[P]`: the policies an objective accepts."""
    for base in vars(objective).get("__orig_bases__", ()):
        if get_origin(base) is Objective and not isinstance(get_args(base)[0], TypeVar):
            return get_args(base)[0]
    return Policy


def loads(recipe: Recipe) -> type[Policy]:
    """The class of the policy that the recipe's settings load, from the declared result of `load`."""
    declared = get_type_hints(type(recipe.policy).load).get("return", Policy)
    return declared if isinstance(declared, type) else Policy


def _interface(cls: type) -> type:
    """The interface of core.py that a policy class implements."""
    return next((base for base in cls.__mro__ if base.__module__ == "burnish.core"), Policy)


def _called(component: object) -> str:
    return find.name_of(type(component))


def _pairs(recipe: Recipe) -> Iterator[str]:
    """What is wrong with pictures and captions of one's own: settings that name them are called `pairs`."""
    for path, name in leaves(encode(recipe)).items():
        if path.endswith(".pairs") and isinstance(name, str):
            try:
                read_pairs(name, path)
            except ValueError as problem:
                yield str(problem)


def _device(recipe: Recipe) -> Iterator[str]:
    if recipe.device == "auto" or recipe.learners:  # which look at home
        return
    try:
        torch.empty(0, device=torch.device(recipe.device))
    except (RuntimeError, AssertionError) as problem:
        why = str(problem).splitlines()[0]
        yield f"device: {recipe.device!r} is not on this machine ({why}); 'auto' takes what there is"


def _elsewhere(recipe: Recipe) -> Iterator[str]:
    """What is done by others than this process, and by libraries that are extras."""
    named = [name for name in ("learners", "drawers", "scorers") if getattr(recipe, name)]
    if named and not find_spec("ray"):
        yield f"{named[0]}: a Ray cluster needs ray: pip install 'burnish[ray]'"
    if recipe.optim.moments == 8 and not find_spec("torchao"):
        yield "optim.moments: 8 bits need torchao: pip install 'burnish[torchao]'"
    if recipe.learners and processes() > 1:
        yield "learners: are started by Ray, and this is one of several processes already; start it without torchrun"
    if recipe.objective.needs().reward_gradient:
        name = _called(recipe.objective)
        if recipe.scorers:
            yield f"scorers: {name} differentiates the reward, which workers cannot do; null would work"
        if recipe.rewards_rest:
            yield f"rewards_rest: {name} differentiates the reward, whose models have to stay; false would work"
    if recipe.reward.compares:
        name = _called(recipe.reward)
        if recipe.scorers and recipe.scorers.count > 1:
            yield f"scorers: {name} compares the samples of a prompt, which workers would part; count=1 would work"
        if recipe.overlap and getattr(recipe.source, "rows", 0):
            yield f"overlap: {name} compares the samples of a prompt, and would see some of them; false would work"
    if recipe.drawers and getattr(recipe.source, "search", None):
        yield "drawers: this source looks at rewards while it draws (search), and workers have none; null would work"
