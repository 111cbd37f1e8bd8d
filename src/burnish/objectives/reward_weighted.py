"""Reward-weighted regression: samples of one's own are imitated, the better ones more. Peters and Schaal 2007."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from burnish.core import Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas.aggregation import token, token_mean
from burnish.formulas.matching import Target, Times, imitated, of_samples
from burnish.formulas.ratios import LIMIT
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class RewardWeighted(Objective[Denoiser]):
    """sum of w |target - its prediction|^2 / sum of w over all samples of an update. Imitates: it needs no advantage.

        soft    w = exp(temperature x A): softmax over the batch (RWR of DDPO, arXiv:2305.13301; Flow-RWR)
        above   w = 1 where A > threshold (the sparse RWR of DDPO; lower quantiles are dropped)
        reward  w = the score itself, none below 0 (Lee et al. 2023, arXiv:2302.12192; see pretraining.py for its data)

    With equal rewards, or temperature 0, `soft` is plain flow matching on one's own samples; so is `reward`. Nothing is
    above a threshold of 0 then.

    Metrics:
        error         mean squared error of the target, of samples with a weight, not weighed
        weight        mean w
    """

    rule: Literal["soft", "above", "reward"] = "soft"  # how advantages, or scores, become weights
    temperature: float = 1.0  # of rule soft: multiplies the advantage; the exponent is cut at plus and minus 20
    threshold: float = 0.0  # of rule above: samples whose advantage exceeds this are imitated
    draws: int = 1  # times that each sample is noised to in an update
    times: Times = "uniform"  # which times: those of the sampler, uniform, logit_normal
    target: Target = "velocity"  # whose error; noise: of models that predict it, for which late times weigh less

    def needs(self) -> Needs:
        return Needs()

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, keep = batch.rollout, batch.keep
        assert isinstance(rollout.plan, LatentPlan)
        advantage = of_samples(batch.advantage, "objective.reward_weighted").to(keep.device)
        if self.rule == "soft":
            weight = (self.temperature * advantage).clamp(-LIMIT, LIMIT).exp()
        elif self.rule == "reward":
            weight = torch.where(keep, batch.scores.total.to(advantage), 0.0).clamp(min=0).unsqueeze(1)
        else:
            weight = (advantage > self.threshold).to(advantage)
        error, weighed, chosen = imitated(batch, weight, self, policy, rollout.plan.steps)
        metrics = {
            "error": token_mean(error, torch.ones_like(error), chosen),
            "weight": token_mean(weight, torch.ones_like(weight), keep),
        }
        return Loss(*token(error, weighed, chosen), metrics)
