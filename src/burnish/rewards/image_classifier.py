"""What a picture classifier says: the probability of a label, its logit, or the value of a regression.

Any transformers AutoModelForImageClassification. In the embedded world it judges realism and perceptual quality.
The prompt is not read.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.pixels import Pixels, in_chunks, read_pixels
from burnish.models.released import Dtype, from_pretrained
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class ImageClassifier(Reward):
    """One output of a picture classifier."""

    weights: str  # hub id or local folder of a transformers model for image classification
    label: str | int = 0  # which output: its name in the model's `label2id`, or its number
    output: Literal["probability", "logit", "value"] = "probability"  # value: the raw output of a regression model
    dtype: Dtype = "float32"  # of the model's weights
    batch: int = 64  # pictures in one forward pass

    differentiable: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        """Read the model. Raises ValueError for weights that cannot be read, or a label the model does not have."""
        from transformers import AutoModelForImageClassification

        where = "reward.image_classifier.weights"
        model = from_pretrained(AutoModelForImageClassification, self.weights, where, device, self.dtype)
        place = _place(self.label, model.config.label2id, model.config.num_labels)
        return _ClassifierScorer(self, model, read_pixels(self.weights, where), place)


class _ClassifierScorer(Scorer):
    def __init__(self, settings: ImageClassifier, model: Any, pixels: Pixels, place: int) -> None:
        self.model = model
        self._settings = settings
        self._pixels = pixels
        self._place = place

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        values = in_chunks(self._output, images.to(self.model.device), self._settings.batch)
        return Scores.of("image_classifier", values.to(images.device))

    def _output(self, images: Tensor) -> Tensor:
        logits = self.model(pixel_values=self._pixels(images).to(self.model.dtype)).logits.float()
        if self._settings.output != "probability":
            return logits[:, self._place]
        # One output, or several that may hold at once, are each a yes or no.
        if logits.shape[1] == 1 or self.model.config.problem_type == "multi_label_classification":
            return logits[:, self._place].sigmoid()
        return logits.softmax(-1)[:, self._place]


def _place(label: str | int, names: dict[str, int], number: int) -> int:
    if isinstance(label, int):
        if not 0 <= label < number:
            raise ValueError(
                f"reward.image_classifier.label: {label} is not one of the model's {number} outputs (from 0)"
            )
        return label
    if label not in names:
        near = difflib.get_close_matches(label, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        choices = ", ".join(sorted(names)[:20])
        raise ValueError(f"reward.image_classifier.label: the model has no label {label!r}{hint} (choices: {choices})")
    return names[label]
