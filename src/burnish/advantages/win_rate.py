"""Win rates in place of rewards: only the order within a group counts, as a jury of pairs would give it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.groups import group_centred, group_std
from burnish.formulas.ranks import win_rate
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class WinRate(Advantage):
    """group_norm of the share of siblings that a sample beats, ties counting half. Pref-GRPO, arXiv:2508.20751.

    The paper asks a vision-language model about every pair of a group; here the score decides, so that no monotone
    change of the reward, nor how far apart scores lie, has any influence. One outlier no longer sets the scale.
    Sums to zero over the valid members of each group.
    """

    eps: float = 1e-4  # added to the standard deviation of the win rates

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        rate = win_rate(scores.total, rollout.group, scores.valid)
        spread = group_std(rate, rollout.group, scores.valid) + self.eps
        return (group_centred(rate, rollout.group, scores.valid) / spread).to(scores.total.dtype)
