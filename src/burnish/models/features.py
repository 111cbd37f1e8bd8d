"""Pictures as unit vectors, of a transformers vision model (DINO, CLIP) or of their pixels; and folders of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.models.pixels import in_chunks, read_pixels
from burnish.models.released import from_pretrained

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
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
        found: Any = model.get_image_features(pixel_values=pixels)
        return found.pooler_output.float()
    found = model(pixel_values=pixels).get("pooler_output")
    if found is None:
        raise ValueError(f"{where}: {type(model).__name__} pools no vector of a picture; a CLIP or a DINO would work")
    return found.float().flatten(1)


def read_pictures(folder: str, where: str) -> Iterator[Float[Tensor, "1 3 h w"]]:
    """The pictures of a folder in [0, 1], one by one, as they may differ in size.

    Raises ValueError, starting with `where`, if there is none or one cannot be read.
    """
    home = Path(folder).expanduser()
    paths = sorted(p for p in home.rglob("*") if p.suffix.lower() in PICTURES) if home.is_dir() else []
    if not paths:
        raise ValueError(f"{where}: no picture in {home} (looked for {', '.join(PICTURES)})")
    for path in paths:
        yield read_picture(path, where)[None]


def read_picture(path: Path, where: str) -> Float[Tensor, "3 h w"]:
    """One picture in [0, 1]. Raises ValueError, starting with `where`, if it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError) as problem:
        raise ValueError(f"{where}: {path} is not a picture that can be read: {problem}") from problem
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
