"""PickScore: which of two pictures a person would pick. Kirstain et al. 2023, 'Pick-a-Pic', arXiv 2305.01569.

The model's logit: exp(logit_scale) times the cosine of a fine-tuned CLIP ViT-H/14, about 18 to 24 on real pictures.
Flow-GRPO and the evaluation of AR-GRPO divide it by 26.
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
class PickScore(Reward):
    """Human preference: the model's logit over `divisor`."""

    weights: str = "yuvalkirstain/PickScore_v1"  # hub id or local folder of a transformers CLIP
    processor: str = (
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # of its tokenizer and preprocessor_config.json; empty: `weights`
    )
    divisor: float = 26.0  # brings the score near [0, 1]; 1 gives the released logit
    dtype: Dtype = "float32"  # of the model's weights
    batch: int = 16  # pictures in one forward pass

    differentiable: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        """Read the model. Raises ValueError for weights that cannot be read or are incomplete."""
        where = "reward.pickscore.weights"
        return _PickScorer(self, load_towers(self.weights, self.processor, where, device, self.dtype, self.batch))


class _PickScorer(Scorer):
    def __init__(self, settings: PickScore, towers: ClipTowers) -> None:
        self.towers = towers
        self._factor = towers.scale / settings.divisor

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        return Scores.of("pickscore", self._factor * self.towers.cosine(images, [prompt.text for prompt in prompts]))
