"""Dr.GRPO's advantage: how much a sample is better than its group."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.groups import group_centred
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class GroupMean(Advantage):
    """R - mean within the group, not divided by its spread. Liu et al. 2025 (Dr.GRPO), section 3.2.

    Sums to zero over the valid members of each group. A sample is part of its own baseline, so that the expected
    gradient is (G - 1) / G times the true one; `leave_one_out` has none of that shrinkage.
    """

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        return group_centred(scores.total, rollout.group, scores.valid).to(scores.total.dtype)
