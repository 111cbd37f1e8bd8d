"""Videos as rows of pictures. A video has an axis of frames before its channels; a picture has none."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def is_video(media: Float[Tensor, "n *f c h w"]) -> bool:
    """Whether these are videos."""
    return media.dim() == 5


def pictures_of(media: Float[Tensor, "n *f c h w"]) -> Float[Tensor, "m c h w"]:
    """Every frame of every video, those of one after another; pictures as they are."""
    return media.flatten(0, 1) if is_video(media) else media


def spread(frames: int, count: int) -> list[int]:
    """`count` of so many frames, as far from one another and from the ends as can be; one is the middle. All if fewer.

    They are the middles of `count` equal parts.
    """
    count = min(count, frames)
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]


def strip(videos: Float[Tensor, "n f c h w"]) -> Float[Tensor, "n c h fw"]:
    """The frames of a video side by side, as one picture."""
    return torch.cat(list(videos.unbind(1)), -1)
