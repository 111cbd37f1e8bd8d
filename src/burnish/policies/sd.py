"""Stable Diffusion 1.x and 2.x as a policy: latent diffusion. Rombach et al. 2022, arXiv:2112.10752.

Read from folders in the format of diffusers' StableDiffusionPipeline, whose own code encodes the prompts. What the
network predicts becomes the velocity of a rectified flow in models/variance_preserving.py; an Euler step is DDIM's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import PolicySpec
from burnish.models.denoiser import DenoisingPolicy
from burnish.models.diffusers_parts import Folder
from burnish.models.lora import Lora
from burnish.models.pipelines import PipelineNetwork, check_rows
from burnish.models.places import fetch
from burnish.models.variance_preserving import Timesteps

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")  # every attention: ddpo-pytorch, scripts/train.py


@dataclass(frozen=True)
class SD(PolicySpec):
    """A UNet that predicts noise (1.x, 2.x base) or v (2.x), with its text encoder and its decoder."""

    weights: str  # a hub id (stable-diffusion-v1-5/stable-diffusion-v1-5) or a folder in diffusers' format
    pixels: int = 512  # side of a picture
    precision: Literal["fp32", "bf16"] = "fp32"  # of the arithmetic and the text encoder; trained weights are float32
    lora: Lora | None = None  # train adapters instead of all weights; ddpo-pytorch: rank 4, alpha 4
    recompute: bool = False  # keep less of the forward pass and compute it again for the backward pass
    decode_rows: int = 16  # pictures decoded at once
    decode_precision: Literal["fp32", "bf16"] = "fp32"  # of the decoder's arithmetic; the law is not touched by it
    tiled_decode: bool = False  # decode in overlapping tiles: less memory for large pictures

    def __post_init__(self) -> None:
        check_rows(self.decode_rows)

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "StableDiffusionPipeline")
        return DenoisingPolicy(SDNetwork(self, folder, device), self.decode_rows)


class SDNetwork(PipelineNetwork[SD]):
    """A loaded Stable Diffusion."""

    name, part = "sd", "unet"
    schedulers = ()
    tokenizers, encoders = ("tokenizer",), ("text_encoder",)
    extras: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    adapted = ADAPTED
    clock: Timesteps

    def grain(self) -> tuple[int, int]:
        config = self.model.config
        return config.in_channels, 2 ** (len(config.block_out_channels) - 1)  # the UNet halves its sides so often

    def clocked(self) -> Timesteps:
        return Timesteps(self.pipeline.scheduler, self.folder.path / "scheduler", self.device)

    def encode(self, texts: list[str]) -> tuple[Float[Tensor, "p l f"]]:
        return (self.pipeline.encode_prompt(texts, self.device, 1, do_classifier_free_guidance=False)[0],)

    def predicted(self, x: Float[Tensor, "n c h w"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n c h w"]:
        with self.autocast():
            return self.model(x, t, encoder_hidden_states=conditions[0], return_dict=False)[0].float()
