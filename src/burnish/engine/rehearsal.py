"""What a run will take, without taking its steps: `burnish check --rehearse`.

A step asks a network again and again for much the same: so many states, or samples, with a gradient or without. Here a
recipe is loaded and takes three steps in which every kind of pass is made once, for what it holds, and stood in for
from then on; all else (rewards, decoding, bookkeeping, the optimiser) is done as in a run. Then each kind is timed and
counts as often as it was asked for. What a step of 2,000 passes takes is known after about twenty. Where plans differ
from step to step (windows, truncations) the third step is some that are spread over the run, and their mean counts.

A pass that is computed again for its backward pass is for real, or stood in for, as it was at first; it counts as one
without gradient. Of several passes whose graphs are held together (reward gradients through several steps that are not
recomputed) only the first is in the memory told.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from burnish.core import Policy, Scorer
from burnish.engine.bench import WHOLE, one_step
from burnish.engine.interruption import Interruption
from burnish.engine.layouts.local import built, device_of
from burnish.engine.loop import Run
from burnish.engine.ranks import Alone
from burnish.engine.reporter import Nowhere
from burnish.laps import recorded
from burnish.machine import forget_peak, held, peak, settle
from burnish.models.denoiser import DenoisingPolicy
from burnish.prompts import distinct_prompts
from burnish.recipe.recipe import Recipe
from burnish.types import Plan, Prompt, Rollout, Scores

TIMES, ENOUGH = 5, 3.0  # each kind of pass is timed so often, or until it has taken so many seconds
SPREAD = 5  # steps that are timed where plans differ


@dataclass(frozen=True)
class Kind:
    """Passes that take equally long."""

    what: str  # velocity, sample or logp
    rows: int  # states or samples
    gradient: bool  # with the backward pass
    guidance: float = 1.0


@dataclass(frozen=True)
class Rehearsal:
    """What a step takes, on this machine."""

    passes: Mapping[Kind, tuple[float, float]]  # how many of a step, and seconds of each
    rest: float  # seconds of all else
    memory: int  # bytes: the most that is held, less what was held before anything was loaded
    steps: Mapping[int, float]  # seconds of each step that was timed; several if plans differ, and means are told

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.rest + sum(count * seconds for count, seconds in self.passes.values())


def rehearse(recipe: Recipe) -> Rehearsal:
    """Load a recipe and take its steps in outline, in this process alone; no folder is written.

    Raises ValueError for weights and rewards that are not what they should be, and for what does not fit the device.
    """
    with recorded() as laps:
        try:
            return _rehearsed(recipe)
        except torch.OutOfMemoryError as problem:
            stages = [one.name for one in laps.ended if one.name in WHOLE]
            where = f"at stage {stages[-1]} of a step" if stages else "when it was loaded"
            raise ValueError(
                f"device: the recipe does not fit: {device_of(recipe.device)} ran out of memory {where}; a smaller "
                f"source.on_policy.rows (draw) or optim.micro (update) takes less. It said: {problem}"
            ) from problem


def _rehearsed(recipe: Recipe) -> Rehearsal:
    steps = _timed(recipe)
    alone: dict[str, Any] = {"suites": {}, "measures": {}, "learners": None, "drawers": None, "scorers": None}
    recipe = replace(recipe, steps=max(3, recipe.steps), flat_groups="keep", overlap=False, shard=False, **alone)
    before = held(device_of(recipe.device))
    place = built(recipe, device_of(recipe.device), Alone())
    place = replace(place, scorer=Shaken(place.scorer))
    run, passes = Run(recipe, Path(), Nowhere(), Interruption()), Passes(place.policy)
    one_step(run, place, 1, {})
    passes.begin()  # once more, with the optimiser's moments
    forget_peak(place.device)
    one_step(run, place, 2, {})
    told: list[tuple[Counter[Kind], Counter[Kind], float]] = []  # of a step: passes, those that were made, seconds
    for step in steps:
        passes.begin(known=True)
        spent, _ = one_step(run, place, step, {"seconds": time.perf_counter})
        told.append((passes.counts, passes.made, sum(spent[name]["seconds"] for name in WHOLE)))
    most = peak(place.device) - before
    asked = sum((counts for counts, _, _ in told), Counter[Kind]())
    each = {kind: passes.seconds(kind, place.device) for kind in asked}

    def together(counts: Counter[Kind]) -> float:
        return sum(count * each[kind] for kind, count in counts.items())

    rests = [max(0.0, seconds - together(made)) for _, made, seconds in told]
    whole = [rest + together(counts) for rest, (counts, _, _) in zip(rests, told, strict=True)]
    return Rehearsal(
        {kind: (asked[kind] / len(steps), each[kind]) for kind in asked},
        statistics.fmean(rests),
        most,
        dict(zip(steps, whole, strict=True)),
    )


def _timed(recipe: Recipe) -> Sequence[int]:
    """The third step; where plans differ from step to step, some that are spread over the run."""
    first = recipe.source.plan_at(1)
    if all(recipe.source.plan_at(step) == first for step in range(2, recipe.steps + 1)):
        return [3]
    return sorted({1 + int((i + 0.5) / SPREAD * recipe.steps) for i in range(SPREAD)})


class Passes:
    """Stands between a policy and its passes."""

    def __init__(self, policy: Policy) -> None:
        self._weights = [weight for _, weight in policy.parameters()]
        self._again: dict[Kind, Callable[[], Any]] = {}
        self.begin()
        if isinstance(policy, DenoisingPolicy):
            self._velocity = policy.network.velocity
            policy.network.velocity = self.velocity
        else:
            self._sample, self._logp = policy.sample, policy.logp
            self._samples: dict[int, Rollout] = {}
            policy.sample, policy.logp = self.sample, self.logp

    def begin(self, known: bool = False) -> None:
        """Count anew, and make each kind once more; `known`: none that has been made."""
        self.counts: Counter[Kind] = Counter()
        self.made: Counter[Kind] = Counter()  # of these
        self._known = set(self._again) if known else set[Kind]()
        self._graphs: list[tuple[Tensor, Tensor]] = []  # states and times of those made with gradient

    def velocity(self, x: Tensor, t: Tensor, conditions: Any, guidance: float) -> Tensor:
        recomputed = torch._C._current_graph_task_id() != -1  # inside a backward pass, as torch's checkpoint asks
        kind = Kind("velocity", len(x), torch.is_grad_enabled() and not recomputed, guidance)
        start, read = _leaf(x), tree_map(_leaf, conditions)
        self._again.setdefault(kind, lambda: self._velocity(start, t, read, guidance))
        if recomputed:  # what its forward pass has kept must be found again
            real = any(torch.equal(x, state) and torch.equal(t, time) for state, time in self._graphs)
        else:
            real = self._is_new(kind)
        if self._counted(kind, real):
            if kind.gradient:
                self._graphs.append((start.detach(), t))
            return self._velocity(x, t, conditions, guidance)
        return self._instead(x, x, *(one for one in tree_leaves(conditions) if isinstance(one, Tensor)))

    def sample(self, prompts: Sequence[Prompt], plan: Plan, noise: Any) -> Rollout:
        kind = Kind("sample", len(prompts), False, plan.guidance)
        self._again.setdefault(kind, lambda: self._sample(prompts, plan, noise))
        if self._counted(kind, self._is_new(kind)):
            self._samples[len(prompts)] = self._sample(prompts, plan, noise)
        group = distinct_prompts(prompts)[0]
        return replace(self._samples[len(prompts)], prompts=tuple(prompts), group=group, plan=plan, ids=noise.ids)

    def logp(self, rollout: Rollout) -> Tensor:
        kind = Kind("logp", len(rollout), torch.is_grad_enabled(), rollout.plan.guidance)
        self._again.setdefault(kind, lambda: self._logp(rollout))
        return self._logp(rollout) if self._counted(kind, self._is_new(kind)) else self._instead(rollout.logp)

    def _is_new(self, kind: Kind) -> bool:
        return kind not in self._known and kind not in self.made

    def _counted(self, kind: Kind, real: bool) -> bool:
        self.counts[kind] += 1
        if real:
            self.made[kind] += 1
        return real

    def _instead(self, like: Tensor, *inputs: Tensor) -> Tensor:
        return _Instead.apply(like.detach(), len(inputs), *inputs, *self._weights)  # pyright: ignore[reportReturnType]

    def seconds(self, kind: Kind, device: torch.device) -> float:
        """Of one pass: the median."""
        taken: list[float] = []
        while len(taken) < TIMES and sum(taken) < ENOUGH:
            settle(device)
            began = time.perf_counter()
            with torch.set_grad_enabled(kind.gradient):
                found = self._again[kind]()
            if kind.gradient:
                found.sum().backward()
            settle(device)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


def _leaf(value: Any) -> Any:
    """The same without what it was computed from."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


