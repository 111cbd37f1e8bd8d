"""Pictures side by side on one sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 8  # pictures in a row
GAP = 2  # white pixels between pictures, and around them
MOST_TILES = 128  # pictures on one sheet


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
