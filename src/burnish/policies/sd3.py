"""Stable Diffusion 3 and 3.5 as a policy: rectified-flow transformers. Esser et al. 2024, arXiv:2403.03206.

Read from folders in the format of diffusers' StableDiffusion3Pipeline, whose own code encodes the prompts; Euler steps
without noise give that pipeline's latents. Low-rank adapters are on the layers of Flow-GRPO (arXiv:2505.05470).
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

from burnish.core import PolicySpec
from burnish.formulas.guidance import guided
from burnish.models.denoiser import DenoisingPolicy, Network
from burnish.models.diffusers_parts import DTYPES, Decoder, Folder, Texts, autocast, latent_shape
from burnish.models.lora import Lora, adapt, adapters_off, merged
from burnish.models.places import fetch
from burnish.types import Prompt

# Flow-GRPO, scripts/train_sd3.py: both streams of the joint attention, not the second attention of 3.5 medium
ADAPTED = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")) + tuple(
    f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
LONGEST = 512  # tokens T5 may read, as the pipeline has it
PARTS = ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class SD3(PolicySpec):
    """A transformer that predicts velocities, with its three text encoders and its decoder."""

    weights: str  # a hub id (stabilityai/stable-diffusion-3.5-medium) or a folder in diffusers' format
    pixels: int = 512  # side of a picture
    precision: Literal["fp32", "bf16"] = "fp32"  # of the arithmetic and the text encoders; trained weights are float32
    lora: Lora | None = None  # train adapters instead of all weights; Flow-GRPO: rank 32, alpha 64
    shift: float | None = None  # of the times towards noise; None: the scheduler's own (3 as released)
    t5: bool = True  # read prompts with T5 too; without it they are read by CLIP alone, for a third of the memory
    text_length: int = 256  # tokens of T5; longer texts are cut. Flow-GRPO: 128
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
        folder = Folder(fetch(self.weights), "StableDiffusion3Pipeline")
        if folder.kind("scheduler") != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(
                f"{folder.path / 'scheduler'}: a {folder.kind('scheduler')}; only FlowMatchEulerDiscreteScheduler "
                "tells the times of a flow"
            )
        for part in ENCODERS[:2]:
            if folder.kind(part) is None:
                raise ValueError(f"{folder.path}: names no {part}; only the third text encoder, T5, can be left out")
        return DenoisingPolicy(SD3Network(self, folder, device), self.decode_rows)


class SD3Network(Network):
    """A loaded Stable Diffusion 3. `transformer` is trained; text encoders and decoder never are."""

    def __init__(self, spec: SD3, folder: Folder, device: torch.device) -> None:
        self.spec, self.folder, self.device = spec, folder, device
        left_out = () if spec.t5 else ("tokenizer_3", "text_encoder_3")
        parts: dict[str, Any] = {name: None if name in left_out else folder.read(name) for name in PARTS}
        if spec.shift is not None:
            flow = parts["scheduler"]
            parts["scheduler"] = flow.from_config(flow.config, shift=spec.shift, use_dynamic_shifting=False)
        for name in ENCODERS:
            model = None if name in left_out else folder.read(name, DTYPES[spec.precision])
            parts[name] = model if model is None else model.to(device)
        vae = folder.needed("vae", torch.float32).to(device)
        self.transformer = folder.needed("transformer", torch.float32).to(device)
        self._decoder = Decoder(vae, spec.decode_precision, spec.tiled_decode)
        self.shape = self._shape()
        self._pipeline = folder.assembled(transformer=self.transformer, vae=vae, **parts)
        self.texts = Texts(self._encode, device)
        self._empty: tuple[Tensor, ...] | None = None  # what no prompt looks like, once it is asked for
        self._train()

    def _shape(self) -> tuple[int, ...]:
        config = self.transformer.config
        shape = latent_shape(self.spec.pixels, self._decoder, config.in_channels, config.patch_size, "policy.sd3")
        largest = config.pos_embed_max_size * config.patch_size * self._decoder.cell
        if self.spec.pixels > largest:
            raise ValueError(
                f"policy.sd3.pixels: {self.spec.pixels} is above the {largest} that this model has places for"
            )
        return shape

    def _train(self) -> None:
        if self.spec.lora:
            adapt(self.transformer, self.spec.lora, ADAPTED, start="gaussian")
        else:
            self.transformer.requires_grad_(True)
        if self.spec.recompute:
            self.transformer.enable_gradient_checkpointing()

    # --- prompts -----------------------------------------------------------------------------------------------------

    def conditions(self, prompts: Sequence[Prompt]) -> tuple[Float[Tensor, "p l f"], Float[Tensor, "p g"]]:
        """Features of the tokens (CLIP's slots, then T5's) and of the whole text."""
        features, pooled = self.texts([prompt.text for prompt in prompts])
        return features, pooled

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        features, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,  # what no prompt looks like is the text "", encoded like any other
            max_sequence_length=self.spec.text_length,
        )
        return features, pooled

    # --- the flow ----------------------------------------------------------------------------------------------------

    def velocity(
        self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"], conditions: Any, guidance: float
    ) -> Float[Tensor, "n c h w"]:
        features, pooled = conditions
        if guidance != 1:
            if self._empty is None:
                self._empty = self.texts([""])
            pairs = zip(self._empty, conditions, strict=True)
            features, pooled = (torch.cat([null.expand_as(given), given]) for null, given in pairs)
            x, t = torch.cat([x, x]), torch.cat([t, t])
        with autocast(self.device, self.spec.precision):
            velocity = self.transformer(
                hidden_states=x,
                timestep=t.float() * self._pipeline.scheduler.config.num_train_timesteps,
                encoder_hidden_states=features,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
        if guidance == 1:
            return velocity.float()
        null, conditional = velocity.float().chunk(2)
        return guided(conditional, null, guidance)

    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        """The scheduler's own."""
        scheduler, shift = self._pipeline.scheduler, {}
        if scheduler.config.use_dynamic_shifting:
            from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            places = self.shape[1] * self.shape[2] // self.transformer.config.patch_size**2
            shift["mu"] = calculate_shift(places, *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(steps, **shift)
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
