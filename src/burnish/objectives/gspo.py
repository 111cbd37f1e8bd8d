"""GSPO: the ratio, its clip and the average are those of whole sequences."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.core import Copy, Needs, Objective, Policy, Scorer
from burnish.formulas.aggregation import counted, per_decision, sequence, token_mean
from burnish.formulas.divergence import Estimator, leash
from burnish.formulas.ratios import (
    Anchor,
    anchor_of,
    clipped,
    clipped_surrogate,
    law_gap,
    log_ratio,
    sequence_log_ratio,
    sequence_ratio_per_token,
)
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class GSPO(Objective[Policy]):
    """-min(s A, clip(s) A), s the geometric mean of a sequence's ratios; mean over sequences. Zheng et al. 2025.

    `per_token` is the paper's GSPO-token: the same values, with the gradient s A grad log p of each token, so that an
    advantage of every decision can be used. With one advantage a sample both have the same gradient.

    Metrics:
        ratio_mean    mean s; 1 before the first update
        clipped       share of sequences whose gradient the clip stops (weighed by their decisions)
        clipped_low   share stopped at 1 - clip, where the advantage is negative
        clipped_high  share stopped at 1 + clip_high, where the advantage is positive
        kl            mean KL estimate to the reference, nats a decision, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats
    """

    clip: float = 3e-4  # how far below 1 s may go; far smaller than for tokens, because s is a mean over the sequence
    clip_high: float | None = 4e-4  # how far above 1; None: as far as below
    per_token: bool = False  # GSPO-token: accepts an advantage of every decision
    kl: float = 0.0  # weight of the KL estimate in the loss; above 0 keeps a reference copy
    kl_estimator: Estimator = "k3"  # k2: the gradient of KL(policy || reference); k3: of the reverse; k1: none
    anchor: Anchor = "behaviour"  # ratios against the law drawn from, or the trained law before the update

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1 or (self.clip_high is not None and self.clip_high <= 0):
            raise ValueError(
                f"objective.gspo: clip must be in (0, 1] and clip_high above 0, not {self.clip}, {self.clip_high}"
            )

    def needs(self) -> Needs:
        near = self.kl > 0
        return Needs(copies={"reference": Copy()} if near else {}, reference_logp=near, anchor=self.anchor)

    def loss(self, batch: Batch, policy: Policy, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        if batch.advantage.dim() > 1 and not self.per_token:
            raise ValueError(
                "objective.gspo: this advantage differs between decisions; per_token: true takes such ones"
            )
        logp = policy.logp(rollout)
        here = counted(weight, keep)
        gap = log_ratio(logp, anchor_of(rollout, logp, self.anchor), here)
        ratio = sequence_ratio_per_token(gap, weight) if self.per_token else sequence_log_ratio(gap, weight).exp()
        advantage = per_decision(batch.advantage)
        high = self.clip if self.clip_high is None else self.clip_high
        values = clipped_surrogate(ratio, advantage, self.clip, high).expand_as(weight)

        low_cut, high_cut = clipped(ratio, advantage, self.clip, high)
        pull, distance = leash(self.kl, self.kl_estimator, logp, rollout, keep)
        metrics = {
            "ratio_mean": token_mean(ratio, weight, keep),
            "clipped": token_mean(low_cut | high_cut, weight, keep),
            "clipped_low": token_mean(low_cut, weight, keep),
            "clipped_high": token_mean(high_cut, weight, keep),
            "law_gap": law_gap(logp, rollout, keep),
            **distance,
        }
        return Loss(*sequence(values + pull, weight, keep), metrics)
