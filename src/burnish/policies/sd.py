"""Stable Diffusion 1.x and 2.x as a policy: latent diffusion. Rombach et al. 2022, arXiv:2112.10752.

Read from folders in the format of diffusers' StableDiffusionPipeline, whose own code encodes the prompts. What the
network predicts becomes the velocity of a rectified flow in models/variance_preserving.py; an Euler step is DDIM's.

Latent consistency models (Luo et al. 2023, arXiv:2310.04378; LatentConsistencyModelPipeline) are read too. They are
drawn from with transition consistency, and are told a guidance instead of being guided: one evaluation a step.
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
from burnish.models.pipelines import PictureNetwork, PictureSettings
from burnish.models.places import fetch
from burnish.models.variance_preserving import Timesteps

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")  # every attention: ddpo-pytorch, scripts/train.py
ADAPTED_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")  # every attention of CLIP's text encoder


@dataclass(frozen=True, kw_only=True)
class SD(PictureSettings, PolicySpec):
    """A UNet that predicts noise (1.x, 2.x base) or v (2.x), with its text encoder and its decoder.

    Weights: stable-diffusion-v1-5/stable-diffusion-v1-5. Adapters of ddpo-pytorch: rank 4, alpha 4.
    """

    pixels: int = 512  # side of a picture
    train: Literal["unet", "text"] = (
        "unet"  # which network; text: the text encoder, and prompts are read anew every time
    )

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "StableDiffusionPipeline", "LatentConsistencyModelPipeline")
        return DenoisingPolicy(SDNetwork(self, folder, device), self.decode_rows)


class SDNetwork(PictureNetwork[SD]):
    """A loaded Stable Diffusion. The UNet is trained, or the text encoder (TexForce)."""

    name, part = "sd", "unet"
    schedulers = ()
    tokenizers, encoders = ("tokenizer",), ("text_encoder",)
    extras: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    clock: Timesteps

    def __init__(self, spec: SD, folder: Folder, device: torch.device) -> None:
        self.adapted = ADAPTED if spec.train == "unet" else ADAPTED_TEXT
        super().__init__(spec, folder, device, taught="unet" if spec.train == "unet" else "text_encoder")
        self._told = int(self.model.config.time_cond_proj_dim or 0)  # numbers by which the network is told a guidance

    def grain(self) -> tuple[int, int]:
        config = self.model.config
        return config.in_channels, 2 ** (len(config.block_out_channels) - 1)  # the UNet halves its sides so often

    def clocked(self) -> Timesteps:
        return Timesteps(self.pipeline.scheduler, self.folder.path / "scheduler", self.device)

    def encode(self, texts: list[str]) -> tuple[Float[Tensor, "p l f"]]:
        return (self.pipeline.encode_prompt(texts, self.device, 1, do_classifier_free_guidance=False)[0],)

    def steered(self, conditions: tuple[Tensor, ...], guidance: float, x: Tensor, t: Tensor) -> Tensor:
        """A network that is told its guidance goes one way only."""
        return self._said(x, t, conditions[0], guidance) if self._told else super().steered(conditions, guidance, x, t)

    def predicted(self, x: Float[Tensor, "n c h w"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n c h w"]:
        return self._said(x, t, conditions[0], 1.0)

    def _said(self, x: Float[Tensor, "n c h w"], t: Tensor, features: Tensor, guidance: float) -> Tensor:
        told = None
        if self._told:
            # Ho and Salimans' w, which is ours less 1. All rows are told the same.
            weight = torch.tensor([guidance - 1], dtype=torch.float32)
            told = self.pipeline.get_guidance_scale_embedding(weight, self._told).to(self.device).expand(len(x), -1)
        with self.autocast():
            return self.model(x, t, features, timestep_cond=told, return_dict=False)[0].float()
