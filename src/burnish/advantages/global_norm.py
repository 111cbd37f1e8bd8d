"""REINFORCE++'s advantage: the scale is that of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage
from burnish.formulas.groups import group_centred, group_std
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class GlobalNorm(Advantage):
    """(R - baseline) / (std over the batch + eps). Hu 2025 (REINFORCE++).

    With the "group" baseline (REINFORCE++-baseline) a group keeps its share of what there is to learn: one whose
    samples hardly differ stays small. With the "batch" baseline no group is needed, and easy prompts are favoured.
    The standard deviation, ddof 1 and over all valid samples of the step, is that of what is divided; or of the rewards
    themselves, as the released code of Flow-GRPO has it: then prompts of different difficulty make advantages small.
    """

    baseline: Literal["group", "batch"] = "group"  # mean that is subtracted: of the prompt's group, or of all samples
    scale: Literal["centred", "raw"] = "centred"  # what the deviation is of: rewards less the baseline, or rewards
    eps: float = 1e-4  # added to the standard deviation, in units of the reward

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        batch = torch.zeros_like(rollout.group)
        centred = group_centred(scores.total, rollout.group if self.baseline == "group" else batch, scores.valid)
        spread = group_std(centred if self.scale == "centred" else scores.total, batch, scores.valid)
        return (centred / (spread + self.eps)).to(scores.total.dtype)
