"""Stable Diffusion 3 and 3.5 as a policy: rectified-flow transformers. Esser et al. 2024, arXiv:2403.03206.

Read from folders in the format of diffusers' StableDiffusion3Pipeline, whose own code encodes the prompts; Euler steps
without noise give that pipeline's latents. Low-rank adapters are on the layers of Flow-GRPO (arXiv:2505.05470).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import PolicySpec
from burnish.models.denoiser import DenoisingPolicy
from burnish.models.diffusers_parts import Folder
from burnish.models.flow_times import FlowTimes
from burnish.models.pipelines import FlowSettings, PictureNetwork, PictureSettings
from burnish.models.places import fetch

# Flow-GRPO, scripts/train_sd3.py: both streams of the joint attention, not the second attention of 3.5 medium
ADAPTED = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")) + tuple(
    f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
T5 = ("tokenizer_3", "text_encoder_3")  # what the pipeline can do without


@dataclass(frozen=True, kw_only=True)
class SD3(FlowSettings, PictureSettings, PolicySpec):
    """A transformer that predicts velocities, with its three text encoders and its decoder.

    Weights: stabilityai/stable-diffusion-3.5-medium; released with shift 3. Flow-GRPO: adapters of rank 32, alpha 64,
    and 128 tokens of text.
    """

    longest: ClassVar[int] = 512
    pixels: int = 512  # side of a picture
    t5: bool = True  # read prompts with T5 too; without it they are read by CLIP alone, for a third of the memory
    text_length: int = 256  # tokens of T5; longer texts are cut. Flow-GRPO: 128

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "StableDiffusion3Pipeline")
        for part in SD3Network.encoders[:2]:
            if folder.kind(part) is None:
                raise ValueError(f"{folder.path}: names no {part}; only the third text encoder, T5, can be left out")
        left_out = () if self.t5 and folder.kind(T5[1]) else T5
        return DenoisingPolicy(SD3Network(self, folder, device, left_out), self.decode_rows)


class SD3Network(PictureNetwork[SD3]):
    """A loaded Stable Diffusion 3."""

    name = "sd3"
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    adapted = ADAPTED
    clock: FlowTimes

    def grain(self) -> tuple[int, int]:
        config = self.model.config
        largest = config.pos_embed_max_size * config.patch_size * self.codec.cell
        if self.spec.pixels > largest:
            raise ValueError(
                f"policy.sd3.pixels: {self.spec.pixels} is above the {largest} that this model has places for"
            )
        return config.in_channels, config.patch_size

    def clocked(self) -> FlowTimes:
        tokens = self.shape[1] * self.shape[2] // self.model.config.patch_size**2
        return FlowTimes(self.pipeline.scheduler, self.folder.path / "scheduler", self.spec.shift, tokens)

    def encode(self, texts: list[str]) -> tuple[Float[Tensor, "p l f"], Float[Tensor, "p g"]]:
        """Features of the tokens (CLIP's slots, then T5's) and of the whole text."""
        features, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,  # what no prompt looks like is the text "", encoded like any other
            max_sequence_length=self.spec.text_length,
        )
        return features, pooled

    def predicted(self, x: Float[Tensor, "n c h w"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n c h w"]:
        features, pooled = conditions
        with self.autocast():
            return self.model(
                hidden_states=x,
                timestep=self.clock.timestep(t),
                encoder_hidden_states=features,
                pooled_projections=pooled,
                return_dict=False,
            )[0].float()
