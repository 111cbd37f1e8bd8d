"""Qwen-Image as a policy: a rectified flow whose prompts a language model reads. Wu et al. 2025, arXiv:2508.02324.

Read from folders in the format of diffusers' QwenImagePipeline, whose own code encodes the prompts; Euler steps without
noise give that pipeline's latents. A latent here has channels and sides, as the decoder and the other policies have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from burnish.core import PolicySpec
from burnish.formulas.guidance import as_long_as
from burnish.models.denoiser import DenoisingPolicy
from burnish.models.diffusers_parts import Folder
from burnish.models.flow_times import FlowTimes
from burnish.models.packing import SIDE, packed, unpacked
from burnish.models.pipelines import FlowSettings, PictureNetwork, PictureSettings
from burnish.models.places import fetch

# Both streams of the attention and of the feed-forward layers: Flow-GRPO, scripts/train_qwenimage.py
ADAPTED = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
)
NOTHING = " "  # the text of no prompt, in the model's card and in Flow-GRPO


@dataclass(frozen=True, kw_only=True)
class QwenImage(FlowSettings, PictureSettings, PolicySpec):
    """A transformer that predicts velocities, with Qwen2.5-VL as its text encoder and its decoder.

    Weights: Qwen/Qwen-Image, whose times shift by size. Flow-GRPO: adapters of rank 64, alpha 128.
    """

    longest: ClassVar[int] = 1024
    pixels: int = 512  # side of a picture
    rescale: bool = True  # a guided velocity is as long as the one with the prompt, token by token, as released
    text_length: int = 256  # tokens of a text, which all cost time; longer texts are cut. The pipeline: 512

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "QwenImagePipeline")
        return DenoisingPolicy(QwenImageNetwork(self, folder, device), self.decode_rows)


class QwenImageNetwork(PictureNetwork[QwenImage]):
    """A loaded Qwen-Image."""

    name = "qwen_image"
    tokenizers, encoders = ("tokenizer",), ("text_encoder",)
    adapted = ADAPTED

    def grain(self) -> tuple[int, int]:
        return self.model.config.in_channels // SIDE**2, SIDE

    def clocked(self) -> FlowTimes:
        tokens = self.shape[1] * self.shape[2] // SIDE**2
        where = self.folder.path / "scheduler"
        return FlowTimes(self.pipeline.scheduler, where, self.spec.shift, tokens, even=True)

    def encode(self, texts: list[str]) -> tuple[Float[Tensor, "p l f"], Bool[Tensor, "p l"]]:
        """Features of the tokens after the template's beginning, and which of them are the text's and not filling."""
        length = self.spec.text_length
        features, mask = self.pipeline.encode_prompt(prompt=texts, device=self.device, max_sequence_length=length)
        if mask is None:  # all are equally long
            mask = torch.ones(features.shape[:2], device=features.device)
        short = length - features.shape[1]
        return F.pad(features, (0, 0, 0, short)), F.pad(mask.bool(), (0, short))

    def nothing(self, conditions: tuple[Tensor, ...]) -> Sequence[Tensor]:
        return self.texts([NOTHING])

    def mixed(self, conditional: Tensor, null: Tensor, guidance: float) -> Tensor:
        led = super().mixed(conditional, null, guidance)
        if not self.spec.rescale:
            return led
        return unpacked(as_long_as(packed(conditional), packed(led)), led.shape[2])

    def predicted(self, x: Float[Tensor, "n c h w"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n c h w"]:
        """In bf16 the network rounds t too, as released."""
        features, mask = conditions
        with self.autocast():
            tokens = self.model(
                hidden_states=packed(x),
                timestep=t.float(),
                encoder_hidden_states=features,
                encoder_hidden_states_mask=mask,
                img_shapes=[[(1, x.shape[2] // SIDE, x.shape[3] // SIDE)]] * len(x),
                return_dict=False,
            )[0]
        return unpacked(tokens.float(), x.shape[2])
