"""Every part of a reward normalised by itself, so that none drowns another by its scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.groups import group_normed
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class PerPart(Advantage):
    """Sum over parts of weight x (part - mean) / (std + eps) within the group, std with ddof 1.

    GDPO (2026) without its last whitening over the batch.
    Sums to zero over the valid members of each group. It reads the parts before weighting: weights of the reward do
    not act, those here do. A part whose value could not be computed makes its sample invalid, as the reward says.
    Raises ValueError for a weight on a part that the reward does not have, or a reward without parts.
    """

    weights: Mapping[str, float] = field(default_factory=dict)  # of each part by name; 1 where not named, 0 leaves out
    eps: float = 1e-4  # added to the standard deviation of each part, in units of that part

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        unknown = sorted(set(self.weights) - set(scores.parts))
        if unknown or not scores.parts:
            raise ValueError(
                f"advantage.per_part.weights: the reward has no part {', '.join(unknown) or 'at all'};"
                f" its parts are: {', '.join(scores.parts) or 'none'}"
            )
        total = torch.zeros_like(scores.total, dtype=torch.float64)
        for name, part in scores.parts.items():
            # A part may be missing where the total is still valid (a gate that did not open): it adds nothing there.
            valid = scores.valid & torch.isfinite(part)
            total = total + self.weights.get(name, 1.0) * group_normed(part, rollout.group, valid, self.eps)
        return total.to(scores.total.dtype)
