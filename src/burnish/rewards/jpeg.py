"""Size of the picture as a JPEG, in kB: the (in)compressibility reward. Black et al. 2023, DDPO, arXiv 2305.13301.

No weights, so it shows in minutes whether a policy can be moved at all.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.pixels import to_bytes
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Jpeg(Reward):
    """`sign` times the kB (1000 bytes) of the encoded picture."""

    quality: int = 95  # of the encoder, 1 to 95; DDPO uses 95
    sign: Literal[-1, 1] = -1  # -1 rewards small files (compressibility), 1 large ones (incompressibility)

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"reward.jpeg.quality: expected 1 to 95, got {self.quality}")
        if self.sign not in (-1, 1):
            raise ValueError(f"reward.jpeg.sign: expected -1 or 1, got {self.sign}")

    def load(self, device: torch.device) -> Scorer:
        return _JpegScorer(self)


class _JpegScorer(Scorer):
    def __init__(self, settings: Jpeg) -> None:
        self._settings = settings

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        sizes = [self._settings.sign * _bytes(levels, self._settings.quality) / 1000 for levels in to_bytes(images)]
        # An encoder sees 8 bits, in which a NaN looks like any other number.
        sound = images.detach().flatten(1).isfinite().all(1)
        kilobytes = torch.where(sound, torch.tensor(sizes, dtype=torch.float32, device=images.device), torch.nan)
        return Scores.of(
            "jpeg", kilobytes, ["" if ok else "the picture holds NaN or infinity" for ok in sound.tolist()]
        )


def _bytes(levels: np.ndarray, quality: int) -> int:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="JPEG", quality=quality)
    return buffer.tell()
