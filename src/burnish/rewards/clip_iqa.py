"""CLIP-IQA: perceptual quality, as how much nearer a picture is to "Good photo." than to "Bad photo.", in [0, 1].

Wang et al. 2022, 'Exploring CLIP for Assessing the Look and Feel of Images', arXiv 2207.12396. The released metric
(RN50 without positional embedding) comes through pyiqa; the same question can be put to any transformers CLIP instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.clip_towers import ClipTowers, load_towers
from burnish.models.pixels import in_chunks
from burnish.models.quality import quality_network
from burnish.models.released import Dtype
from burnish.types import Prompt, Scores

PAIRS = (
    ("Good photo.", "Bad photo."),
    ("High quality.", "Low quality."),
    ("Sharp photo.", "Blurry photo."),
)  # as pyiqa


@dataclass(frozen=True)
class ClipIQA(Reward):
    """Probability of the good description over the bad one, averaged over the pairs."""

    weights: str = ""  # hub id or local folder of a transformers CLIP; empty: the released metric of pyiqa
    pairs: tuple[tuple[str, str], ...] = PAIRS  # (good, bad) descriptions; pyiqa's metric has these built in
    dtype: Dtype = "float32"  # of the weights of a transformers CLIP
    batch: int = 32  # pictures in one forward pass

    differentiable: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        """Read the model. Raises ValueError if pyiqa is needed and missing, or the weights cannot be read."""
        if not self.weights:
            network = quality_network("clipiqa", "reward.clip_iqa", device)
            return _ClipIQAScorer(lambda images: network(images.to(device)).flatten(), self.batch)
        towers = load_towers(self.weights, "", "reward.clip_iqa.weights", device, self.dtype, self.batch)
        return _ClipIQAScorer(_Opposites(towers, self.pairs), self.batch)


class _Opposites:
    """Softmax over the two descriptions of a pair, at the model's own logit scale."""

    def __init__(self, towers: ClipTowers, pairs: Sequence[tuple[str, str]]) -> None:
        self._towers = towers
        self._words = towers.texts([word for pair in pairs for word in pair]).unflatten(0, (-1, 2))

    def __call__(self, images: Tensor) -> Tensor:
        logits = self._towers.scale * torch.einsum("bd,pgd->bpg", self._towers.pictures(images), self._words)
        return logits.softmax(-1)[..., 0].mean(1)


class _ClipIQAScorer(Scorer):
    def __init__(self, measure: Callable[[Tensor], Tensor], batch: int) -> None:
        self._measure = measure
        self._batch = batch

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        return Scores.of("clip_iqa", in_chunks(self._measure, images, self._batch).float().to(images.device))
