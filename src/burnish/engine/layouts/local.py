"""One process, one device.

A layout answers two questions and nothing else: where the models live, and who holds which part of them. What it
builds is all that the loop sees. A layout over several processes (processes.py) builds the same `Place`: its learner
sums losses, counts and gradients over ranks before it divides, and its source draws a share of the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from burnish.core import Advantage, Objective, Policy, Scorer, Source
from burnish.engine.drawers import DrawnByWorkers
from burnish.engine.learner import Learner
from burnish.engine.memory import Memories, begun
from burnish.engine.ranks import Alone, Ranks
from burnish.engine.resting import Resting
from burnish.machine import first_device
from burnish.recipe.recipe import Recipe
from burnish.rewards.on_ray import OnRay


@dataclass(frozen=True)
class Place:
    """What a run works with."""

    device: torch.device
    policy: Policy
    source: Source  # at work
    scorer: Scorer
    measures: Mapping[str, Scorer]
    learner: Learner
    advantage: Advantage  # at work, as is the objective: what in them remembers has begun
    objective: Objective
    memories: Memories
    ranks: Ranks  # the processes of the run


class Local:
    """The layout of one process."""

    ranks: Ranks = Alone()

    def device(self, name: str) -> torch.device:
        """The device of that name here. Raises ValueError for one that is absent."""
        return device_of(name)

    def build(self, recipe: Recipe) -> Place:
        """Load everything a recipe names. Raises ValueError for weights that do not fit."""
        return built(recipe, self.device(recipe.device), self.ranks)


Divide = Callable[[Policy], None]


def undivided(policy: Policy) -> None:
    """Every process has all weights."""


def built(recipe: Recipe, device: torch.device, ranks: Ranks, divide: Divide = undivided) -> Place:
    """What a recipe names, in this process. `divide` may divide the policy's weights."""
    policy = _begun(recipe, device, divide)
    policy.keep(recipe.copies())
    reward = OnRay(recipe.reward, recipe.scorers) if recipe.scorers else recipe.reward
    scorer = reward.load(device)
    measures = {name: reward.load(device) for name, reward in recipe.measures.items()}
    if recipe.rewards_rest:
        scorer, measures = Resting(scorer, device), {name: Resting(one, device) for name, one in measures.items()}
    learner = Learner(policy, recipe.optim, recipe.objective.needs(), recipe.seed, recipe.steps, ranks)
    advantage, weighing = begun(recipe.advantage, policy, "advantage", scorer)
    objective, losing = begun(recipe.objective, policy, "objective", scorer)
    memories = Memories({**weighing, **losing})
    source = recipe.source
    if recipe.drawers:
        source = DrawnByWorkers(source, partial(_begun, recipe), recipe.drawers)
    return Place(device, policy, source, scorer, measures, learner, advantage, objective, memories, ranks)


def _begun(recipe: Recipe, device: torch.device, divide: Divide = undivided) -> Policy:
    # Fresh weights (an adapter's, say) come from torch's own stream: the same seed gives the same ones.
    torch.manual_seed(recipe.seed)
    return trained(recipe, device, divide)


def trained(recipe: Recipe, device: torch.device, divide: Divide = undivided) -> Policy:
    """The policy of a recipe, of which just the weights that it asks for are trained."""
    policy = recipe.policy.load(device)
    divide(policy)
    if recipe.optim.only:
        policy.narrow(recipe.optim.only)
    return policy


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is the accelerator if there is one. Raises ValueError for one that is absent."""
    if name == "auto":
        return first_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise ValueError(
            f"device: {name!r} is not on this machine ({problem}); 'auto' takes what there is"
        ) from problem
    return device
