"""DDPO-SF: the gradient of the log-probability of every step, weighed by the advantage. Black et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.core import Copy, Denoiser, Needs, Objective, Scorer
from burnish.formulas import steps
from burnish.formulas.aggregation import counted, per_decision, token, token_mean
from burnish.formulas.ratios import law_gap
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class ScoreFunction(Objective[Denoiser]):
    """-A log p of each step + kl x distance to the reference: for one update a rollout. arXiv:2305.13301, section 4.3.

    Without kl and with advantages below max_advantage it is `reinforce` on a denoiser. Its gradient is, in
    expectation, that of minus the expected reward, divided by steps x dimensions: log-probabilities are means.

    Metrics:
        surprise      mean -log p of the steps, nats a dimension
        kl            mean distance to the reference in the chosen form, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats a dimension
    """

    max_advantage: float = 5.0  # advantages are cut at plus and minus this (DDPO's JAX code 10)
    kl: float = 0.0  # weight of the distance to the reference; above 0 keeps a reference copy
    kl_form: steps.Distance = "gaussian"  # which distance: formulas.steps.distance says them

    def needs(self) -> Needs:
        return Needs(copies={"reference": Copy()} if self.kl > 0 else {})

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        now, reference = steps.scored(policy, rollout, self.kl)
        advantage = per_decision(batch.advantage).clamp(-self.max_advantage, self.max_advantage)
        values = -advantage * torch.where(counted(weight, keep), now.logp, 0.0)

        pull, distance = steps.leash(self.kl, self.kl_form, now, reference, rollout, keep)
        metrics = {
            "surprise": token_mean(-now.logp, weight, keep),
            "law_gap": law_gap(now.logp, rollout, keep),
            **distance,
        }
        return Loss(*token(values + pull, weight, keep), metrics)
