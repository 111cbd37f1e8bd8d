"""HPSv2.1: human preference of a picture for a prompt. Wu et al. 2023, 'Human Preference Score v2', arXiv 2306.09341.

The score is the plain cosine between picture and text vectors of a fine-tuned open_clip ViT-H/14 (`hpsv2/img_score.py`
of the release: `image_features @ text_features.T`, without the logit scale), about 0.2 to 0.35 on real pictures.
AR-GRPO adds 5 times this number; leaderboards print 100 times it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.clip_towers import ClipTowers, load_tokenizer
from burnish.models.open_clip import clip_from_open_clip
from burnish.models.pixels import Pixels
from burnish.models.released import DTYPES, Dtype, find_file, read_state
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class HPS(Reward):
    """Human preference, `scale` times a cosine in [-1, 1]."""

    weights: str = (
        "xswu/HPSv2:HPS_v2.1_compressed.pt"  # open_clip state dict: a file, or owner/repository:file of the hub
    )
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # hub id or folder of the CLIP tokenizer
    vision_heads: int = 16  # attention heads, which no weight tells; these are ViT-H/14's
    text_heads: int = 16  # the same, of the text tower
    scale: float = 1.0  # multiplies the cosine
    dtype: Dtype = "float32"  # of the model's weights
    batch: int = 16  # pictures in one forward pass

    differentiable: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        """Read and convert the weights. Raises ValueError that names a missing, surplus or misshapen key."""
        where = "reward.hps.weights"
        state = read_state(find_file(self.weights, where), where)
        model = clip_from_open_clip(state, self.vision_heads, self.text_heads, where)
        model = model.to(device, DTYPES[self.dtype]).eval().requires_grad_(False)
        # The release fits the whole picture into the square and fills the rest with black, where CLIP crops.
        pixels = Pixels(model.config.vision_config.image_size, fit="pad")
        tokenizer = load_tokenizer(self.processor, "reward.hps.processor")
        return _HPSScorer(self, ClipTowers(model, tokenizer, pixels, self.batch))


class _HPSScorer(Scorer):
    def __init__(self, settings: HPS, towers: ClipTowers) -> None:
        self.towers = towers
        self._scale = settings.scale

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        return Scores.of("hps", self._scale * self.towers.cosine(images, [prompt.text for prompt in prompts]))
