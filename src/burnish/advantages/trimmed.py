"""The best and the worst of a group are learned from; those between are left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.groups import group_count
from burnish.formulas.ranks import order
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class Trimmed(Advantage):
    """`inner` for the `best` and `worst` samples of each group by score, 0 for the others. DanceGRPO, arXiv:2505.07818.

    Ranked by score, equal ones by their number. The others still count as samples: a loss that is a mean over samples
    becomes smaller by the share that is kept. A group of no more than best + worst valid members is kept whole.

    With `least` the best also need an advantage of at least that, and the worst one below minus that (B2-DiffuRL,
    arXiv:2503.11240: best and worst 1 of the five samples of a branch, least 0.5, z-scores of a prompt's history).
    """

    inner: Advantage  # of the whole group
    best: int = 4  # samples kept from the top (DanceGRPO, video: 4 and 4 of 24)
    worst: int = 4  # samples kept from the bottom
    least: float | None = None  # how far from 0, on its side, the advantage of a kept sample is; None: anywhere

    def __post_init__(self) -> None:
        if self.least is not None and not self.least >= 0:
            raise ValueError(f"advantage.trimmed.least: must be 0 or more, or None for no bound, not {self.least}")
        if self.best < 0 or self.worst < 0 or self.best + self.worst < 1:
            raise ValueError(f"advantage.trimmed: best {self.best} and worst {self.worst} would leave no sample")

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"] | Float[Tensor, "b k"]:
        place = order(scores.total, rollout.group, scores.valid, rollout.ids)
        last = group_count(rollout.group, scores.valid) - self.worst
        advantage = self.inner(scores, rollout)
        top, bottom = place < self.best, place >= last.to(place.device)
        if advantage.dim() == 2:
            top, bottom = top.unsqueeze(1), bottom.unsqueeze(1)
        if self.least is not None:
            top, bottom = top & (advantage >= self.least), bottom & (advantage < -self.least)
        return torch.where(top | bottom, advantage, 0.0)
