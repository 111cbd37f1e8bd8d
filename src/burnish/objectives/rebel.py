"""REBEL: log-ratios of two samples of a prompt are regressed on the difference of their rewards. Gao et al. 2024."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.core import Denoiser, Needs, Objective, Scorer
from burnish.formulas.aggregation import counted, token_mean
from burnish.formulas.matching import of_samples
from burnish.formulas.ratios import anchor_of, law_gap, log_ratio
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class REBEL(Objective[Denoiser]):
    """(eta (log r_i - log r_j) - (A_i - A_j))^2, mean over all pairs of a group; r of all steps of a sample together.

    arXiv:2404.16767, eq. 5; RLCM (arXiv:2404.03673) has two samples a prompt. With d_i = eta log r_i - A_i the sum over
    the pairs of a group of n is n sum d_i^2 - (sum d_i)^2, so none is listed. log r sums over steps, each a mean over
    dimensions: eta here is 1 / dimensions of the paper's. A regression: with no advantage it
    pulls back to the policy that drew.

    Metrics:
        ratio_mean    mean ratio of a step to the recorded law; 1 before the first update
        gap           mean |eta log r - A| of samples
        law_gap       mean |log p - recorded log p|, nats a dimension
    """

    eta: float = 1.0  # reward that one nat a dimension stands for

    def needs(self) -> Needs:
        return Needs(whole_groups=True)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        logp = policy.logp(rollout)
        here = counted(weight, keep)
        gap = log_ratio(logp, anchor_of(rollout, logp, "behaviour"), here)
        advantage = of_samples(batch.advantage, "objective.rebel").squeeze(1)
        apart = torch.where(keep, self.eta * (gap * weight).sum(1) - advantage.to(gap), 0.0)

        _, group = rollout.group.to(apart.device).unique(return_inverse=True)
        empty = apart.new_zeros(len(apart))
        n, first, second = (empty.index_add(0, group, v) for v in (keep.to(apart), apart, apart.square()))
        metrics = {
            "ratio_mean": token_mean(gap.exp(), weight, keep),
            "gap": token_mean(apart.abs().unsqueeze(1), torch.ones_like(weight[:, :1]), keep),
            "law_gap": law_gap(logp, rollout, keep),
        }
        return Loss((n * second - first.square()).sum(), (n * (n - 1) / 2).sum(), metrics)