class _Instead(torch.autograd.Function):
    """A value whose gradient is 0, for inputs and weights: those that have none yet get one, as they would."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, inputs: int, *tensors: Tensor) -> Tensor:
        ctx.tensors, ctx.inputs = tensors, inputs
        ctx.save_for_backward(value.new_empty(0))  # read below, so that a checkpoint around it is computed again
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        _ = ctx.saved_tensors
        inputs, weights = ctx.tensors[: ctx.inputs], ctx.tensors[ctx.inputs :]
        wanted = [one.requires_grad for one in inputs] + [one.grad is None for one in weights]
        found = [torch.zeros_like(one) if want else None for one, want in zip(ctx.tensors, wanted, strict=True)]
        return None, None, *found


class Shaken(Scorer):
    """A reward that costs what it costs, with values at random: pictures of stand-ins may all be worth the same.

    Each part is drawn on its own, for who compares them; a part that is the total stays it.
    """

    def __init__(self, of: Scorer) -> None:
        self._of, self._draws = of, torch.Generator().manual_seed(0)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        found = Scores.require(self._of(images, prompts))
        total = self._shaken(found.total)
        parts = {name: total if one is found.total else self._shaken(one) for name, one in found.parts.items()}
        return replace(found, total=total, parts=parts, valid=torch.ones_like(found.valid))

    def _shaken(self, values: Tensor) -> Tensor:
        return 0 * values.nan_to_num() + torch.rand(len(values), generator=self._draws).to(values)
