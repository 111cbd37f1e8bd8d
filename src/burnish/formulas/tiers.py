"""Step functions of a score. AR-GRPO, arXiv 2508.06924 (`discrete_reward_map` of its release)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """The levels of a step function. A score on a cut belongs to the step above it.

    There are as many values as cuts (the last cut then only closes the range: at it and above it, the last value
    holds) or one more. The defaults are AR-GRPO's: -1 below 0, 0.5 in [0, 0.3), 1 in [0.3, 0.6), 1.5 from 0.6 on.
    """

    cuts: tuple[float, ...] = (0.0, 0.3, 0.6, 1.0)  # where the value changes, ascending
    values: tuple[float, ...] = (-1.0, 0.5, 1.0, 1.5)  # below the first cut, then from each cut on

    def __post_init__(self) -> None:
        if not self.cuts or any(a >= b for a, b in zip(self.cuts, self.cuts[1:], strict=False)):
            raise ValueError(f"tiers.cuts: expected ascending numbers, got {self.cuts}")
        if len(self.values) - len(self.cuts) not in (0, 1):
            raise ValueError(
                f"tiers.values: {len(self.cuts)} cuts take {len(self.cuts)} or {len(self.cuts) + 1} values, "
                f"got {len(self.values)}: {self.values}"
            )
        if not all(math.isfinite(number) for number in (*self.cuts, *self.values)):
            raise ValueError(f"tiers: cuts and values must be finite, got {self.cuts} and {self.values}")


def step_values(scores: Float[Tensor, " b"], steps: Steps) -> Float[Tensor, " b"]:
    """The value of the step each score stands on; NaN stays NaN. It has no gradient."""
    scores = scores.detach()
    place = torch.bucketize(scores, scores.new_tensor(steps.cuts), right=True)
    levels = scores.new_tensor(steps.values)[place.clamp(max=len(steps.values) - 1)]
    return torch.where(scores.isnan(), scores, levels)
