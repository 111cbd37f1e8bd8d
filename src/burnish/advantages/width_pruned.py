"""Of what follows the last fork of a tree, a share is learned from. BranchGRPO's pruning by width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.core import Advantage, LatentPlan
from burnish.formulas.steps import latents_of
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class WidthPruned(Advantage):
    """`inner`, and 0 for the decisions after the last fork that are not kept. Li et al. 2025, arXiv:2509.06040.

    As in the released code, by advantage and not by score: of every branch that the last fork has made, the `share` of
    its later decisions with the largest advantages, one at least (its mode 1); or of all later decisions of a group as
    many from both ends, two at least, of an odd number one more from the lower (its mode 2). Equal ones stand in the
    order of samples and steps: the earlier are kept at the upper end, the later at the lower. What is left out still
    counts in a mean over decisions, which becomes smaller by it. Samples that no fork has divided are branches from
    their first step on. Decisions are not weighed by their scores alone. Reads the steps of a denoiser.
    """

    inner: Advantage  # of every decision
    share: float = 0.5  # of the later decisions that is kept
    keep: Literal["best", "extremes"] = "best"  # the largest of each branch; or largest and smallest of a group

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"advantage.width_pruned.share: must be above 0 and at most 1, not {self.share}")

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        steps, plan = latents_of(rollout, "advantage.width_pruned"), rollout.plan
        advantage = self.inner(scores, rollout)
        if advantage.dim() == 1:
            advantage = advantage.unsqueeze(1).expand(steps.step.shape)
        forks = plan.forks if isinstance(plan, LatentPlan) else ()
        last = max((step for step, _ in forks), default=-1)
        later = (steps.step > last).to(advantage.device) & scores.valid.to(advantage.device).unsqueeze(1)
        return torch.where(later & ~self._kept(advantage, later, rollout), 0.0, advantage)

    def _kept(
        self, advantage: Float[Tensor, "b k"], later: Bool[Tensor, "b k"], rollout: Rollout
    ) -> Bool[Tensor, "b k"]:
        """Which of the later decisions stay. After the last fork every sample is a branch of its own."""
        kept = torch.zeros_like(later)
        one_by_one = list(torch.arange(len(later)).unsqueeze(1))
        together = [(rollout.group == number).nonzero().squeeze(1) for number in rollout.group.unique()]
        for rows in one_by_one if self.keep == "best" else together:
            rows = rows[torch.tensor(rollout.ids)[rows.cpu()].argsort()].to(later.device)
            at = later[rows].nonzero()
            if not len(at):
                continue
            rows, columns = rows[at[:, 0]], at[:, 1]
            order = advantage[rows, columns].sort(descending=True, stable=True).indices
            count = int(len(order) * self.share)
            if self.keep == "best":
                order = order[: max(1, count)]
            else:
                count = min(max(2, count), len(order))
                order = torch.cat([order[: count // 2], order[len(order) - (count - count // 2) :]])
            kept[rows[order], columns[order]] = True
        return kept
