"""A clipped surrogate whose bounds widen with the advantage, and a pull towards the best path. Dynamic-TreeRPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from burnish.core import Denoiser, Needs, Objective, Scorer
from burnish.formulas.aggregation import counted, per_decision, token, token_mean
from burnish.formulas.groups import group_mean
from burnish.formulas.ranks import order
from burnish.formulas.ratios import anchor_of, clipped, clipped_surrogate, law_gap, log_ratio
from burnish.formulas.steps import latents_of, mean_over_dimensions
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class TreeClip(Objective[Denoiser]):
    """-min(r A, clip(r, 1 - c, 1 + c) A) + best_path e^(-R / scale) |v(x) - v*|^2, mean over samples and steps.

    Dynamic-TreeRPO, arXiv:2509.23352, known from abstract and reviews, so that both formulas are ours:

        c            clip (1 + widen tanh A): a step that did well may go further, one that did badly less far
        v*           the velocity, without gradient, at the same step of the way to the best valid leaf of the group; 0
                     apart on that way itself
        e^(-R / s)   R the mean score of the group; at most 1. The pull fades as samples become good, and is there
                     where the advantage is 0 too

    Metrics:
        ratio_mean    mean ratio to the recorded law; 1 before the first update
        clipped       share of steps whose gradient the clip stops
        best_path     mean |v - v*|^2, not weighed
        law_gap       mean |log p - recorded log p|, nats a dimension
    """

    clip: float = 1e-4  # half-width of the bounds where the advantage is 0
    widen: float = 0.5  # how much wider, as a part, the bounds of the best are, and narrower those of the worst
    best_path: float = 0.0  # lambda: weight of the pull towards the best path
    scale: float = 1.0  # of the reward: as the mean score of a group rises by this, the pull falls by e
    max_advantage: float = 5.0  # advantages are cut at plus and minus this

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 0.5:
            raise ValueError(f"objective.tree_clip.clip: must be above 0 and at most 0.5, not {self.clip}")
        if not 0 <= self.widen < 1:
            raise ValueError(f"objective.tree_clip.widen: must be from 0 to below 1, not {self.widen}")
        if self.best_path < 0 or not self.scale > 0:
            raise ValueError(
                f"objective.tree_clip: best_path must be 0 or more and scale above 0, "
                f"not {self.best_path} and {self.scale}"
            )

    def needs(self) -> Needs:
        return Needs(whole_groups=True)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        now, known = policy.score(rollout), latents_of(batch.rollout, "objective.tree_clip")
        ratio = log_ratio(now.logp, anchor_of(rollout, now.logp, "behaviour"), counted(weight, keep)).exp()
        advantage = per_decision(batch.advantage).clamp(-self.max_advantage, self.max_advantage)
        bound = (self.clip * (1 + self.widen * torch.tanh(advantage))).to(ratio)
        values = clipped_surrogate(ratio, advantage, bound, bound)
        low_cut, high_cut = clipped(ratio, advantage, bound, bound)

        best = self._best(batch).to(now.velocity.device)
        aim, same = now.velocity.detach()[best], known.step[best] == known.step
        apart = torch.where(counted(weight, keep) & same, mean_over_dimensions((now.velocity - aim).square()), 0.0)
        if self.best_path > 0:
            worth = group_mean(batch.scores.total, rollout.group, keep)
            fade = torch.exp(-worth / self.scale).clamp(max=1).unsqueeze(1).to(apart)
            values = values + self.best_path * fade * apart
        metrics = {
            "ratio_mean": token_mean(ratio, weight, keep),
            "clipped": token_mean(low_cut | high_cut, weight, keep),
            "best_path": token_mean(apart, weight, keep),
            "law_gap": law_gap(now.logp, rollout, keep),
        }
        return Loss(*token(values, weight, keep), metrics)

    def _best(self, batch: Batch) -> Int[Tensor, " b"]:
        """For every sample, the best of its group that counts; itself where none does."""
        rollout, keep = batch.rollout, batch.keep
        first = keep & (order(batch.scores.total, rollout.group, keep, rollout.ids) == 0)
        match = (rollout.group == rollout.group.unsqueeze(1)) & first.to(rollout.group.device)
        return torch.where(match.any(1), match.int().argmax(1), torch.arange(len(rollout), device=match.device))
