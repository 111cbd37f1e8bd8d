"""A source whose samples are drawn by workers on a Ray cluster, each with a policy of its own.

Before every draw they get the weights that the learner would draw with, also of one whose weights are divided among
processes (`shard: true`): every worker has them whole. Noise is keyed by sample, so the rollout is the one that would
have been drawn here; rounding may differ with the number of workers, as it does with `rows`. In a run of several
processes each has workers of its own. Suites draw with the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from burnish.core import Policy, Scorer, Source
from burnish.crew import Crew, Size
from burnish.models.sharding import full
from burnish.types import Plan, Prompt, Rollout, concatenate, moved

CPU = torch.device("cpu")


class _AsOf(Source):
    """Asks what another source asks."""

    of: Source

    def prompts_at(self, step: int, seed: int) -> Sequence[Prompt]:
        return self.of.prompts_at(step, seed)

    def plan_at(self, step: int) -> Plan:
        return self.of.plan_at(step)

    def evaluation(self) -> Plan:
        return self.of.evaluation()


@dataclass(frozen=True)
class OnRay(_AsOf, Source):
    """What `of` draws, drawn by workers. Called itself, without workers at hand, it is `of`."""

    of: Source  # which prompts, and how they are drawn; one that looks at rewards while it draws (search) cannot be
    workers: int = 1  # that draw, each some of the groups
    cpus: float = 1.0  # set aside for each
    gpus: float = 0.0  # set aside for each; less than 1 is a share of one

    def __post_init__(self) -> None:
        self._size()

    def _size(self) -> Size:
        return Size(self.workers, self.cpus, self.gpus)

    def hired(self, load: Callable[[torch.device], Policy]) -> Source:
        """Start the workers. Raises ValueError if that fails, and what loading the policy raises."""
        return _Hired(self.of, Crew(partial(_Drawing, self.of, load), self._size()))

    def draw(
        self,
        policy: Policy,
        step: int,
        seed: int,
        attempt: int = 0,
        scorer: Scorer | None = None,
        places: Sequence[int] | None = None,
        drawn: Callable[[Rollout], None] | None = None,
    ) -> Rollout:
        return self.of.draw(policy, step, seed, attempt, scorer, places, drawn)


class _Hired(_AsOf):
    def __init__(self, of: Source, crew: Crew) -> None:
        self.of, self._crew = of, crew

    @torch.no_grad()
    def draw(
        self,
        policy: Policy,
        step: int,
        seed: int,
        attempt: int = 0,
        scorer: Scorer | None = None,
        places: Sequence[int] | None = None,
        drawn: Callable[[Rollout], None] | None = None,
    ) -> Rollout:
        known = policy.parameters()
        weights = self._crew.share({name: full(weight).detach().cpu() for name, weight in known})
        all_of_them = range(len(self.prompts_at(step, seed))) if places is None else places
        shares = torch.tensor(list(all_of_them)).chunk(len(self._crew))
        plan, device = self.plan_at(step), known[0][1].device
        parts = []
        for part in self._crew.calls([(weights, step, seed, attempt, at.tolist()) for at in shares if len(at)]):
            parts.append(replace(moved(part, device), plan=plan))
            if drawn:
                drawn(parts[-1])
        return concatenate(parts)


class _Drawing:
    """What a worker does."""

    def __init__(self, of: Source, load: Callable[[torch.device], Policy], device: torch.device) -> None:
        self._of, self._policy = of, load(device)

    @torch.no_grad()
    def __call__(
        self, weights: Mapping[str, Tensor], step: int, seed: int, attempt: int, places: Sequence[int]
    ) -> Rollout:
        for name, weight in self._policy.parameters():
            weight.copy_(weights[name])
        rollout = self._of.draw(self._policy, step, seed, attempt, places=places)
        return moved(replace(rollout, plan=Plan()), CPU)  # the plan is known there, and may hold any component
