"""CISPO: importance weights are capped, and no token loses its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.core import Copy, Needs, Objective, Policy, Scorer
from burnish.formulas.aggregation import Aggregation, aggregate, counted, per_decision, token_mean
from burnish.formulas.divergence import Estimator, leash
from burnish.formulas.ratios import Anchor, anchor_of, capped_ratio, law_gap, log_ratio
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class CISPO(Objective[Policy]):
    """-sg[min(r, cap)] A log p, r the ratio of each decision. MiniMax-M1, 2025.

    `cap` is the largest ratio itself. The paper's and EasyR1's epsilon_high e is a cap of 1 + e. In TRL
    `epsilon_high` is the cap: 0.28, a usual value for other losses, would scale almost every token down.

    Metrics:
        ratio_mean    mean ratio to the anchor; 1 before the first update
        capped        share of decisions whose ratio is above the cap
        kl            mean KL estimate to the reference, nats a decision, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats
    """

    cap: float = 5.0  # largest importance weight, as a ratio (1 is on-policy)
    aggregation: Aggregation = "token"  # which decisions weigh alike: of the batch, of a sequence, ...
    length: int = 0  # for aggregation constant: the length divided by; 0 takes the number of decisions
    kl: float = 0.0  # weight of the KL estimate in the loss; above 0 keeps a reference copy
    kl_estimator: Estimator = "k3"  # k2: the gradient of KL(policy || reference); k3: of the reverse; k1: none
    anchor: Anchor = "behaviour"  # ratios against the law drawn from, or the trained law before the update

    def __post_init__(self) -> None:
        if self.cap <= 0:
            raise ValueError(f"objective.cispo.cap: must be above 0 (and is best above 1), not {self.cap}")

    def needs(self) -> Needs:
        near = self.kl > 0
        return Needs(copies={"reference": Copy()} if near else {}, reference_logp=near, anchor=self.anchor)

    def loss(self, batch: Batch, policy: Policy, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        logp = policy.logp(rollout)
        here = counted(weight, keep)
        ratio = log_ratio(logp, anchor_of(rollout, logp, self.anchor), here).exp()
        values = -capped_ratio(ratio, self.cap) * per_decision(batch.advantage) * torch.where(here, logp, 0.0)

        pull, distance = leash(self.kl, self.kl_estimator, logp, rollout, keep)
        metrics = {
            "ratio_mean": token_mean(ratio, weight, keep),
            "capped": token_mean(ratio > self.cap, weight, keep),
            "law_gap": law_gap(logp, rollout, keep),
            **distance,
        }
        return Loss(*aggregate(self.aggregation, values + pull, weight, keep, self.length), metrics)
