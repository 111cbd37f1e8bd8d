"""What a batch of pictures looks like, in seven numbers. A reward being hacked moves them before a person looks.

The statistics are those whose drift gave away known cases: dark pixels up, edges down and colour entropy down while an
OCR reward rose; small grids on faces under aesthetic rewards; samples of one prompt becoming equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.formulas.frames import pictures_of

DARK = 0.1  # luminance below which a pixel counts as dark
LEVELS = 4  # colour levels per channel in the entropy's histogram


def statistics(media: Float[Tensor, "b *f 3 h w"], group: Int[Tensor, " b"], cell: int = 8) -> dict[str, float]:
    """Every statistic of a batch of pictures in [0, 1], by name, as a batch mean; of videos, over their frames.

    `group` numbers the prompts; `cell` is the width in pixels that one token is decoded to. A statistic that does not
    exist here (diversity without a group of two) is NaN.
    """
    return joined([glance(media, group)], cell)


@dataclass(frozen=True)
class Glance:
    """What is seen of some whole groups of a batch: all that its statistics need, and small."""

    each: Mapping[str, Float[Tensor, " n"]]  # statistics of every picture
    across: Float[Tensor, " w-1"]  # sums of absolute differences of neighbouring pixels; float64
    down: Float[Tensor, " h-1"]
    apart: Float[Tensor, " g"]  # distances within groups of two or more


def glance(media: Float[Tensor, "b *f 3 h w"], group: Int[Tensor, " b"]) -> Glance:
    images = pictures_of(media)
    light = luminance(images)
    each = {
        "brightness": light.mean((1, 2)),
        "dark_share": (light < DARK).float().mean((1, 2)),
        "contrast": contrast(light),
        "edges": edges(light),
        "colour_entropy": colour_entropy(images),
    }
    return Glance(each, *_profiles(light), group_distances(media, group))


def joined(parts: Sequence[Glance], cell: int = 8) -> dict[str, float]:
    """The statistics of a batch from glances at its parts. Raises ValueError for a cell under two pixels."""
    means = {name: float(torch.cat([part.each[name] for part in parts]).mean()) for name in parts[0].each}
    across, down = (torch.stack(profiles).sum(0) for profiles in zip(*((p.across, p.down) for p in parts), strict=True))
    apart = torch.cat([part.apart for part in parts])
    return {**means, "grid": _repeating(across, down, cell), "diversity": float(apart.mean())}


def luminance(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """Luma of each pixel, ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B."""
    images = images.detach().float().clamp(0, 1)
    return 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]


def contrast(light: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Root-mean-square contrast: the standard deviation of a picture's luminance. Peli 1990."""
    return light.flatten(1).std(1, correction=0)


def edges(light: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Mean absolute difference of neighbouring pixels, over both directions; 0 for a flat picture."""
    across = light.diff(dim=2).abs().flatten(1).mean(1)
    down = light.diff(dim=1).abs().flatten(1).mean(1)
    return (across + down) / 2


def colour_entropy(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Entropy, in bits, of a picture's histogram over 4 x 4 x 4 colours: 0 for one colour, at most 6."""
    level = (images.detach().float().clamp(0, 1) * LEVELS).long().clamp_max(LEVELS - 1)
    colour = ((level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]).flatten(1)
    count = torch.zeros(len(colour), LEVELS**3, device=colour.device)
    count.scatter_add_(1, colour, torch.ones_like(colour, dtype=count.dtype))
    share = count / colour.shape[1]
    return -torch.special.xlogy(share, share).sum(1) / math.log(2)


def grid(light: Float[Tensor, "b h w"], cell: int) -> float:
    """How much of the batch's edge energy repeats with the period of a token cell, in [0, 1], whatever its phase.

    The absolute differences are summed over pictures and along the edge, which leaves one profile a direction; the
    result is the length of its mean phase vector at the period (Rayleigh 1880): 1 if every edge sits at one place of
    the cell, near 0 if edges fall anywhere. The larger direction counts; a flat batch has 0.
    Raises ValueError for a cell under two pixels.
    """
    return _repeating(*_profiles(light), cell)


def _profiles(light: Float[Tensor, "b h w"]) -> tuple[Float[Tensor, " w-1"], Float[Tensor, " h-1"]]:
    """(across, down), float64 where the device has it."""
    exact = torch.float32 if light.device.type == "mps" else torch.float64
    return light.diff(dim=2).abs().sum((0, 1), dtype=exact), light.diff(dim=1).abs().sum((0, 2), dtype=exact)


def _repeating(across: Float[Tensor, " w-1"], down: Float[Tensor, " h-1"], cell: int) -> float:
    if cell < 2:
        raise ValueError(f"a token cell of {cell} pixel has no period to look for; a cell is 2 pixels or wider")
    return max(_phase_length(across, cell), _phase_length(down, cell))


def _phase_length(profile: Float[Tensor, " n"], period: int) -> float:
    profile = profile[
        : len(profile) // period * period
    ].double()  # whole periods only, or the remainder leans to a phase
    total = profile.sum()
    if len(profile) == 0 or total <= 0:
        return 0.0
    angle = torch.arange(len(profile), device=profile.device).double() * (2 * math.pi / period)
    return float(torch.hypot((profile * angle.cos()).sum(), (profile * angle.sin()).sum()) / total)


def pairwise_distance(rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Mean root-mean-square distance of each row to the other rows. NaN for a single row."""
    if len(rows) < 2:
        return rows.new_full((len(rows),), torch.nan)
    flat = rows.detach().float()
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(flat.shape[1])
    return distance.sum(1) / (len(rows) - 1)


def group_diversity(media: Float[Tensor, "b *f 3 h w"], group: Int[Tensor, " b"]) -> float:
    """Root-mean-square pixel distance of samples of one prompt: mean over pairs, then over groups of two or more."""
    return float(group_distances(media, group).mean())


def group_distances(media: Float[Tensor, "b *f 3 h w"], group: Int[Tensor, " b"]) -> Float[Tensor, " g"]:
    """Root-mean-square pixel distance of samples of one prompt, mean over pairs, of every group of two or more."""
    rows = media.flatten(1)
    means = [pairwise_distance(rows[group == g]).mean() for g in group.unique() if int((group == g).sum()) > 1]
    return torch.stack(means) if means else rows.new_empty(0, dtype=torch.float32)
