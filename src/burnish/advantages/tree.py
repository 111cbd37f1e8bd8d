"""The advantage of every branch of a tree of denoising steps: how good its leaves are, among branches equally deep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core import Advantage, LatentPlan
from burnish.formulas.groups import exact
from burnish.formulas.steps import latents_of
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class Tree(Advantage):
    """(V - mean) / std over the branches of a group at one depth. BranchGRPO, arXiv:2509.06040, section 3.

    A branch is a step and what was drawn in it (`Latents.node`); V is the mean score of the valid leaves below it, or
    with `path` the mean of the branches that it divides into, each weighed by the softmax of their recorded
    log-probabilities. Mean and deviation count each branch once, however many leaves it has. 0 at a depth that has one
    branch, or whose values differ by less than eps. Of independent samples every step has its sample's own advantage.
    Reads the steps of a denoiser.
    """

    value: Literal["mean", "path"] = "mean"  # of a branch: mean of its leaves, or weighed by likelihoods
    ddof: Literal[0, 1] = 0  # of the deviation; 1 as released: of two branches advantages are then 0.7, and not 1
    eps: float = 1e-6  # deviation below which a depth teaches nothing, in units of the reward

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        steps = latents_of(rollout, "advantage.tree")
        if self.value == "path" and isinstance(rollout.plan, LatentPlan) and rollout.plan.trained is not None:
            raise ValueError(
                "advantage.tree.value: path weighs a branch by the steps after it, of which this plan leaves some out"
            )
        node, depth = steps.node.cpu(), steps.step.cpu()
        b, k = node.shape
        valid = scores.valid.cpu()
        # Branches of one group and depth are compared; a branch is named by group, depth and node.
        group = rollout.group.cpu().unsqueeze(1).expand(b, k)
        level = _numbered(group, depth)
        branch = _numbered(group, depth, node)
        good = valid.unsqueeze(1).expand(b, k)
        # One over the valid leaves of a branch, so that all of them together count it once.
        once = torch.where(good, 1 / _sum(good.double(), branch).clamp(min=1), 0.0)
        chance = torch.where(good, self._chance(steps.logp, branch, once), 0.0)
        total = torch.where(valid, exact(scores.total.cpu()), 0.0).unsqueeze(1)
        value = _sum(chance * total, branch) / _sum(chance, branch).clamp(min=torch.finfo(torch.float64).tiny)
        count = _sum(once, level).clamp(min=1)
        centred = value - _sum(once * value, level) / count
        spread = (_sum(once * centred.square(), level) / (count - self.ddof).clamp(min=1)).sqrt()
        found = torch.where(good & (spread >= self.eps), centred / spread.clamp(min=self.eps), 0.0)
        return found.to(scores.total)

    def _chance(
        self, logp: Float[Tensor, "b k"], branch: Int[Tensor, "b k"], once: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b k"]:
        """Weight of each leaf in the value of the branches above it."""
        if self.value == "mean" or branch.shape[1] == 1:
            return torch.ones(branch.shape, dtype=torch.float64)
        logp, above = exact(logp.cpu())[:, 1:], branch[:, :-1]
        most = torch.full((int(branch.max()) + 1,), -torch.inf, dtype=logp.dtype)
        most.scatter_reduce_(0, above.flatten(), logp.flatten(), "amax")
        raw = (logp - most[above]).exp()
        share = raw / _sum(raw * once[:, 1:], above).clamp(min=torch.finfo(torch.float64).tiny)
        later = share.flip(1).cumprod(1).flip(1)
        return torch.cat([later, torch.ones(len(later), 1, dtype=later.dtype)], 1)


def _numbered(*names: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
    """One number for every distinct combination."""
    return torch.stack(names, -1).flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(names[0].shape)


def _sum(values: Float[Tensor, "b k"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """The sum over equal numbers of `index`, at each of them."""
    total = values.new_zeros(int(index.max()) + 1).index_add_(0, index.flatten(), values.flatten())
    return total[index]
