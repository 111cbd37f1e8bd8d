"""Estimators of KL(p || q) from samples of p, and what their gradients are.

Schulman 2020, 'Approximating KL Divergence'. With y ~ p and x = log q(y) - log p(y):

            value                       expected gradient, as a loss
    k1      -x          unbiased        0: of no use in a loss, belongs in the reward
    k2      x^2 / 2     biased          that of KL(p || q)
    k3      e^x - 1 - x unbiased, >= 0  that of KL(q || p), the other direction
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.formulas.aggregation import counted, token_mean
from burnish.types import Mean, Rollout

Estimator = Literal["k1", "k2", "k3"]

LIMIT = 20.0  # nats; |x| is cut here before k3's exponential, as EasyR1 does


def k1(logp: Float[Tensor, "*n"], logq: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log p - log q, nats."""
    return logp - logq


def k2(logp: Float[Tensor, "*n"], logq: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Half the squared log-ratio, nats^2."""
    return 0.5 * (logq - logp).square()


def k3(logp: Float[Tensor, "*n"], logq: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """q / p - 1 - log(q / p), nats."""
    gap = (logq - logp).clamp(-LIMIT, LIMIT)
    return gap.expm1() - gap


def estimate(estimator: Estimator, logp: Float[Tensor, "*n"], logq: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The estimator of that name."""
    return {"k1": k1, "k2": k2, "k3": k3}[estimator](logp, logq)


def leash(
    kl: float, estimator: Estimator, logp: Float[Tensor, "b k"], rollout: Rollout, keep: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, "b k"] | float, dict[str, Mean]]:
    """kl x the estimate of KL(p || reference) at each decision, to be added to a loss, and the estimate as a metric.

    0 and no metric where no reference was scored. Decisions that do not count have no influence.
    """
    if rollout.reference is None:
        assert kl == 0, "needs() names a reference copy when kl is above 0, so the engine scores it"
        return 0.0, {}
    here = counted(rollout.weight, keep)
    reference = torch.where(here, rollout.reference.to(logp.dtype), 0.0)
    distance = estimate(estimator, torch.where(here, logp, 0.0), reference)
    return kl * distance if kl > 0 else 0.0, {"kl": token_mean(distance, rollout.weight, keep)}
