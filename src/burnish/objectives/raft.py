"""RAFT: supervised flow matching on the best samples of each group. Dong et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.core import Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas.aggregation import token, token_mean
from burnish.formulas.matching import Target, Times, imitated
from burnish.formulas.ranks import order
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class RAFT(Objective[Denoiser]):
    """Mean error of the denoiser over the `best` samples of each group. arXiv:2304.06767, algorithm 1.

    Samples are ranked by their score; the advantage is not used. Imitates: it needs no advantage.

    Metrics:
        error         mean squared error of the target, of the samples that are imitated
        kept          share of samples that are imitated
    """

    best: int = 1  # samples of each group that are imitated
    draws: int = 1  # times that each sample is noised to in an update
    times: Times = "uniform"  # which times: those of the sampler, uniform, logit_normal
    target: Target = "velocity"  # whose error; noise: of models that predict it, for which late times weigh less

    def __post_init__(self) -> None:
        if self.best < 1:
            raise ValueError(f"objective.raft.best: must be 1 or more, not {self.best}")

    def needs(self) -> Needs:
        return Needs(whole_groups=True)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, keep = batch.rollout, batch.keep
        assert isinstance(rollout.plan, LatentPlan)
        best = (order(batch.scores.total, rollout.group, keep, rollout.ids) < self.best) & keep
        error, weight, chosen = imitated(batch, best.unsqueeze(1), self, policy, rollout.plan.steps)
        share = best.to(error).unsqueeze(1)
        metrics = {
            "error": token_mean(error, weight, chosen),
            "kept": token_mean(share, torch.ones_like(share), keep),
        }
        return Loss(*token(error, weight, chosen), metrics)
