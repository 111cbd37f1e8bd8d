"""Win rates in place of rewards: only the order within a group counts, as a jury of pairs would give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.groups import group_normed
from burnish.formulas.ranks import win_rate
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class WinRate(Advantage):
    """group_norm of the share of siblings that a sample beats, ties counting half. Pref-GRPO, arXiv:2508.20751.

    The paper asks a vision-language model about every pair of a group; here the score decides, so that no monotone
    change of the reward, nor how far apart scores lie, has any influence. One outlier no longer sets the scale.
    Sums to zero over the valid members of each group. With `weights` parts of the reward are weighed and summed, each
    normalised by itself as per_part has it. Raises ValueError for a part that the reward does not have.
    """

    weights: Mapping[str, float] = field(default_factory=dict)  # of parts by name; none named: the total alone
    plain: tuple[str, ...] = ()  # of these parts, those whose values stay as they are
    eps: float = 1e-4  # added to the standard deviation of the win rates

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        if unknown := sorted({*self.weights, *self.plain} - scores.parts.keys()):
            raise ValueError(
                f"advantage.win_rate: the reward has no part {', '.join(unknown)}; "
                f"its parts are: {', '.join(scores.parts) or 'none'}"
            )
        parts = {name: (weight, scores.parts[name]) for name, weight in self.weights.items()}
        total = torch.zeros_like(scores.total, dtype=torch.float64)
        for name, (weight, part) in (parts or {"": (1.0, scores.total)}).items():
            valid = scores.valid & torch.isfinite(part)
            rate = part if name in self.plain else win_rate(part, rollout.group, valid)
            total = total + weight * group_normed(rate, rollout.group, valid, self.eps)
        return total.to(scores.total.dtype)
