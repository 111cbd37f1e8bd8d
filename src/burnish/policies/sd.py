"""Stable Diffusion 1.x and 2.x as a policy: latent diffusion. Rombach et al. 2022, arXiv:2112.10752.

Read from folders in the format of diffusers' StableDiffusionPipeline, whose own code encodes the prompts. What the
network predicts becomes the velocity of a rectified flow in models/variance_preserving.py; an Euler step is DDIM's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core import PolicySpec
from burnish.formulas.guidance import guided
from burnish.models.denoiser import DenoisingPolicy, Network
from burnish.models.diffusers_parts import DTYPES, Decoder, Folder, Texts, autocast, latent_shape
from burnish.models.lora import Lora, adapt, adapters_off, merged
from burnish.models.places import fetch
from burnish.models.variance_preserving import Timesteps
from burnish.types import Prompt

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
        if self.decode_rows < 1:
            raise ValueError(f"decode_rows must be at least 1, got {self.decode_rows}")

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "StableDiffusionPipeline")
        return DenoisingPolicy(SDNetwork(self, folder, device), self.decode_rows)


class SDNetwork(Network):
    """A loaded Stable Diffusion. `unet` is trained; text encoder and decoder never are."""

    def __init__(self, spec: SD, folder: Folder, device: torch.device) -> None:
        self.spec, self.folder, self.device = spec, folder, device
        parts = {name: folder.needed(name) for name in ("tokenizer", "scheduler")}
        encoder = folder.needed("text_encoder", DTYPES[spec.precision]).to(device)
        vae = folder.needed("vae", torch.float32).to(device)
        self.unet = folder.needed("unet", torch.float32).to(device)
        self._decoder = Decoder(vae, spec.decode_precision, spec.tiled_decode)
        patch = 2 ** (len(self.unet.config.block_out_channels) - 1)  # the UNet halves its sides so often
        self.shape = latent_shape(spec.pixels, self._decoder, self.unet.config.in_channels, patch, "policy.sd")
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        self._pipeline = folder.assembled(unet=self.unet, vae=vae, text_encoder=encoder, **parts, **without)
        self.timesteps = Timesteps(self._pipeline.scheduler, folder.path / "scheduler", device)
        self.texts = Texts(self._encode, device)
        self._empty: Tensor | None = None  # what no prompt looks like, once it is asked for
        self._train()

    def _train(self) -> None:
        if self.spec.lora:
            adapt(self.unet, self.spec.lora, ADAPTED, start="gaussian")
        else:
            self.unet.requires_grad_(True)
        if self.spec.recompute:
            self.unet.enable_gradient_checkpointing()

    # --- prompts -----------------------------------------------------------------------------------------------------

    def conditions(self, prompts: Sequence[Prompt]) -> Float[Tensor, "p l f"]:
        return self.texts([prompt.text for prompt in prompts])[0]

    def _encode(self, texts: list[str]) -> tuple[Tensor]:
        return (self._pipeline.encode_prompt(texts, self.device, 1, do_classifier_free_guidance=False)[0],)

    # --- the flow ----------------------------------------------------------------------------------------------------

    def velocity(
        self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"], conditions: Any, guidance: float
    ) -> Float[Tensor, "n c h w"]:
        return self.timesteps.velocity(x, t, partial(self._guided, conditions, guidance))

    def _guided(self, conditions: Tensor, guidance: float, x_vp: Tensor, step: Int[Tensor, " n"]) -> Tensor:
        if guidance == 1:
            return self._predicted(x_vp, step, conditions)
        if self._empty is None:
            self._empty = self.texts([""])[0]
        features = torch.cat([self._empty.expand_as(conditions), conditions])
        null, conditional = self._predicted(torch.cat([x_vp, x_vp]), torch.cat([step, step]), features).chunk(2)
        return guided(conditional, null, guidance)

    def _predicted(self, x_vp: Tensor, step: Int[Tensor, " n"], features: Tensor) -> Tensor:
        with autocast(self.device, self.spec.precision):
            return self.unet(x_vp, step, encoder_hidden_states=features, return_dict=False)[0].float()

    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        return self.timesteps.times(steps)

    def start(self, noise: Float[Tensor, "n c h w"], steps: int) -> Float[Tensor, "n c h w"]:
        return self.timesteps.start(noise, steps)

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        return self._decoder(latents)

    # --- weights -----------------------------------------------------------------------------------------------------

    def trained(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.unet.named_parameters() if weight.requires_grad]

    def adapter_off(self) -> Callable[[], AbstractContextManager[None]] | None:
        return partial(adapters_off, self.unet) if self.spec.lora else None

    def export(self, folder: Path) -> None:
        self.folder.write(folder, {"unet": merged(self.unet) if self.spec.lora else self.unet})
