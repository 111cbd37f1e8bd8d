"""Classifier-free guidance on logits, and how other conventions for its weight translate into ours.

Ours is that of LlamaGen, Janus and AR-GRPO: w = 1 is no guidance, w = 0 is the unconditional law.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def guided(
    cond: Float[Tensor, "*n v"], null: Float[Tensor, "*n v"] | None, weight: float, detach_null: bool = False
) -> Float[Tensor, "*n v"]:
    """u + w (c - u): conditional logits c led away from unconditional u. Ho & Salimans 2022, eq. 6 (w = 1 + theirs).

    A weight of 1 returns `cond` itself and needs no `null`. `detach_null` stops the gradient through u.
    Raises ValueError for a weight other than 1 without unconditional logits.
    """
    if weight == 1.0:
        return cond
    if null is None:
        raise ValueError(f"guidance {weight} needs the unconditional logits too; guidance 1 does without them")
    return torch.lerp(null.detach() if detach_null else null, cond, weight)  # one pass, no temporary


def as_long_as(cond: Float[Tensor, "*n d"], led: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """`led` at the length of `cond`, vector by vector, as in diffusers' QwenImagePipeline.

    So that a large weight does not overshoot: Lin et al. 2023 (arXiv:2305.08891, eq. 15) with norms for deviations.
    """
    return led * (cond.norm(dim=-1, keepdim=True) / led.norm(dim=-1, keepdim=True))


def weight_from_show_o(weight: float) -> float:
    """Our weight for Show-o's, whose g = (1 + w) c - w u and whose w = 0 is no guidance."""
    return 1.0 + weight


def weight_from_var(weight: float, scale: int, scales: int) -> float:
    """Our weight at `scale` (from 0) of VAR, whose g = (1 + t) c - t u grows: t = w scale / (scales - 1)."""
    return 1.0 + weight * scale / max(scales - 1, 1)
