"""FLUX.1 dev and schnell as a policy: distilled rectified-flow transformers. Black Forest Labs 2024.

Read from folders in the format of diffusers' FluxPipeline, whose own code encodes the prompts; Euler steps without
noise give that pipeline's latents. A latent here has channels and sides, as the decoder and the other policies have
it; the network's tokens (2 x 2 places each) are another order of the same numbers, so no likelihood changes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from burnish.core import PolicySpec
from burnish.formulas.guidance import guided
from burnish.models.denoiser import DenoisingPolicy, Network
from burnish.models.diffusers_parts import DTYPES, Decoder, Folder, Texts, autocast, latent_shape
from burnish.models.lora import Lora, adapt, adapters_off, merged
from burnish.models.places import fetch
from burnish.types import Prompt

# The attention of both kinds of block; single blocks have to_q, to_k, to_v only. Flow-GRPO, scripts/train_flux.py, adds
# the feed-forward layers of the double blocks (ff.net, ff_context.net)
ADAPTED = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")) + tuple(
    f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
SIDE = 2  # places a side of a token
LONGEST = 512  # tokens T5 may read, as the pipeline has it
PARTS = ("tokenizer", "tokenizer_2", "scheduler")
ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Flux(PolicySpec):
    """A transformer that predicts velocities, with its two text encoders and its decoder."""

    weights: str  # a hub id (black-forest-labs/FLUX.1-dev) or a folder in diffusers' format
    pixels: int = 512  # side of a picture
    precision: Literal["fp32", "bf16"] = "fp32"  # of the arithmetic and the text encoders; trained weights are float32
    lora: Lora | None = None  # train adapters instead of all weights; Flow-GRPO: rank 64, alpha 128
    distilled_guidance: float = 3.5  # an input of dev, which schnell has not; a plan's guidance is the real one
    shift: float | None = None  # of the times towards noise; None: the scheduler's own, for dev by size. DanceGRPO: 3
    text_length: int = 512  # tokens of T5; longer texts are cut. schnell was trained with 256; Flow-GRPO: 128
    recompute: bool = False  # keep less of the forward pass and compute it again for the backward pass
    decode_rows: int = 16  # pictures decoded at once
    decode_precision: Literal["fp32", "bf16"] = "fp32"  # of the decoder's arithmetic; the law is not touched by it
    tiled_decode: bool = False  # decode in overlapping tiles: less memory for large pictures

    def __post_init__(self) -> None:
        if not 1 <= self.text_length <= LONGEST:
            raise ValueError(f"text_length must be from 1 to {LONGEST} tokens, got {self.text_length}")
        if self.shift is not None and not self.shift > 0:
            raise ValueError(f"shift must be above 0 (1 is none), got {self.shift}")
        if self.decode_rows < 1:
            raise ValueError(f"decode_rows must be at least 1, got {self.decode_rows}")

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "FluxPipeline")
        if folder.kind("scheduler") != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(
                f"{folder.path / 'scheduler'}: a {folder.kind('scheduler')}; only FlowMatchEulerDiscreteScheduler "
                "tells the times of a flow"
            )
        return DenoisingPolicy(FluxNetwork(self, folder, device), self.decode_rows)


class FluxNetwork(Network):
    """A loaded FLUX.1. `transformer` is trained; text encoders and decoder never are."""

    def __init__(self, spec: Flux, folder: Folder, device: torch.device) -> None:
        self.spec, self.folder, self.device = spec, folder, device
        parts: dict[str, Any] = {name: folder.needed(name) for name in PARTS}
        if spec.shift is not None:
            flow = parts["scheduler"]
            parts["scheduler"] = flow.from_config(flow.config, shift=spec.shift, use_dynamic_shifting=False)
        for name in ENCODERS:
            parts[name] = folder.needed(name, DTYPES[spec.precision]).to(device)
        vae = folder.needed("vae", torch.float32).to(device)
        self.transformer = folder.needed("transformer", torch.float32).to(device)
        self._decoder = Decoder(vae, spec.decode_precision, spec.tiled_decode)
        channels = self.transformer.config.in_channels // SIDE**2
        self.shape = latent_shape(spec.pixels, self._decoder, channels, SIDE, "policy.flux")
        self._pipeline = folder.assembled(transformer=self.transformer, vae=vae, **parts)
        self.texts = Texts(self._encode, device)
        self._empty: tuple[Tensor, ...] | None = None  # what no prompt looks like, once it is asked for
        self._train()

    def _train(self) -> None:
        if self.spec.lora:
            adapt(self.transformer, self.spec.lora, ADAPTED, start="gaussian")
        else:
            self.transformer.requires_grad_(True)
        if self.spec.recompute:
            self.transformer.enable_gradient_checkpointing()

    # --- prompts -----------------------------------------------------------------------------------------------------

    def conditions(self, prompts: Sequence[Prompt]) -> tuple[Float[Tensor, "p l f"], Float[Tensor, "p g"]]:
        """Features of T5's tokens, and CLIP's of the whole text."""
        features, pooled = self.texts([prompt.text for prompt in prompts])
        return features, pooled

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        asked = {"prompt": texts, "prompt_2": None, "device": self.device}
        features, pooled, _ = self._pipeline.encode_prompt(**asked, max_sequence_length=self.spec.text_length)
        return features, pooled

    # --- the flow ----------------------------------------------------------------------------------------------------

    def velocity(
        self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"], conditions: Any, guidance: float
    ) -> Float[Tensor, "n c h w"]:
        """Distilled guidance is an input of both branches. In bf16 the network rounds t and it too, as released."""
        features, pooled = conditions
        if guidance != 1:
            if self._empty is None:
                self._empty = self.texts([""])
            pairs = zip(self._empty, conditions, strict=True)
            features, pooled = (torch.cat([null.expand_as(given), given]) for null, given in pairs)
            x, t = torch.cat([x, x]), torch.cat([t, t])
        told = t.new_full((len(t),), self.spec.distilled_guidance, dtype=torch.float32)
        with autocast(self.device, self.spec.precision):
            velocity = self.transformer(
                hidden_states=packed(x),
                timestep=t.float(),
                guidance=told if self.transformer.config.guidance_embeds else None,
                encoder_hidden_states=features,
                pooled_projections=pooled,
                txt_ids=torch.zeros(features.shape[1], 3, device=x.device),
                img_ids=_places(x),
                return_dict=False,
            )[0]
        velocity = unpacked(velocity.float(), x.shape[2])
        if guidance == 1:
            return velocity
        null, conditional = velocity.chunk(2)
        return guided(conditional, null, guidance)

    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        """The scheduler's own, of evenly spaced times from 1 to 1 / steps, as the pipeline asks it."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        scheduler, shift = self._pipeline.scheduler, {}
        if scheduler.config.use_dynamic_shifting:
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            tokens = self.shape[1] * self.shape[2] // SIDE**2
            shift["mu"] = calculate_shift(tokens, *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist(), **shift)
        return scheduler.sigmas.double().cpu()

    def start(self, noise: Float[Tensor, "n c h w"], steps: int) -> Float[Tensor, "n c h w"]:
        return noise

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        return self._decoder(latents)

    # --- weights -----------------------------------------------------------------------------------------------------

    def trained(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.transformer.named_parameters() if weight.requires_grad]

    def adapter_off(self) -> Callable[[], AbstractContextManager[None]] | None:
        return partial(adapters_off, self.transformer) if self.spec.lora else None

    def export(self, folder: Path) -> None:
        whole = merged(self.transformer) if self.spec.lora else self.transformer
        self.folder.write(folder, {"transformer": whole, "scheduler": self._pipeline.scheduler})


def packed(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n tokens d"]:
    """Tokens of 2 x 2 places, row by row: diffusers' FluxPipeline._pack_latents."""
    return F.pixel_unshuffle(x, SIDE).flatten(2).transpose(1, 2)


def unpacked(tokens: Float[Tensor, "n tokens d"], height: int) -> Float[Tensor, "n c h w"]:
    """The latent that was packed. height  places from top to bottom"""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // SIDE, -1)), SIDE)


def _places(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "tokens three"]:
    """Where each token stands: 0, its row, its column."""
    rows, columns = (torch.arange(side // SIDE, device=x.device, dtype=torch.float32) for side in x.shape[2:])
    return torch.cartesian_prod(torch.zeros(1, device=x.device), rows, columns)
