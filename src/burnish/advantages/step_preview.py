"""Candidates of one step compared by the pictures that are expected of them: SPO's order, as an advantage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage, Denoiser, Large, LatentPlan, Memory, Policy, Scorer
from burnish.formulas.groups import exact, flat, group_centred, group_std
from burnish.formulas.steps import latents_of
from burnish.looking import looked
from burnish.types import Latents, Rollout, Scores


@dataclass(frozen=True)
class StepPreview(Advantage):
    """(r - mean) / (std + eps) over the steps that begin with one state, r = reward of x - s v at what a step drew.

    SPO (Liang et al. 2024, arXiv:2406.04314) orders the candidates of a step by a model of preferences that was taught
    on noisy latents. This takes the run's reward of the picture that is expected of each, which is weaker where there
    is much noise, and needs one evaluation of the network for each. Made for plan `candidates`, whose samples have one
    score: samples are not weighed by their scores alone. 0 for a step that nothing else begins with. Reads the steps of
    a denoiser. Settings that are called themselves, without a reward, compare the scores of the samples.

    Metrics:
        preview        mean r
        preview_std    mean deviation of r among the candidates of a step
        look_invalid   share of candidates that have no r; they get 0 and are left out of the others' mean
    """

    reads: ClassVar[tuple[Large, ...]] = ("states",)

    counted: Literal["all", "ends"] = "all"  # candidates of a step with an advantage: all, or its best and its worst
    eps: float = 1e-4  # added to the standard deviation, in units of the reward
    rows: int = 16  # states looked at at once. Changes memory, not the result

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"advantage.step_preview.rows: expected 1 or more, got {self.rows}")

    def begin(self, policy: Policy | None) -> _Preview:
        return _Preview(self, None, None)

    def looking(self, policy: Policy, scorer: Scorer) -> _Preview:
        """Raises ValueError for a policy that has no states to look at."""
        if not isinstance(policy, Denoiser):
            raise ValueError("advantage.step_preview: only a run of a denoiser has states to look at")
        return _Preview(self, policy, scorer)

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        return self.begin(None)(scores, rollout)


class _Preview(Advantage, Memory):
    def __init__(self, settings: StepPreview, policy: Denoiser | None, scorer: Scorer | None) -> None:
        self._settings, self._policy, self._scorer = settings, policy, scorer
        self._told = {"preview": torch.nan, "preview_std": torch.nan, "look_invalid": 0.0}

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        known = latents_of(rollout, "advantage.step_preview")
        seen = self._seen(scores, known, rollout)
        shape, state = known.step.shape, known.origin.flatten().cpu()
        value, counts = seen.total.cpu(), seen.valid.cpu() & scores.valid.cpu().repeat_interleave(shape[1])
        spread = group_std(value, state, counts)
        found = group_centred(value, state, counts) / (spread + self._settings.eps)
        found = torch.where(flat(value, state, counts), 0.0, found)
        if self._settings.counted == "ends":
            found = torch.where(_end(found, state, counts) | _end(-found, state, counts), found, 0.0)
        self._told = {
            "preview": float(exact(value)[counts].mean()),
            "preview_std": float(spread[counts].mean()),
            "look_invalid": float((~seen.valid).double().mean()),
        }
        return found.view(shape).to(scores.total)

    @torch.no_grad()
    def _seen(self, scores: Scores, known: Latents, rollout: Rollout) -> Scores:
        """Scores of what every step drew, the steps of a sample after one another."""
        plan, k = rollout.plan, known.step.shape[1]
        if self._policy is None or self._scorer is None:
            total = scores.total.repeat_interleave(k)
            return Scores(total, {}, scores.valid.repeat_interleave(k))
        assert isinstance(plan, LatentPlan)
        rows, states, s = self._settings.rows, known.after.flatten(0, 1), known.time[..., 1].flatten()
        prompts = [prompt for prompt in rollout.prompts for _ in range(k)]
        clean = []
        for start in range(0, len(states), rows):
            at = slice(start, start + rows)
            velocity = self._policy.velocity(states[at], s[at].float(), prompts[at], plan.guidance)
            clean.append(states[at] - s[at].to(states).view(-1, *[1] * (states.dim() - 1)) * velocity)
        return looked(self._policy, self._scorer, torch.cat(clean), prompts, rows)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]:
        return dict(self._told)


def _end(value: Float[Tensor, " n"], state: Tensor, counts: Tensor) -> Tensor:
    """Whether a value is the largest of those that count with the same `state`."""
    names, index = state.unique(return_inverse=True)
    most = value.new_full((len(names),), -torch.inf)
    most.scatter_reduce_(0, index, torch.where(counts, value, -torch.inf), "amax")
    return value == most[index]
