"""MANIQA: perceptual quality without a reference. Yang et al. 2022, arXiv 2204.08958; the KonIQ-10k checkpoint.

AR-GRPO adds 2 times the mean over 20 random 224-pixel crops. Here the crops go through the network together, and lie at
places that depend on the seed alone, so that a score can be had again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.pixels import in_chunks, random_crops
from burnish.models.quality import quality_network
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Maniqa(Reward):
    """Mean quality of crops of a picture, about 0 to 1."""

    crops: int = 20  # crops of each picture; the paper and AR-GRPO take 20
    side: int = 224  # pixels of a crop; the network takes 224. Smaller pictures are enlarged to it first
    seed: int = 0  # of the places of the crops, which are the same in every picture
    batch: int = 20  # crops in one forward pass
    weights: str = ""  # a local checkpoint; empty: the released one, which pyiqa downloads

    differentiable: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        """Read the network. Raises ValueError if pyiqa is missing or its weights cannot be had."""
        # test_sample 1: the network crops for itself, and one crop of a crop of the same size is all of it
        options = {"test_sample": 1} | ({"pretrained_model_path": self.weights} if self.weights else {})
        return _ManiqaScorer(self, quality_network("maniqa", "reward.maniqa", device, **options), device)


class _ManiqaScorer(Scorer):
    def __init__(self, settings: Maniqa, network: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._settings = settings
        self._network = network
        self._device = device

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        crops = random_crops(images.to(self._device), self._settings.crops, self._settings.side, self._settings.seed)
        values = in_chunks(lambda part: self._network(part).flatten(), crops.flatten(0, 1), self._settings.batch)
        means = values.float().unflatten(0, (len(images), self._settings.crops)).mean(1)
        return Scores.of("maniqa", means.to(images.device))
