"""GRPO-Guard: the ratio is centred at every step, so that the clip acts on all of them alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from burnish.core import Copy, Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas import steps
from burnish.formulas.aggregation import counted, per_decision, token, token_mean
from burnish.formulas.ratios import clipped, clipped_surrogate, law_gap, log_ratio
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class GRPOGuard(Objective[Denoiser]):
    """step_clip with log r replaced by std log r + |mean - mean_old|^2 / (2 std). Wang et al. 2025, arXiv:2510.22319.

    That is z . (mean - mean_old), centred at 0 for every step, where log r is negative on average and most so where
    the noise is small: there the upper clip hardly ever acts, and the reward is hacked. Taken against the recorded
    mean and deviation, with the transition's own std (for cps it is not multiplied by the root of the step's length).

    Metrics:
        ratio_mean    mean guarded ratio; 1 before the first update
        clipped       share of steps whose gradient the clip stops
        kl            mean distance to the reference in the chosen form, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats a dimension
    """

    clip: float = 1e-4  # half-width of the trust region of the guarded ratio
    max_advantage: float = 5.0  # advantages are cut at plus and minus this
    balance: Literal["none", "length"] = "none"  # length: divides by a step's length (mean 1), as its gradient grows so
    kl: float = 0.0  # weight of the distance to the reference; above 0 keeps a reference copy
    kl_form: steps.Distance = "gaussian"  # which distance: formulas.steps.distance says them

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1:
            raise ValueError(f"objective.grpo_guard.clip: must be above 0 and at most 1, not {self.clip}")

    def needs(self) -> Needs:
        return Needs(copies={"reference": Copy()} if self.kl > 0 else {})

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        plan, drawn = rollout.plan, steps.latents_of(rollout, "objective.grpo_guard")
        assert isinstance(plan, LatentPlan)
        now, reference = steps.scored(policy, rollout, self.kl)
        gap = steps.guarded_log_ratio(now.mean, drawn)
        ratio = log_ratio(gap, torch.zeros_like(gap), counted(weight, keep)).exp()
        advantage = per_decision(batch.advantage).clamp(-self.max_advantage, self.max_advantage)
        values = clipped_surrogate(ratio, advantage, self.clip, self.clip)
        if self.balance == "length":
            values = values / ((drawn.time[..., 0] - drawn.time[..., 1]) * plan.steps).to(values)

        low_cut, high_cut = clipped(ratio, advantage, self.clip, self.clip)
        pull, distance = steps.leash(self.kl, self.kl_form, now, reference, rollout, keep)
        metrics = {
            "ratio_mean": token_mean(ratio, weight, keep),
            "clipped": token_mean(low_cut | high_cut, weight, keep),
            "law_gap": law_gap(now.logp, rollout, keep),
            **distance,
        }
        return Loss(*token(values + pull, weight, keep), metrics)
