"""The clipped surrogate on steps of a denoiser: DDPO-IS, Flow-GRPO, DanceGRPO, MixGRPO, TempFlow-GRPO, BranchGRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import Copy, Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas import steps
from burnish.formulas.aggregation import counted, per_decision, token, token_mean
from burnish.formulas.ratios import anchor_of, clipped, clipped_surrogate, law_gap, log_ratio
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class StepClip(Objective[Denoiser]):
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A) + kl x distance to the reference, mean over samples and steps.

    r is the ratio of a step's Gaussians at the recorded state, from log-probabilities that are means over dimensions:
    clip ranges are of the order of 1e-4. DDPO, arXiv:2305.13301, section 4.3; Flow-GRPO, arXiv:2505.05470.

        DDPO-IS        clip 1e-4, transition ddim, advantages of a prompt's history
        Flow-GRPO      clip 1e-4, kl 0.04 (GenEval, OCR) or 0.01 (PickScore), kl_form flow_grpo; with cps clip 1e-5
        TempFlow-GRPO  clip 1e-4, step_weights std, kl 0.004 (0.001 PickScore)
        DanceGRPO, MixGRPO   clip 1e-4, no kl
        BranchGRPO, Identity-GRPO   clip 1e-3; the first with advantage tree

    Metrics:
        ratio_mean    mean ratio to the recorded law; 1 before the first update
        clipped       share of steps whose gradient the clip stops
        kl            mean distance to the reference in the chosen form, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats a dimension
    """

    clip: float = 1e-4  # how far below 1 the ratio may go before the gradient stops
    clip_high: float | None = None  # how far above 1; None: as far as below
    max_advantage: float = 5.0  # advantages are cut at plus and minus this (DDPO's JAX code 10)
    step_weights: Literal["even", "std"] = "even"  # std: steps weigh as they are noisy, mean 1 over a plan (TempFlow)
    kl: float = 0.0  # weight of the distance to the reference; above 0 keeps a reference copy
    kl_form: steps.Distance = "gaussian"  # which distance: formulas.steps.distance says them

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1 or (self.clip_high is not None and self.clip_high <= 0):
            raise ValueError(
                f"objective.step_clip: clip must be in (0, 1] and clip_high above 0, not {self.clip}, {self.clip_high}"
            )

    def needs(self) -> Needs:
        return Needs(copies={"reference": Copy()} if self.kl > 0 else {})

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        now, reference = steps.scored(policy, rollout, self.kl)
        ratio = log_ratio(now.logp, anchor_of(rollout, now.logp, "behaviour"), counted(weight, keep)).exp()
        advantage = per_decision(batch.advantage).clamp(-self.max_advantage, self.max_advantage)
        high = self.clip if self.clip_high is None else self.clip_high
        values = clipped_surrogate(ratio, advantage, self.clip, high)
        if self.step_weights == "std":
            plan, std = rollout.plan, steps.latents_of(rollout, "objective.step_clip").std
            assert isinstance(plan, LatentPlan)
            every = steps.times_of(plan.learned, plan.times(policy.times))
            usual = steps.deviation(steps.moving(plan, plan.learned), every).mean()
            values = values * std / float(usual)

        low_cut, high_cut = clipped(ratio, advantage, self.clip, high)
        pull, distance = steps.leash(self.kl, self.kl_form, now, reference, rollout, keep)
        metrics = {
            "ratio_mean": token_mean(ratio, weight, keep),
            "clipped": token_mean(low_cut | high_cut, weight, keep),
            "law_gap": law_gap(now.logp, rollout, keep),
            **distance,
        }
        return Loss(*token(values + pull, weight, keep), metrics)
