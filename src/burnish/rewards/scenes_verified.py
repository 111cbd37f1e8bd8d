"""The truth about a scene as a reward: 1 where a picture, or a video, shows exactly what was asked for, else 0.

The embedded world's counterpart of the rule-based GenEval reward of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.types import Prompt, Scores
from burnish.worlds.scenes.motion import judge


@dataclass(frozen=True)
class ScenesVerified(Reward):
    """The verdict of the scenes verifier, for prompts of the scenes world. Its reason is the note on every sample."""

    videos: ClassVar[bool] = True

    partial: bool = False  # score the share of the prompt's requirements that are met, instead of all or nothing

    def load(self, device: torch.device) -> Scorer:
        return _ScenesScorer(self)


class _ScenesScorer(Scorer):
    def __init__(self, settings: ScenesVerified) -> None:
        self._settings = settings

    def __call__(self, images: Float[Tensor, "b *f 3 64 64"], prompts: Sequence[Prompt]) -> Scores:
        """Raises ValueError, naming it, for a prompt that is not of the scenes world, or of a motion and a picture."""
        verdicts = judge(images, prompts)
        values = verdicts.share if self._settings.partial else verdicts.right.float()
        # A picture that holds NaN was not drawn badly, it was not drawn: there is nothing to score.
        sound = images.detach().flatten(1).isfinite().all(1)
        values = torch.where(sound, values.to(images.device), torch.nan)
        notes = [
            reason if ok else "the picture holds NaN or infinity"
            for reason, ok in zip(verdicts.reasons, sound.tolist(), strict=True)
        ]
        return Scores.of("scenes_verified", values, notes)
