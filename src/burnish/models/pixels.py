"""Pictures as a released model wants them: resize, crop, normalise, on tensors and with gradients.

The numbers come from the `preprocessor_config.json` beside the weights, and the result equals transformers' own image
processor up to the rounding to 8 bits that the processor makes twice (on the way in and after resizing) and a tensor
does not need. PIL's bicubic filter is `F.interpolate(mode="bicubic", antialias=True)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.models.places import unpacked
from burnish.models.released import first_line

FILTERS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, as the configuration files have them
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training pictures; open_clip's ViT-H uses them too
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pixels:
    """How pictures in [0, 1] become a model's input."""

    size: tuple[int, int] | int | None  # (height, width), or the shortest side, or None to leave the size alone
    crop: tuple[int, int] | None = None  # (height, width) of the centre that is kept
    fit: Literal["cover", "pad"] = "cover"  # pad: the longest side is `size`, and black fills a square
    filter: str = "bicubic"  # as F.interpolate names it
    scale: float = 1.0  # multiplies a picture in [0, 1] before it is normalised
    mean: tuple[float, float, float] = CLIP_MEAN  # subtracted
    std: tuple[float, float, float] = CLIP_STD  # divided by

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """The model's input, float32."""
        images = self._resized(images.float())
        if self.crop is not None:
            images = _centre(images, self.crop)
        mean, std = images.new_tensor(self.mean), images.new_tensor(self.std)
        return (images * self.scale - mean[:, None, None]) / std[:, None, None]

    def _resized(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        height, width = images.shape[-2:]
        size = self.size if isinstance(self.size, tuple) else _target(height, width, self.size, self.fit)
        options = {} if self.filter == "nearest-exact" else {"antialias": True, "align_corners": False}
        # PIL filters rows, then columns. A bicubic filter overshoots; 8-bit pictures cannot, so each pass is clamped.
        for step in dict.fromkeys(((height, size[1]), size)):
            if step != tuple(images.shape[-2:]):
                images = F.interpolate(images, size=step, mode=self.filter, **options).clamp(0, 1)
        return _squared(images, self.size) if self.fit == "pad" and isinstance(self.size, int) else images


def covering(images: Float[Tensor, "b 3 h w"], height: int, width: int) -> Float[Tensor, "b 3 {height} {width}"]:
    """The middle of pictures in [0, 1], as large as can be and then scaled to this size (bicubic)."""
    tall, wide = images.shape[-2:]
    scale = max(height / tall, width / wide)
    size = max(height, round(tall * scale)), max(width, round(wide * scale))
    return Pixels(size, crop=(height, width), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(images)


def _target(height: int, width: int, side: int, fit: str) -> tuple[int, int]:
    """Size with the shape of the picture kept, rounded as the released transforms round."""
    if fit == "pad":
        scale = side / max(height, width)
        return round(height * scale), round(width * scale)
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def _centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of pictures, black where it reaches outside; what is odd goes where transformers puts it."""
    height, width = images.shape[-2:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return F.pad(images, (-left, size[1] - width + left, -top, size[0] - height + top))


def _squared(images: Tensor, side: int) -> Tensor:
    """Pictures in the middle of a black square; an odd border is thinner at the top and left, as open_clip has it."""
    tall, wide = side - images.shape[-2], side - images.shape[-1]
    return F.pad(images, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))


def read_pixels(weights: str, where: str) -> Pixels:
    """The preprocessing written beside the weights of a local folder or hub id.

    Raises ValueError, starting with `where`, if there is none or it asks for something this module does not do.
    """
    settings = _settings(unpacked(weights), where)
    legacy_clip = "CLIP" in str(settings.get("image_processor_type", settings.get("feature_extractor_type", "")))
    size = _size(settings.get("size"), where, square=not legacy_clip) if settings.get("do_resize", True) else None
    crop = _size(settings.get("crop_size"), where, square=True) if settings.get("do_center_crop", False) else None
    if crop is not None and not isinstance(crop, tuple):
        raise ValueError(f"{where}: crop_size of {weights!r} must be an int, or height and width; got {crop!r}")
    resample = settings.get("resample", 3 if legacy_clip else 2)
    if resample not in FILTERS:
        raise ValueError(f"{where}: resample {resample} of {weights!r} is not supported (choices: {sorted(FILTERS)})")
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings.get("do_normalize", True):
        mean, std = _three(settings, "image_mean", weights, where), _three(settings, "image_std", weights, where)
    return Pixels(size, crop, "cover", FILTERS[resample], scale, mean, std)


def _settings(weights: str, where: str) -> Mapping[str, Any]:
    """`preprocessor_config.json`, or its successor inside `processor_config.json`."""
    from transformers.utils.hub import cached_file

    reason = "it has no preprocessor_config.json"
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        try:
            path = cached_file(weights, name)
            content = json.loads(Path(path).read_text("utf-8")) if path else {}
        except (OSError, ValueError) as error:
            reason = first_line(error)
            continue
        content = content.get(key) if key else content
        if content:
            return content
    raise ValueError(f"{where}: {weights!r} does not say how pictures are prepared: {reason}")


def _size(value: Any, where: str, square: bool) -> tuple[int, int] | int | None:
    if isinstance(value, int):
        return (value, value) if square else value
    if isinstance(value, Mapping) and value.get("height") and value.get("width"):
        return int(value["height"]), int(value["width"])
    if isinstance(value, Mapping) and value.get("shortest_edge") and not value.get("longest_edge"):
        return int(value["shortest_edge"])
    raise ValueError(f"{where}: picture size {value!r} is not an int, height and width, or shortest_edge")


def _three(settings: Mapping[str, Any], key: str, weights: str, where: str) -> tuple[float, float, float]:
    values = settings.get(key)
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError(f"{where}: preprocessing of {weights!r} needs three numbers in {key}, got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])


def in_chunks(
    measure: Callable[[Tensor], Float[Tensor, "n ..."]], images: Float[Tensor, "b 3 h w"], batch: int
) -> Float[Tensor, "b ..."]:
    """`measure` over at most `batch` pictures at a time. A gradient is recorded only if the pictures ask for one."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
        return torch.cat([measure(part) for part in images.split(batch)])


def random_crops(
    images: Float[Tensor, "b 3 h w"], number: int, side: int, seed: int
) -> Float[Tensor, "b number 3 side side"]:
    """Square crops at places that depend on nothing but the seed, the size of the picture and the crop's number.

    Every picture is cropped at the same places, so a score does not depend on its place in a batch, and members of a
    group are compared on equal terms. Pictures smaller than a crop are first enlarged to fit one.
    """
    shortest = min(images.shape[-2:])
    if shortest < side:
        images = Pixels(side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(images)
    room = [images.shape[-2] - side, images.shape[-1] - side]
    places = np.stack([generator(seed, "crop", i).integers(0, room, endpoint=True) for i in range(number)])
    return torch.stack([images[..., y : y + side, x : x + side] for y, x in places.tolist()], 1)


def to_bytes(images: Float[Tensor, "b 3 h w"]) -> np.ndarray:
    """Pictures in [0, 1] as 8-bit (b, h, w, 3), rounded to the nearest level and clamped, for encoders and judges."""
    levels = (images.detach().float() * 255).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
