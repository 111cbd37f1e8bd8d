"""DGPO: one logistic loss a group, on how much better its good samples are matched than by the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from burnish.core import Copy, Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas.aggregation import token, token_mean
from burnish.formulas.matching import Times, noised, of_samples
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class DGPO(Objective[Denoiser]):
    """-log sigmoid(-beta mean of A (l - l_base)) / beta + kl |v - v_ref|^2, l = |v - (noise - clean)|^2.

    Luo et al. 2025, arXiv:2510.08425; the mean is over a group. The gradient of the first term is mean(w A grad l),
    w = sigmoid(beta mean(A (l - l_base))), which is 1/2 at the base: as released, where beta stands in w alone. All
    samples of a group share times and noise, or the sum would measure the noise.
    A sample whose ratio exp(l_old - l) has left 1 +- clip on the side of its advantage has no gradient; `old` is a fast
    average of the weights. Drawn with any sampler; v is without guidance.

    Metrics:
        weight        mean w of the groups; 1/2 at the base
        clipped       share of samples that the clip stops
        error         mean |v - (noise - clean)|^2
        kl            mean |v - v_ref|^2
    """

    beta: float = 100.0  # steepness of the logistic (PickScore 10; with base old 2000)
    base: Literal["reference", "old"] = "reference"  # l_base: of the first weights, or of the fast average
    draw_from: Literal["live", "old"] = "live"  # weights that draw (released: live for 200 to 500 steps, then old)
    clip: float = 0.01  # half-width of the trust region in exp(l_old - l) (released: 1e-3 to 5e-2)
    max_advantage: float = 5.0  # advantages are cut at plus and minus this
    decay: float = 0.3  # what that of the fast average rises to
    rise: float = 0.001  # of this decay with every step; 0: it is what it is from the beginning
    kl: float = 0.001  # weight of the distance to the reference (0.02 for some rewards)
    kl_guidance: float = 1.0  # of the reference in that distance alone (released: 4.5 in some configurations)
    draws: int = 4  # times that each group is noised to in an update
    times: Times = "steps"  # which times: those of the sampler, uniform, logit_normal
    low: float = 0.5625  # smallest of these times: the noisier part alone (released: 0.3, shifted by 3)

    def __post_init__(self) -> None:
        if not self.beta > 0 or not self.clip > 0 or not 0 <= self.low < 1 or not 0 <= self.decay < 1:
            raise ValueError(
                "objective.dgpo: beta and clip must be above 0, low and decay in [0, 1), "
                f"not {self.beta}, {self.clip}, {self.low}, {self.decay}"
            )

    def needs(self) -> Needs:
        copies = {"reference": Copy(), "old": Copy(self.decay, self.rise, every="step")}
        return Needs(draw_from=self.draw_from, copies=copies, whole_groups=True)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, keep = batch.rollout, batch.keep
        assert isinstance(rollout.plan, LatentPlan)
        schedule = policy.times(rollout.plan.steps)
        some = noised(batch, self.draws, self.times, schedule, self.low, together=keep)
        with torch.no_grad(), policy.using("reference"):
            reference = policy.velocity(some.x, some.t, some.prompts)
            aim = reference
            if self.kl_guidance != 1:
                aim = policy.velocity(some.x, some.t, some.prompts, self.kl_guidance)
        with torch.no_grad(), policy.using("old"):
            old = policy.velocity(some.x, some.t, some.prompts)
        now = policy.velocity(some.x, some.t, some.prompts)
        advantage = of_samples(batch.advantage, "objective.dgpo").clamp(-self.max_advantage, self.max_advantage)
        error = some.error(now)
        ratio = (some.error(old) - error).detach().exp()
        stopped = torch.where(advantage > 0, ratio > 1 + self.clip, ratio < 1 - self.clip)
        gap = torch.where(stopped, error.detach(), error) - some.error(reference if self.base == "reference" else old)
        gap = torch.where(keep.unsqueeze(1), advantage.to(gap) * gap, 0.0)
        mean, share = _group_mean(gap, rollout.group, keep)

        # Every member holds the loss of its group, and has one over their number as its weight.
        distance = some.apart(now, aim)
        weight = share.to(gap).unsqueeze(1).expand_as(gap)
        each = torch.ones_like(gap)
        metrics = {
            "weight": token_mean((self.beta * mean).sigmoid(), weight, keep),
            "clipped": token_mean(stopped, each, keep),
            "error": token_mean(error, each, keep),
            "kl": token_mean(distance, each, keep),
        }
        return Loss(*token(softplus(self.beta * mean) / self.beta + self.kl * distance, weight, keep), metrics)


def _group_mean(values: Float[Tensor, "b n"], group: Tensor, keep: Tensor) -> tuple[Tensor, Float[Tensor, " b"]]:
    """(mean over the kept members of the group of each sample, one over their number). Passes the gradient."""
    _, index = group.to(values.device).unique(return_inverse=True)
    count = torch.zeros(len(values), device=values.device).index_add(0, index, keep.to(values.device).float())
    share = 1 / count.clamp(min=1)[index]
    total = values.new_zeros(values.shape).index_add(0, index, values)[index]
    return total * share.to(values).unsqueeze(1), share
