"""FLUX.1 dev and schnell as a policy: distilled rectified-flow transformers. Black Forest Labs 2024.

Read from folders in the format of diffusers' FluxPipeline, whose own code encodes the prompts; Euler steps without
noise give that pipeline's latents. A latent here has channels and sides, as the decoder and the other policies have
it; the network's tokens (2 x 2 places each) are another order of the same numbers, so no likelihood changes with it.
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
from burnish.models.packing import SIDE, packed, unpacked
from burnish.models.pipelines import FlowSettings, PictureNetwork, PictureSettings
from burnish.models.places import fetch

# The attention of both kinds of block; single blocks have to_q, to_k, to_v only. Flow-GRPO, scripts/train_flux.py, adds
# the feed-forward layers of the double blocks (ff.net, ff_context.net)
ADAPTED = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")) + tuple(
    f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)


@dataclass(frozen=True, kw_only=True)
class Flux(FlowSettings, PictureSettings, PolicySpec):
    """A transformer that predicts velocities, with its two text encoders and its decoder.

    Weights: black-forest-labs/FLUX.1-dev, whose times shift by size (DanceGRPO: by 3). Flow-GRPO: adapters of rank 64,
    alpha 128, and 128 tokens of text; schnell was trained with 256.
    """

    longest: ClassVar[int] = 512
    pixels: int = 512  # side of a picture
    distilled_guidance: float = 3.5  # an input of dev, which schnell has not; a plan's guidance is the real one
    text_length: int = 512  # tokens of T5; longer texts are cut. schnell was trained with 256; Flow-GRPO: 128

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "FluxPipeline")
        return DenoisingPolicy(FluxNetwork(self, folder, device), self.decode_rows)


class FluxNetwork(PictureNetwork[Flux]):
    """A loaded FLUX.1."""

    name = "flux"
    tokenizers = ("tokenizer", "tokenizer_2")
    encoders = ("text_encoder", "text_encoder_2")
    adapted = ADAPTED

    def grain(self) -> tuple[int, int]:
        return self.model.config.in_channels // SIDE**2, SIDE

    def clocked(self) -> FlowTimes:
        tokens = self.shape[1] * self.shape[2] // SIDE**2
        where = self.folder.path / "scheduler"
        return FlowTimes(self.pipeline.scheduler, where, self.spec.shift, tokens, even=True)

    def encode(self, texts: list[str]) -> tuple[Float[Tensor, "p l f"], Float[Tensor, "p g"]]:
        """Features of T5's tokens, and CLIP's of the whole text."""
        asked = {"prompt": texts, "prompt_2": None, "device": self.device}
        features, pooled, _ = self.pipeline.encode_prompt(**asked, max_sequence_length=self.spec.text_length)
        return features, pooled

    def predicted(self, x: Float[Tensor, "n c h w"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n c h w"]:
        """Distilled guidance is an input of both branches. In bf16 the network rounds t and it too, as released."""
        features, pooled = conditions
        told = t.new_full((len(t),), self.spec.distilled_guidance, dtype=torch.float32)
        with self.autocast():
            tokens = self.model(
                hidden_states=packed(x),
                timestep=t.float(),
                guidance=told if self.model.config.guidance_embeds else None,
                encoder_hidden_states=features,
                pooled_projections=pooled,
                txt_ids=torch.zeros(features.shape[1], 3, device=x.device),
                img_ids=_places(x),
                return_dict=False,
            )[0]
        return unpacked(tokens.float(), x.shape[2])


def _places(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "tokens three"]:
    """Where each token stands: 0, its row, its column."""
    rows, columns = (torch.arange(side // SIDE, device=x.device, dtype=torch.float32) for side in x.shape[2:])
    return torch.cartesian_prod(torch.zeros(1, device=x.device), rows, columns)
