"""Stable Diffusion XL as a policy: latent diffusion with two text encoders. Podell et al. 2023, arXiv:2307.01952.

Read from folders in the format of diffusers' StableDiffusionXLPipeline, whose own code encodes the prompts. What the
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

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")  # every attention: diffusers, train_text_to_image_lora_sdxl.py


@dataclass(frozen=True)
class SDXL(PolicySpec):
    """A UNet that predicts noise, with its two text encoders and its decoder."""

    weights: str  # a hub id (stabilityai/stable-diffusion-xl-base-1.0) or a folder in diffusers' format
    pixels: int = 1024  # side of a picture
    precision: Literal["fp32", "bf16"] = "fp32"  # of the arithmetic and the text encoders; trained weights are float32
    lora: Lora | None = None  # train adapters instead of all weights
    original: int | None = None  # side that the network is told the picture had before it was cropped; None: pixels
    crop: tuple[int, int] = (0, 0)  # top and left of the crop that the network is told of
    recompute: bool = False  # keep less of the forward pass and compute it again for the backward pass
    decode_rows: int = 16  # pictures decoded at once
    decode_precision: Literal["fp32", "bf16"] = "fp32"  # of the decoder's arithmetic; the law is not touched by it
    tiled_decode: bool = False  # decode in overlapping tiles: less memory for large pictures

    def __post_init__(self) -> None:
        if (self.original is not None and self.original < 1) or min(self.crop) < 0:
            raise ValueError(f"original must be above 0 and crop at least 0, got {self.original} and {self.crop}")
        if self.decode_rows < 1:
            raise ValueError(f"decode_rows must be at least 1, got {self.decode_rows}")

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "StableDiffusionXLPipeline")
        return DenoisingPolicy(SDXLNetwork(self, folder, device), self.decode_rows)


class SDXLNetwork(Network):
    """A loaded Stable Diffusion XL. `unet` is trained; text encoders and decoder never are."""

    def __init__(self, spec: SDXL, folder: Folder, device: torch.device) -> None:
        self.spec, self.folder, self.device = spec, folder, device
        parts = {name: folder.needed(name) for name in ("tokenizer", "tokenizer_2", "scheduler")}
        for name in ("text_encoder", "text_encoder_2"):
            parts[name] = folder.needed(name, DTYPES[spec.precision]).to(device)
        vae = folder.needed("vae", torch.float32).to(device)
        self.unet = folder.needed("unet", torch.float32).to(device)
        self._decoder = Decoder(vae, spec.decode_precision, spec.tiled_decode)
        patch = 2 ** (len(self.unet.config.block_out_channels) - 1)  # the UNet halves its sides so often
        self.shape = latent_shape(spec.pixels, self._decoder, self.unet.config.in_channels, patch, "policy.sdxl")
        zeros = bool(folder.index.get("force_zeros_for_empty_prompt", True))  # no prompt is zeros, not the text ""
        settings = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
        self._pipeline = folder.assembled(unet=self.unet, vae=vae, **parts, **settings)
        self._sizes = self._told(folder.path / "unet")
        self.timesteps = Timesteps(self._pipeline.scheduler, folder.path / "scheduler", device)
        self.texts = Texts(self._encode, device)
        self._empty: tuple[Tensor, ...] | None = None  # what no prompt looks like, once it is asked for
        self._train()

    def _told(self, where: Path) -> Float[Tensor, " six"]:
        """The sizes that the network is told: of the original, top and left of the crop, of the picture."""
        config, projected = self.unet.config, self._pipeline.text_encoder_2.config.projection_dim
        if config.addition_embed_type != "text_time" or config.time_cond_proj_dim is not None:
            raise ValueError(f"{where}: not told sizes alone, as SDXL is; a consistency-distilled network is not known")
        if 6 * config.addition_time_embed_dim + projected != config.projection_class_embeddings_input_dim:
            raise ValueError(f"{where}: not told 6 sizes and a text of {projected}; a refiner draws nothing alone")
        original, pixels = self.spec.original or self.spec.pixels, self.spec.pixels
        return torch.tensor([original, original, *self.spec.crop, pixels, pixels], device=self.device).float()

    def _train(self) -> None:
        if self.spec.lora:
            adapt(self.unet, self.spec.lora, ADAPTED, start="gaussian")
        else:
            self.unet.requires_grad_(True)
        if self.spec.recompute:
            self.unet.enable_gradient_checkpointing()

    # --- prompts -----------------------------------------------------------------------------------------------------

    def conditions(self, prompts: Sequence[Prompt]) -> tuple[Float[Tensor, "p l f"], Float[Tensor, "p g"]]:
        """Features of the tokens, of both encoders side by side, and the second's of the whole text."""
        features, pooled = self.texts([prompt.text for prompt in prompts])
        return features, pooled

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        asked = {"prompt": texts, "device": self.device, "do_classifier_free_guidance": False}
        features, _, pooled, _ = self._pipeline.encode_prompt(**asked)
        return features, pooled

    def _nothing(self, conditions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What no prompt looks like: zeros as released, or the text ""."""
        if self._pipeline.config.force_zeros_for_empty_prompt:
            return tuple(torch.zeros_like(given[:1]) for given in conditions)
        return self.texts([""])

    # --- the flow ----------------------------------------------------------------------------------------------------

    def velocity(
        self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"], conditions: Any, guidance: float
    ) -> Float[Tensor, "n c h w"]:
        return self.timesteps.velocity(x, t, partial(self._guided, conditions, guidance))

    def _guided(self, conditions: tuple[Tensor, ...], guidance: float, x_vp: Tensor, step: Int[Tensor, " n"]) -> Tensor:
        if guidance == 1:
            return self._predicted(x_vp, step, *conditions)
        if self._empty is None:
            self._empty = self._nothing(conditions)
        pairs = zip(self._empty, conditions, strict=True)
        both = [torch.cat([null.expand_as(given), given]) for null, given in pairs]
        null, conditional = self._predicted(torch.cat([x_vp, x_vp]), torch.cat([step, step]), *both).chunk(2)
        return guided(conditional, null, guidance)

    def _predicted(self, x_vp: Tensor, step: Int[Tensor, " n"], features: Tensor, pooled: Tensor) -> Tensor:
        told = {"text_embeds": pooled, "time_ids": self._sizes.expand(len(x_vp), -1)}
        with autocast(self.device, self.spec.precision):
            return self.unet(x_vp, step, encoder_hidden_states=features, added_cond_kwargs=told, return_dict=False)[
                0
            ].float()

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
