"""CLIP score: the cosine between a picture and its prompt. Radford et al. 2021; Hessel et al. 2021, 'CLIPScore'.

AR-GRPO (arXiv 2508.06924) adds 5 times this cosine, from ViT-B/32, and "a photo of {text}" where the prompt is a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.clip_towers import ClipTowers, load_towers
from burnish.models.released import Dtype
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class ClipScore(Reward):
    """Agreement of picture and prompt, `scale` times a cosine in [-1, 1]."""

    weights: str = "openai/clip-vit-base-patch32"  # hub id or local folder of a transformers CLIP
    processor: str = ""  # hub id or folder of its tokenizer and preprocessor_config.json; empty: `weights`
    template: str = "{text}"  # what is compared with the picture; {text} stands for the prompt
    scale: float = 1.0  # multiplies the cosine; Hessel et al. use 2.5
    dtype: Dtype = "float32"  # of the model's weights
    batch: int = 64  # pictures in one forward pass

    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if "{text}" not in self.template:
            raise ValueError(f"reward.clip_score.template: {self.template!r} lacks {{text}}, the place of the prompt")

    def load(self, device: torch.device) -> Scorer:
        """Read the model. Raises ValueError for weights that cannot be read or are incomplete."""
        where = "reward.clip_score.weights"
        return _ClipScorer(self, load_towers(self.weights, self.processor, where, device, self.dtype, self.batch))


class _ClipScorer(Scorer):
    def __init__(self, settings: ClipScore, towers: ClipTowers) -> None:
        self.towers = towers
        self._settings = settings

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        # replace, and not format: a prompt may hold braces of its own
        texts = [self._settings.template.replace("{text}", prompt.text) for prompt in prompts]
        return Scores.of("clip_score", self._settings.scale * self.towers.cosine(images, texts))
