"""A CLIP model as two functions: pictures to unit vectors, texts to unit vectors.

Radford et al. 2021, 'Learning Transferable Visual Models From Natural Language Supervision'. Distinct texts are encoded
once and remembered, because a group of samples shares its prompt and prompts return every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.models.pixels import Pixels, in_chunks, read_pixels
from burnish.models.places import unpacked
from burnish.models.released import Dtype, first_line, from_pretrained
from burnish.models.remembered import Remembered


class ClipTowers:
    """The picture and text towers of a transformers CLIPModel, frozen."""

    def __init__(self, model: Any, tokenizer: Any, pixels: Pixels, batch: int) -> None:
        self.model = model
        self.scale = float(model.logit_scale.detach().exp())  # what the model multiplies a cosine by
        self._tokenizer = tokenizer
        self._pixels = pixels
        self._batch = batch  # pictures in one forward pass
        self._known = Remembered(self._text_vector)

    def pictures(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors of pictures in [0, 1], float32, with a gradient if the pictures ask for one."""
        return in_chunks(self._picture_vectors, images.to(self.model.device), self._batch)

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit vectors of texts, float32. A text longer than the model reads is cut, as in the released scorers."""
        return torch.stack([vector for (vector,) in self._known(texts)]).to(self.model.device)

    def cosine(self, images: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Cosine of every picture and the text beside it, in [-1, 1], on the pictures' device."""
        assert len(texts) == len(images), f"{len(images)} pictures and {len(texts)} texts"
        return (self.pictures(images) * self.texts(texts)).sum(-1).to(images.device)

    def _picture_vectors(self, images: Tensor) -> Tensor:
        pixels = self._pixels(images).to(self.model.dtype)
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def _text_vector(self, text: str) -> tuple[Float[Tensor, " d"]]:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self._tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
        tokens = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        (vector,) = F.normalize(self.model.get_text_features(**tokens).pooler_output.float(), dim=-1)
        return (vector,)


def load_towers(weights: str, processor: str, where: str, device: torch.device, dtype: Dtype, batch: int) -> ClipTowers:
    """CLIP from a hub id or local folder; tokenizer and picture sizes from `processor`, or from `weights` if empty.

    Raises ValueError, starting with `where`, for what cannot be read or is incomplete.
    """
    from transformers import CLIPModel

    model = from_pretrained(CLIPModel, weights, where, device, dtype)
    return ClipTowers(
        model, load_tokenizer(processor or weights, where), read_pixels(processor or weights, where), batch
    )


def load_tokenizer(weights: str, where: str) -> Any:
    """The tokenizer of a hub id or local folder, or a ValueError that starts with `where`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(unpacked(weights))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: no tokenizer could be read from {weights!r}: {first_line(error)}") from error
