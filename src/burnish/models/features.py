"""Pictures as unit vectors, from any transformers vision model (DINO, CLIP, a classifier's trunk) or from their pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.models.pixels import in_chunks, read_pixels
from burnish.models.released import from_pretrained

Features = Callable[[Tensor], Tensor]  # (b, 3, h, w) in [0, 1] to (b, d) of length 1, float32


def load_features(weights: str, where: str, device: torch.device, batch: int) -> Features:
    """The features of a model: CLIP's projected vector, or what others pool (of DINO the class token).

    Of empty `weights`, pixels less 1/2. Raises ValueError, starting with `where`, for weights that cannot be read and a
    model that does not pool.
    """
    if not weights:
        return pixel_features
    from transformers import AutoModel

    model, pixels = from_pretrained(AutoModel, weights, where, device, "float32"), read_pixels(weights, where)

    @torch.no_grad()
    def features(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        def chunk(part: Tensor) -> Tensor:
            return F.normalize(_pooled(model, pixels(part), where), dim=-1)

        return in_chunks(chunk, images.to(model.device), batch).to(images.device)

    return features


def pixel_features(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    return F.normalize(images.detach().float().flatten(1) - 0.5, dim=-1)


def _pooled(model: Any, pixels: Tensor, where: str) -> Float[Tensor, "b d"]:
    from transformers import CLIPModel

    if isinstance(model, CLIPModel):
        return model.get_image_features(pixel_values=pixels).pooler_output.float()
    found = model(pixel_values=pixels).get("pooler_output")
    if found is None:
        raise ValueError(f"{where}: {type(model).__name__} pools no vector of a picture; a CLIP or a DINO would work")
    return found.float().flatten(1)
