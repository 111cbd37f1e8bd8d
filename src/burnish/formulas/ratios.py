"""How far the policy has moved from the law its samples were drawn from, and surrogates that bound the move."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.formulas.aggregation import token_mean
from burnish.types import Mean, Rollout

Anchor = Literal["behaviour", "recomputed"]

Bound = float | Float[Tensor, "b #k"]  # one for all, or one of each decision

LIMIT = 20.0  # nats; a larger log-ratio is cut, as verl and EasyR1 do, so that its exponential stays finite


def anchor_of(rollout: Rollout, logp: Float[Tensor, "b k"], anchor: Anchor) -> Float[Tensor, "b k"]:
    """Log-probability that ratios are taken against.

    The one stored in `rollout.anchor` if there is one. Otherwise "behaviour" is the one recorded while drawing, and
    "recomputed" the present one without its gradient: with one update a rollout the ratio is 1, and its gradient is
    that of the log-probability (as AR-GRPO, T2I-R1, STAGE and TRL with one iteration have it).
    """
    if rollout.anchor is not None:
        return rollout.anchor
    return rollout.logp if anchor == "behaviour" else logp.detach()


def log_ratio(
    logp: Float[Tensor, "b k"], old: Float[Tensor, "b k"], counted: Bool[Tensor, "b k"]
) -> Float[Tensor, "b k"]:
    """log p - log p_old, nats, within +-20; 0 without gradient where not counted, whatever stands there."""
    return torch.where(counted, logp - old, 0.0).clamp(-LIMIT, LIMIT)


def clipped_surrogate(
    ratio: Float[Tensor, "b #k"],
    advantage: Float[Tensor, "b #k"],
    low: Bound,
    high: Bound,
    dual: float | None = None,
) -> Float[Tensor, "b k"]:
    """-min(r A, clip(r, 1 - low, 1 + high) A): Schulman et al. 2017, eq. 7, with the asymmetric range of DAPO (2025).

    `dual` c > 1 also bounds the loss of a negative advantage at -c A (dual clip, Ye et al. 2020; V-Triune has c = 3).
    """
    ends = (torch.as_tensor(end, dtype=ratio.dtype, device=ratio.device) for end in (1 - low, 1 + high))
    bounded = torch.clamp(ratio, *ends)
    loss = torch.maximum(-ratio * advantage, -bounded * advantage)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def clipped(
    ratio: Float[Tensor, "b #k"], advantage: Float[Tensor, "b #k"], low: Bound, high: Bound
) -> tuple[Bool[Tensor, "b k"], Bool[Tensor, "b k"]]:
    """Where the lower and the upper bound stop the gradient: r < 1 - low with A < 0, and r > 1 + high with A > 0."""
    return (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)


def sequence_log_ratio(gap: Float[Tensor, "b k"], weight: Float[Tensor, "b k"]) -> Float[Tensor, "b 1"]:
    """Mean log-ratio of each sequence; its exponential is the geometric mean ratio s_i of GSPO (Zheng et al. 2025)."""
    return (gap * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


def law_gap(logp: Float[Tensor, "b k"], rollout: Rollout, keep: Bool[Tensor, " b"]) -> Mean:
    """Mean |log p - recorded log p|, nats: before the first update, how far the trained law is from the sampled one."""
    return token_mean((logp - rollout.logp).abs(), rollout.weight, keep)


def sequence_ratio_per_token(gap: Float[Tensor, "b k"], weight: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """sg[s_i] p / sg[p]: the value of GSPO's ratio with the gradient of each token (GSPO-token)."""
    return sequence_log_ratio(gap, weight).detach().exp() * (gap - gap.detach()).exp()


def capped_ratio(ratio: Float[Tensor, "b k"], cap: float) -> Float[Tensor, "b k"]:
    """sg[min(r, cap)], the weight of a token in CISPO (MiniMax-M1, 2025)."""
    return ratio.detach().clamp(max=cap)
