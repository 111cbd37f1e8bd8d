"""Attribute match: the share of attributes on which a classifier and the prompt agree. RL4Med-DDPO, arXiv:2503.15784.

The prompt's facts say what the picture should show, by the classifier's own names:

    {"text": "a dermoscopic image with melanoma (MEL) showing ink", "facts": {"attributes": ["MEL", "ink"]}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.pixels import Pixels, in_chunks, read_pixels
from burnish.models.released import Dtype, from_pretrained
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class AttributeMatch(Reward):
    """From 0 to 1. Every output of the classifier is a yes or no, and holds where its sigmoid exceeds `threshold`.

    A prompt that asks for attributes the classifier does not know, or does not say what it asks for, is not scored.
    """

    weights: str  # hub id or local folder of a transformers model for image classification, one output an attribute
    fact: str = "attributes"  # entry of a prompt's facts that lists what should be there
    count: Literal["all", "requested"] = (
        "all"  # all: what should not be there counts too, as released; or only what should
    )
    threshold: float = 0.5  # probability above which an attribute is there
    dtype: Dtype = "float32"  # of the model's weights
    batch: int = 64  # pictures in one forward pass

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"reward.attribute_match.threshold: expected above 0 and below 1, got {self.threshold}")

    def load(self, device: torch.device) -> Scorer:
        """Read the model. Raises ValueError for weights that cannot be read."""
        from transformers import AutoModelForImageClassification

        where = "reward.attribute_match.weights"
        model = from_pretrained(AutoModelForImageClassification, self.weights, where, device, self.dtype)
        return _AttributeScorer(self, model, read_pixels(self.weights, where))


class _AttributeScorer(Scorer):
    def __init__(self, settings: AttributeMatch, model: Any, pixels: Pixels) -> None:
        self.model, self._settings, self._pixels = model, settings, pixels
        self._places: dict[str, int] = model.config.label2id

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        with torch.no_grad():
            chances = in_chunks(self._chances, images.to(self.model.device), self._settings.batch).cpu()
        found = [self._share(chance, prompt) for chance, prompt in zip(chances, prompts, strict=True)]
        values, notes = zip(*found, strict=True) if found else ((), ())
        return Scores.of("attribute_match", torch.tensor(values, device=images.device), notes)

    def _chances(self, images: Tensor) -> Float[Tensor, "b l"]:
        return self.model(pixel_values=self._pixels(images).to(self.model.dtype)).logits.float().sigmoid()

    def _share(self, chances: Float[Tensor, " l"], prompt: Prompt) -> tuple[float, str]:
        """The score of a sample, and why it has none."""
        asked = prompt.facts.get(self._settings.fact)
        if not isinstance(asked, (list, tuple)):
            return torch.nan, f"the prompt's facts do not list {self._settings.fact!r}"
        unknown = sorted(set(map(str, asked)) - set(self._places))
        if unknown:
            return torch.nan, f"the classifier has no label {unknown[0]!r} (choices: {', '.join(self._places)})"
        if not torch.isfinite(chances).all():
            return torch.nan, "the classifier's answer is not finite"
        wanted: Bool[Tensor, " l"] = torch.zeros(len(chances), dtype=torch.bool)
        wanted[[self._places[name] for name in asked]] = True
        agreed = (chances > self._settings.threshold) == wanted
        if self._settings.count == "requested":
            agreed = agreed[wanted]
        if not len(agreed):
            return torch.nan, "the prompt asks for no attribute"
        return float(agreed.float().mean()), ""
