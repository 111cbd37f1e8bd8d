"""A reward of pictures on videos: some frames are scored, and the mean counts; or they are one picture, side by side.

Image rewards on video models, as in InstructVideo (Yuan et al. 2023, arXiv:2312.12490) and DanceGRPO's video runs. What
moves between frames is not seen by a mean over them; a judge that is asked about a strip can see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.formulas.frames import is_video, pictures_of, spread, strip
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Frames(Reward):
    """`of`, asked about frames of a video. Pictures are scored by it as they are."""

    videos: ClassVar[bool] = True

    of: Reward  # a reward of pictures
    count: int = 4  # frames it is asked about, evenly spread; 1 is the middle one, more than there are is all
    join: Literal["mean", "strip"] = "mean"  # mean over frames scored one by one, or one score of all side by side

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"reward.frames.count: expected 1 or more, got {self.count}")
        if self.of.compares and self.join == "mean" and self.count > 1:
            raise ValueError("reward.frames.join: mean would compare frames of one video; strip would work")

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """If the reward inside is."""
        return self.of.differentiable

    @property
    def compares(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """If the reward inside does."""
        return self.of.compares

    def load(self, device: torch.device) -> Scorer:
        """Load the reward inside. Raises what it raises."""
        return _FramesScorer(self.of.load(device), self)


class _FramesScorer(Scorer):
    def __init__(self, inner: Scorer, settings: Frames) -> None:
        self._inner, self._settings = inner, settings

    def __call__(self, images: Float[Tensor, "b *f 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        """Parts and notes of the reward inside. A video with a frame that cannot be scored is invalid."""
        if not is_video(images):
            return self._inner(images, prompts)
        some = images[:, spread(images.shape[1], self._settings.count)]
        if self._settings.join == "strip":
            return self._inner(strip(some), prompts)
        each = some.shape[1]
        scores = self._inner(pictures_of(some), [prompt for prompt in prompts for _ in range(each)])
        valid = scores.valid.unflatten(0, (-1, each)).all(1)
        total = scores.total.unflatten(0, (-1, each)).mean(1)
        parts = {name: part.unflatten(0, (-1, each)).mean(1) for name, part in scores.parts.items()}
        notes = {name: _joined(words, each) for name, words in scores.notes.items()}
        return Scores(torch.where(valid, total, torch.nan), parts, valid, notes)


def _joined(words: Sequence[str], each: int) -> tuple[str, ...]:
    """The different notes on the frames of each video."""
    videos = (words[start : start + each] for start in range(0, len(words), each))
    return tuple("; ".join(dict.fromkeys(filter(None, some))) for some in videos)
