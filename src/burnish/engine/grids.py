"""Pictures side by side on one sheet. A sheet of videos moves: an animated PNG, every video at its place in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.frames import is_video, pictures_of, spread

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 8  # pictures in a row
GAP = 2  # white pixels between pictures, and around them
MOST_TILES = 128  # pictures on one sheet
MOST_FRAMES = 16  # of a video on a sheet; of a longer one, so many evenly spread
LARGEST = 128  # pixels of the longer side of a frame on a sheet; a larger one is reduced, or a sheet would weigh 100 MB
PACE = 125  # milliseconds a frame on a sheet is shown


def shown(media: Float[Tensor, "n *f c h w"]) -> list[Float[Tensor, "n c h w"]]:
    """What a sheet shows one after another: frames of videos, reduced to thumbnails; of pictures, themselves."""
    if not is_video(media):
        return [media]
    frames = media[:, spread(media.shape[1], MOST_FRAMES)].float()
    height, width = frames.shape[-2:]
    if (side := max(height, width)) > LARGEST:
        size = tuple(max(1, round(LARGEST * length / side)) for length in (height, width))
        small = F.interpolate(pictures_of(frames), size=size, mode="area")
        frames = small.unflatten(0, frames.shape[:2])
    return list(frames.unbind(1))


def save(pictures: list[Image.Image], path: Path) -> None:
    """One picture as it is, several as an animated PNG."""
    more = {"save_all": True, "append_images": pictures[1:], "duration": PACE, "loop": 0} if len(pictures) > 1 else {}
    pictures[0].save(path, **more)


def grid(media: Float[Tensor, "n c h w"]) -> Image.Image:
    """Picture i, in [0, 1], at row i // COLUMNS and column i % COLUMNS. Its top left corner is GAP + i (side + GAP)."""
    from PIL import Image

    n, _, h, w = media.shape
    rows = max(1, -(-n // COLUMNS))
    sheet = torch.full((GAP + rows * (h + GAP), GAP + COLUMNS * (w + GAP), 3), 255, dtype=torch.uint8)
    pixels = (media.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.expand(n, 3, h, w).permute(0, 2, 3, 1)  # gray becomes colour
    for i in range(n):
        y, x = GAP + i // COLUMNS * (h + GAP), GAP + i % COLUMNS * (w + GAP)
        sheet[y : y + h, x : x + w] = pixels[i]
    return Image.fromarray(sheet.numpy())
