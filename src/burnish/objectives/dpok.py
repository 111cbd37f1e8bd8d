"""DPOK: a ratio that is cut on both sides, and a pull towards the pretrained noise. Fan et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.core import Copy, Denoiser, Needs, Objective, Scorer
from burnish.formulas import steps
from burnish.formulas.aggregation import counted, per_decision, token, token_mean
from burnish.formulas.ratios import anchor_of, law_gap, log_ratio
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class DPOK(Objective[Denoiser]):
    """-reward_weight x A clamp(r, 1 - clip, 1 + clip) + kl x distance to the reference. arXiv:2305.16381, alg. 1.

    As released there is no maximum with the unclipped term, as PPO has it: outside the band the gradient is 0 on both
    sides, also for a step that has become likelier although it was bad. The mean squared difference of the predicted
    noises bounds the KL between the final pictures.
    DPOK's A is the reward minus a learned value of the state; any advantage is taken here.

    Metrics:
        ratio_mean    mean ratio to the recorded law; 1 before the first update
        clipped       share of steps whose ratio is outside the band, on either side
        kl            mean distance to the reference in the chosen form, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats a dimension
    """

    clip: float = 1e-4  # half-width of the band outside which a step has no gradient
    reward_weight: float = 10.0  # multiplies the advantage (released: 10 in the example, 100 by default)
    kl: float = 0.01  # weight of the distance to the reference; above 0 keeps a reference copy
    kl_form: steps.Distance = "noise"  # which distance: formulas.steps.distance says them

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1:
            raise ValueError(f"objective.dpok.clip: must be above 0 and at most 1, not {self.clip}")

    def needs(self) -> Needs:
        return Needs(copies={"reference": Copy()} if self.kl > 0 else {})

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        now, reference = steps.scored(policy, rollout, self.kl)
        ratio = log_ratio(now.logp, anchor_of(rollout, now.logp, "behaviour"), counted(weight, keep)).exp()
        values = -self.reward_weight * per_decision(batch.advantage) * ratio.clamp(1 - self.clip, 1 + self.clip)

        pull, distance = steps.leash(self.kl, self.kl_form, now, reference, rollout, keep)
        metrics = {
            "ratio_mean": token_mean(ratio, weight, keep),
            "clipped": token_mean((ratio - 1).abs() > self.clip, weight, keep),
            "law_gap": law_gap(now.logp, rollout, keep),
            **distance,
        }
        return Loss(*token(values + pull, weight, keep), metrics)
