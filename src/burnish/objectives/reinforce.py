"""REINFORCE: the gradient of the log-probability, weighed by the advantage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.core import Copy, Needs, Objective, Policy, Scorer
from burnish.formulas.aggregation import Aggregation, aggregate, counted, per_decision, token_mean
from burnish.formulas.divergence import Estimator, leash
from burnish.formulas.ratios import law_gap
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class Reinforce(Objective[Policy]):
    """-A log p, without importance ratios: for one update a rollout. Williams 1992; RLOO, Ahmadian et al. 2024.

    With advantage leave_one_out, aggregation constant and length 1 (log-probabilities summed over a sequence) this is
    RLOO, whose gradient is, in expectation and under law sampled, exactly that of minus the expected reward.

    Metrics:
        surprise      mean -log p of the decisions, nats
        kl            mean KL estimate to the reference, nats a decision, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats
    """

    aggregation: Aggregation = "token"  # which decisions weigh alike: of the batch, of a sequence, ...
    length: int = 0  # for aggregation constant: the length divided by; 0 takes the number of decisions
    kl: float = 0.0  # weight of the KL estimate in the loss; above 0 keeps a reference copy
    kl_estimator: Estimator = "k3"  # k2: the gradient of KL(policy || reference); k3: of the reverse; k1: none

    def needs(self) -> Needs:
        near = self.kl > 0
        return Needs(copies={"reference": Copy()} if near else {}, reference_logp=near)

    def loss(self, batch: Batch, policy: Policy, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        logp = policy.logp(rollout)
        here = counted(weight, keep)
        values = -per_decision(batch.advantage) * torch.where(here, logp, 0.0)

        pull, distance = leash(self.kl, self.kl_estimator, logp, rollout, keep)
        metrics = {
            "surprise": token_mean(-logp, weight, keep),
            "law_gap": law_gap(logp, rollout, keep),
            **distance,
        }
        return Loss(*aggregate(self.aggregation, values + pull, weight, keep, self.length), metrics)
