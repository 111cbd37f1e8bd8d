"""GRPO's advantage: how many standard deviations a sample is better than its group."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.groups import group_normed
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class GroupNorm(Advantage):
    """(R - mean) / (std + eps) within the group, std with ddof 1. DeepSeekMath 2024, section 4.1; eps as in TRL.

    Sums to zero over the valid members of each group. Hard and easy prompts weigh alike: the scale of the reward and
    how much its samples differ are divided out, so that this is not a gradient of the expected reward.
    """

    eps: float = 1e-4  # added to the standard deviation, in units of the reward

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        return group_normed(scores.total, rollout.group, scores.valid, self.eps).to(scores.total.dtype)
