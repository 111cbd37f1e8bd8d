"""Stable Diffusion XL as a policy: latent diffusion with two text encoders. Podell et al. 2023, arXiv:2307.01952.

Read from folders in the format of diffusers' StableDiffusionXLPipeline, whose own code encodes the prompts. What the
network predicts becomes the velocity of a rectified flow in models/variance_preserving.py; an Euler step is DDIM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import PolicySpec
from burnish.models.denoiser import DenoisingPolicy
from burnish.models.diffusers_parts import Folder
from burnish.models.pipelines import PictureNetwork, PictureSettings
from burnish.models.places import fetch
from burnish.models.variance_preserving import Timesteps

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")  # every attention: diffusers, train_text_to_image_lora_sdxl.py


@dataclass(frozen=True, kw_only=True)
class SDXL(PictureSettings, PolicySpec):
    """A UNet that predicts noise, with its two text encoders and its decoder.

    Weights: stabilityai/stable-diffusion-xl-base-1.0.
    """

    pixels: int = 1024  # side of a picture
    original: int | None = None  # side that the network is told the picture had before it was cropped; None: pixels
    crop: tuple[int, int] = (0, 0)  # top and left of the crop that the network is told of

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.original is not None and self.original < 1) or min(self.crop) < 0:
            raise ValueError(f"original must be above 0 and crop at least 0, got {self.original} and {self.crop}")

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "StableDiffusionXLPipeline")
        return DenoisingPolicy(SDXLNetwork(self, folder, device), self.decode_rows)


class SDXLNetwork(PictureNetwork[SDXL]):
    """A loaded Stable Diffusion XL."""

    name, part = "sdxl", "unet"
    schedulers = ()
    tokenizers = ("tokenizer", "tokenizer_2")
    encoders = ("text_encoder", "text_encoder_2")
    extras: ClassVar[dict[str, Any]] = {"add_watermarker": False}
    adapted = ADAPTED
    clock: Timesteps

    def __init__(self, spec: SDXL, folder: Folder, device: torch.device) -> None:
        super().__init__(spec, folder, device)
        self._sizes = self._told(folder.path / "unet")

    def _told(self, where: Path) -> Float[Tensor, " six"]:
        """The sizes that the network is told: of the original, top and left of the crop, of the picture."""
        config, projected = self.model.config, self.pipeline.text_encoder_2.config.projection_dim
        if config.addition_embed_type != "text_time" or config.time_cond_proj_dim is not None:
            raise ValueError(f"{where}: not told sizes alone, as SDXL is; a consistency-distilled network is not known")
        if 6 * config.addition_time_embed_dim + projected != config.projection_class_embeddings_input_dim:
            raise ValueError(f"{where}: not told 6 sizes and a text of {projected}; a refiner draws nothing alone")
        original, pixels = self.spec.original or self.spec.pixels, self.spec.pixels
        return torch.tensor([original, original, *self.spec.crop, pixels, pixels], device=self.device).float()

    def grain(self) -> tuple[int, int]:
        config = self.model.config
        return config.in_channels, 2 ** (len(config.block_out_channels) - 1)  # the UNet halves its sides so often

    def clocked(self) -> Timesteps:
        return Timesteps(self.pipeline.scheduler, self.folder.path / "scheduler", self.device)

    def encode(self, texts: list[str]) -> tuple[Float[Tensor, "p l f"], Float[Tensor, "p g"]]:
        """Features of the tokens, of both encoders side by side, and the second's of the whole text."""
        asked = {"prompt": texts, "device": self.device, "do_classifier_free_guidance": False}
        features, _, pooled, _ = self.pipeline.encode_prompt(**asked)
        return features, pooled

    def nothing(self, conditions: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Zeros as released, or the text ""."""
        if self.folder.index.get("force_zeros_for_empty_prompt", True):
            return [torch.zeros_like(given[:1]) for given in conditions]
        return self.texts([""])

    def predicted(self, x: Float[Tensor, "n c h w"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n c h w"]:
        features, pooled = conditions
        told = {"text_embeds": pooled, "time_ids": self._sizes.expand(len(x), -1)}
        with self.autocast():
            predicted = self.model(x, t, encoder_hidden_states=features, added_cond_kwargs=told, return_dict=False)[0]
        return predicted.float()
