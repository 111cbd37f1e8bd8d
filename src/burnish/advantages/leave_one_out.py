"""RLOO's advantage: how much a sample is better than the others of its group."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.groups import leave_one_out
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class LeaveOneOut(Advantage):
    """R minus the mean of the others, which is G / (G - 1) (R - mean). Kool et al. 2019; RLOO, Ahmadian et al. 2024.

    Sums to zero over the valid members of each group, and gives an unbiased gradient of the expected reward.
    """

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        return leave_one_out(scores.total, rollout.group, scores.valid).to(scores.total.dtype)
