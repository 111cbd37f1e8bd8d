"""Samples drawn by workers on a Ray cluster, each with a policy of its own.

Before every draw they get the weights that the learner would draw with, also of one whose weights are divided among
processes (`shard: true`): every worker has them whole. Noise is keyed by sample, so the rollout is the one that would
have been drawn here; rounding may differ with the number of workers, as it does with `rows`. In a run of several
processes each has workers of its own. Suites draw with the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from burnish.core import Policy, Scorer, Source
from burnish.crew import Crew, Workers
from burnish.models.sharding import full
from burnish.types import Plan, Prompt, Rollout, concatenate, moved


class DrawnByWorkers(Source):
    """What another source draws, drawn by workers.

    load  gives the policy of the run, on a device, with the weights that it starts from
    Raises ValueError as Crew does.
    """

    def __init__(self, of: Source, load: Callable[[torch.device], Policy], workers: Workers) -> None:
        self._of, self._crew = of, Crew(partial(_Drawing, of, load), workers)

    def prompts_at(self, step: int, seed: int) -> Sequence[Prompt]:
        return self._of.prompts_at(step, seed)

    def plan_at(self, step: int) -> Plan:
        return self._of.plan_at(step)

    def evaluation(self) -> Plan:
        return self._of.evaluation()

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
        places = range(len(self.prompts_at(step, seed))) if places is None else places
        plan, device = self.plan_at(step), known[0][1].device
        parts = []
        for part in self._crew.calls([(weights, step, seed, attempt, at) for at in self._crew.shares(places)]):
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
        known_there = replace(rollout, plan=Plan())  # it may hold any component
        return moved(known_there, torch.device("cpu"))
