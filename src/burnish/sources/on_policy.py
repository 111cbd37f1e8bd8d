"""Samples are drawn by the policy that is being trained, from prompts taken in a shuffled order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from burnish.core import LatentPlan, Planner, Policy, Scorer, Source
from burnish.formulas.noise import Noise, generator
from burnish.prompts import read_prompts
from burnish.searching import Search
from burnish.types import Plan, Prompt, Rollout, concatenate


@dataclass(frozen=True)
class OnPolicy(Source):
    """A group of fresh samples for each of `per_step` prompts, as in GRPO (arXiv:2402.03300, algorithm 1).

    The order is a permutation keyed by (seed, epoch): a function of the step, so nothing has to be saved. A step never
    holds a prompt twice: prompts left over at the end of an epoch are left out of it, others in every epoch.
    """

    prompts: str  # file.txt, one a line; file.jsonl with text, id, facts; or module:function
    plan: Planner  # how each group is drawn
    per_step: int = 8  # distinct prompts of a step
    rows: int = 0  # samples drawn at once; 0 draws all. Changes memory, not the samples
    search: Search | None = None  # look for good starting noise before a group is drawn (Smart-GRPO); None: do not

    def __post_init__(self) -> None:
        if self.per_step < 1:
            raise ValueError(f"per_step must be at least 1, got {self.per_step}")
        if self.rows < 0:
            raise ValueError(f"rows must be 0 (draws all at once) or more, got {self.rows}")
        if self.search and not isinstance(self.plan.at(0), LatentPlan):
            raise ValueError("search: looks for starting noise, and a plan of tokens has none")

    def asks(self) -> Sequence[Prompt]:
        return read_prompts(self.prompts)

    def prompts_at(self, step: int, seed: int) -> Sequence[Prompt]:
        prompts = read_prompts(self.prompts)
        if self.per_step > len(prompts):
            raise ValueError(f"{self.prompts} holds {len(prompts)} prompts, fewer than per_step: {self.per_step}")
        epoch, place = divmod(step, len(prompts) // self.per_step)
        order = generator("prompts", seed, epoch).permutation(len(prompts))
        return [prompts[i] for i in order[place * self.per_step : (place + 1) * self.per_step]]

    def plan_at(self, step: int) -> Plan:
        return self.plan.at(step)

    def evaluation(self) -> Plan:
        return self.plan.evaluation()

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
        plan, distinct = self.plan_at(step), self.prompts_at(step, seed)
        in_all = len(distinct) * plan.group
        places = range(len(distinct)) if places is None else places
        distinct = [distinct[place] for place in places]
        prompts = [prompt for prompt in distinct for _ in range(plan.group)]
        number = torch.tensor([place * plan.group + i for place in places for i in range(plan.group)])
        b = len(prompts)
        noise = Noise(seed, step, tuple((attempt * in_all + number).tolist()))
        if self.search:
            if scorer is None:
                raise ValueError("source.on_policy.search: looks at rewards, and was given none")
            assert isinstance(plan, LatentPlan)
            key = replace(noise, ids=tuple(places), stream=f"attempt {attempt}")
            found = self.search(policy, distinct, plan, scorer, key, self.rows)
            noise = noise.starting(*(part.repeat_interleave(plan.group, 0) for part in found))
        rows = max(self.rows // plan.together, 1) * plan.together if self.rows else b
        chunks = torch.arange(b).split(rows)
        parts = []
        for c in chunks:
            parts.append(policy.sample([prompts[i] for i in c.tolist()], plan, noise.of(c)))
            if drawn:
                drawn(parts[-1])
        whole = concatenate(parts)
        if self.search and whole.evaluations is not None:
            whole = replace(whole, evaluations=whole.evaluations + self.search.evaluations / plan.group)
        # a policy numbers the groups of one chunk; a group that two chunks share is still one group
        group = number.div(plan.compared, rounding_mode="floor").to(whole.group)
        return replace(whole, group=group)
