"""From a picture back to its objects, without learning: background, blobs, colours, and shapes by matching templates.

1. The background is the median of all pixels, and again of the pixels near that median.
2. What differs from it clearly is cut into connected blobs; specks are dropped.
3. A blob's colour is the mean of its interior, if that is near one of the six colours and nearly all of it agrees.
4. How much of every pixel the blob covers follows from its colour and the background. Each shape is painted with the
   blob's area and centre of mass, and the one whose overlap (intersection over union) with the blob is largest is it.

A blob that is not clearly one thing (two touching objects, a smear, a wrong size) is kept with the word `UNREADABLE`
in place of its shape or colour, so that it counts as an object and fits nothing. A picture that is not a scene at all,
such as noise or a dark one, is read as a single unreadable object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from torch import Tensor

from burnish.worlds.scenes.grammar import COLOURS, SHAPES
from burnish.worlds.scenes.render import PATCH, RGB, SIDE, Object, coverage

UNREADABLE = "unreadable"
DARKEST = 190.0  # mean of the background's channels, 0 to 255; drawn ones are above 225
PLAIN = 0.4  # share of the picture that must look like the background; four squares of the largest size leave 0.56
NEAR = 36.0  # RGB distance up to which a pixel looks like the background
APART = 80.0  # RGB distance from which a pixel belongs to an object; all six colours are above 150 from all backgrounds
SPECK = 12  # pixels below which a blob is dirt; the smallest object has 190
BLOBS = 12  # more than these are not a scene
COLOUR_RADIUS = 75.0  # RGB distance of an interior from its colour; two colours are at least 118 apart
PURITY = 0.8  # share of the interior that is nearest to the same colour
SIZES = (13.0, 31.0)  # pixels; drawn ones are 18 to 24
OVERLAP = 0.82  # intersection over union with the best template; drawn ones are above 0.93


@dataclass(frozen=True)
class _Blobs:
    """Blobs of a batch of pictures, each cut out around the middle of its box."""

    picture: np.ndarray  # (n) index of the picture
    centre: np.ndarray  # (n, 2) x, y of the patch's middle, whole pixels
    mine: np.ndarray  # (n, PATCH, PATCH) pixels of the blob
    free: np.ndarray  # (n, PATCH, PATCH) pixels of no blob
    rgb: np.ndarray  # (n, PATCH, PATCH, 3)
    back: np.ndarray  # (n, 3) background
    whole: np.ndarray  # (n) the patch holds all of the blob


def read(images: Float[Tensor, "b 3 64 64"]) -> list[tuple[Object, ...]]:
    """The objects of every picture (float in [0, 1]), left to right. Raises ValueError for another shape of tensor."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIDE, SIDE):
        raise ValueError(
            f"the scenes verifier reads pictures of shape (b, 3, {SIDE}, {SIDE}), not {tuple(images.shape)}"
        )
    if len(images) == 0:
        return []
    pixels = images.detach().float().cpu().numpy().transpose(0, 2, 3, 1) * 255
    pixels = np.nan_to_num(pixels, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
    found: list[list[Object]] = [[] for _ in pixels]
    back, share = _background(pixels)
    sane = (back.mean(1) >= DARKEST) & (share >= PLAIN)
    blobs, many = _blobs(pixels, back, sane)
    for i in np.flatnonzero(~sane | many):
        found[i].append(Object(UNREADABLE, UNREADABLE, SIDE / 2, SIDE / 2, float(SIDE)))
    if len(blobs.picture):
        colour, paint = _colours(blobs)
        for i, thing in zip(blobs.picture, _things(blobs, colour, paint), strict=True):
            found[i].append(thing)
    return [tuple(sorted(things, key=lambda o: (o.x, o.y))) for things in found]


def _background(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background colour (b, 3), and the share (b) of each picture that is near it."""
    flat = pixels.reshape(len(pixels), SIDE * SIDE, 3)
    first = np.median(flat, axis=1)
    near = np.linalg.norm(flat - first[:, None], axis=2) < 1.5 * NEAR
    back = np.array([np.median(f[n], axis=0) if n.any() else m for f, n, m in zip(flat, near, first, strict=True)])
    return back, (np.linalg.norm(flat - back[:, None], axis=2) < NEAR).mean(1)


def _blobs(pixels: np.ndarray, back: np.ndarray, sane: np.ndarray) -> tuple[_Blobs, np.ndarray]:
    """Blobs of the sane pictures, and which pictures have too many."""
    from scipy import ndimage

    mask = np.linalg.norm(pixels - back[:, None, None], axis=3) > APART
    mask[~sane] = False
    inplane = np.zeros((3, 3, 3), bool)
    inplane[1] = True  # neighbours within a picture, diagonals included; never across pictures
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, inplane, labels)
    area = np.bincount(labels.ravel(), minlength=1)
    area[0] = 0
    boxes = ndimage.find_objects(labels)  # (picture, rows, columns) of label 1, 2, ...
    picture = np.array([0] + [box[0].start for box in boxes])
    kept = area >= SPECK
    many = np.bincount(picture[kept], minlength=len(pixels)) > BLOBS
    kept[kept] = ~many[picture[kept]]
    names = np.flatnonzero(kept)
    centre = [[(boxes[n - 1][axis].start + boxes[n - 1][axis].stop) // 2 for axis in (2, 1)] for n in names]
    labels = np.where(kept[labels], labels, 0)
    return _cut(pixels, back, labels, names, picture[names], np.array(centre, int).reshape(-1, 2), area[names]), many


def _cut(
    pixels: np.ndarray,
    back: np.ndarray,
    labels: np.ndarray,
    names: np.ndarray,
    picture: np.ndarray,
    centre: np.ndarray,
    area: np.ndarray,
) -> _Blobs:
    """A patch around every blob, from its label (`names`), picture, centre and number of pixels."""
    pad = PATCH // 2
    wide = np.pad(labels, ((0, 0), (pad, pad), (pad, pad)))
    tint = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    step = np.arange(PATCH)
    rows, columns = centre[:, 1, None, None] + step[:, None], centre[:, 0, None, None] + step
    at = (picture[:, None, None], rows, columns)
    mine = wide[at] == names[:, None, None]
    inside = (rows >= pad) & (rows < SIDE + pad) & (columns >= pad) & (columns < SIDE + pad)
    whole = mine.sum((1, 2)) == area
    return _Blobs(picture, centre, mine, (wide[at] == 0) & inside, tint[at], back[picture], whole)


def _colours(blobs: _Blobs) -> tuple[list[str], np.ndarray]:
    """Colour words (n), and the interior's mean colour (n, 3)."""
    from scipy import ndimage

    inplane = np.zeros((3, 3, 3), bool)
    inplane[1] = ndimage.generate_binary_structure(2, 1)
    inner = ndimage.binary_erosion(blobs.mine, inplane, 2)
    count = inner.sum((1, 2))
    palette = np.array([RGB[c] for c in COLOURS], np.float32)
    nearest = np.linalg.norm(blobs.rgb[:, :, :, None] - palette, axis=4).argmin(3)
    votes = np.stack([((nearest == i) & inner).sum((1, 2)) for i in range(len(COLOURS))], 1)
    thick = count >= 8  # a thinner blob has no interior to take a colour from
    some = np.where(thick[:, None, None], inner, blobs.mine)
    paint = (blobs.rgb * some[..., None]).sum((1, 2)) / some.sum((1, 2))[:, None]
    best = votes.argmax(1)
    pure = votes.max(1) >= PURITY * count
    near = np.linalg.norm(paint - palette[best], axis=1) <= COLOUR_RADIUS
    good = thick & pure & near
    return [COLOURS[i] if ok else UNREADABLE for i, ok in zip(best, good, strict=True)], paint


def _things(blobs: _Blobs, colour: list[str], paint: np.ndarray) -> list[Object]:
    """Every blob as an object: its shape, place and size by template."""
    from scipy import ndimage

    inplane = np.zeros((3, 3, 3), bool)
    inplane[1] = True
    around = ndimage.binary_dilation(blobs.mine, inplane, 2)
    line = paint - blobs.back
    alpha = ((blobs.rgb - blobs.back[:, None, None]) * line[:, None, None]).sum(3) / (line * line).sum(1)[:, None, None]
    # The ends are cut off, so that the unevenness of a reconstructed background adds no area.
    alpha = np.clip((alpha - 0.1) / 0.8, 0, 1) * (blobs.mine | (around & blobs.free))
    grid = np.arange(PATCH) + 0.5 - PATCH / 2
    area = alpha.sum((1, 2))
    x, y = (alpha.sum(1) @ grid) / area, (alpha.sum(2) @ grid) / area
    overlap, sizes, centres = [], [], []
    for shape in SHAPES:
        filled, sinks = _moments(shape)
        size = np.sqrt(area / filled)
        centre = np.stack([x, y - sinks * size], 1)
        template = coverage(shape, -centre, size)
        overlap.append(np.minimum(alpha, template).sum((1, 2)) / np.maximum(alpha, template).sum((1, 2)))
        sizes.append(size)
        centres.append(centre)
    best = np.argmax(overlap, 0)
    things = []
    for i, s in enumerate(best):
        size, (cx, cy) = float(sizes[s][i]), centres[s][i] + blobs.centre[i]
        clear = blobs.whole[i] and overlap[s][i] >= OVERLAP and SIZES[0] <= size <= SIZES[1]
        shape = SHAPES[s] if clear else UNREADABLE
        things.append(
            Object(shape, colour[i], float(cx), float(cy), size, float(paint[i].sum() / _sum(colour[i], paint[i])))
        )
    return things


def _sum(colour: str, paint: np.ndarray) -> float:
    return float(sum(RGB[colour])) if colour in RGB else float(max(paint.sum(), 1.0))


@cache
def _moments(shape: str) -> tuple[float, float]:
    """Share of its box that a shape fills, and how far below the box's middle its centre of mass is, in sizes."""
    size = 24.0
    cover = coverage(shape, np.zeros((1, 2)), np.array([size]))[0]
    grid = np.arange(PATCH) + 0.5 - PATCH / 2
    return float(cover.sum() / size**2), float((cover.sum(1) @ grid) / cover.sum() / size)
