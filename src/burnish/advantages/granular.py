"""One advantage for a random step that was finished in several ways: G2RPO's integration of granularities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.steps import latents_of
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class Granular(Advantage):
    """Sum of `inner` over the pictures that one and the same step led to. Zhou et al. 2025, arXiv:2510.01982, sec. 3.

    Plan single_branch with several strides compares pictures of one branch and one stride, so that `inner` sees neither
    other steps nor other grids. What was drawn in a step (`Latents.node`) then has its sum over the grids, whichever
    picture it is read at; a picture without a valid score adds nothing. Of independent samples every step has its
    sample's own advantage. Reads the steps of a denoiser.
    """

    inner: Advantage  # within the pictures of one step and one grid; G2RPO: per_part

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        node = latents_of(rollout, "advantage.granular").node
        found = self.inner(scores, rollout)
        found = found.unsqueeze(1).expand(node.shape) if found.dim() == 1 else found
        valid = scores.valid.unsqueeze(1)
        _, index = node.unique(return_inverse=True)
        total = found.new_zeros(int(index.max()) + 1)
        total.index_add_(0, index.flatten(), torch.where(valid, found, 0.0).flatten())
        return torch.where(valid, total[index], 0.0)
