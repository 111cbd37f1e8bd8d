"""The distance from the reference paid out of the reward, before another advantage is taken of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.divergence import Estimator, estimate
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class KlInReward(Advantage):
    """`inner` of R - beta x sum over decisions of k(log p, log p_ref). Stiennon et al. 2020; RLOO 2024.

    log p is that of the trained law where it was recomputed (`rollout.anchor`), and the recorded one otherwise. The
    penalty also becomes a part of the reward called "kl", which an inner `per_part` normalises like any other.
    Raises ValueError if the recorded law is not the one the reference was scored under.
    """

    reads_reference: ClassVar[bool] = True

    inner: Advantage  # takes the advantage of what is left
    beta: float = 0.01  # reward taken for every nat of distance
    estimator: Estimator = "k1"  # k1 is unbiased, and its gradient through the reward is that of KL(p || reference)

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"] | Float[Tensor, "b k"]:
        assert rollout.reference is not None, "reads_reference is set, so the engine scores the reference"
        if rollout.anchor is None and not rollout.plan.one_law:
            raise ValueError(
                "advantage.kl_in_reward: the recorded log-probability is of the law drawn from and the reference is"
                " scored under another; set anchor: recomputed in the objective, or law: sampled"
            )
        logp = rollout.logp if rollout.anchor is None else rollout.anchor
        nats = torch.where(rollout.weight > 0, estimate(self.estimator, logp, rollout.reference) * rollout.weight, 0.0)
        penalty = (-self.beta * nats.sum(1)).detach().to(scores.total)
        paid = replace(scores, total=scores.total + penalty, parts={**scores.parts, "kl": penalty})
        return self.inner(paid, rollout)
