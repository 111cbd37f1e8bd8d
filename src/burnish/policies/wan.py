"""Wan 2.1 text-to-video as a policy: rectified-flow transformers over space and time. Wan Team 2025, arXiv:2503.20314.

Read from folders in the format of diffusers' WanPipeline, whose own code encodes the prompts. A latent is (channels,
frames, rows, columns), and what is drawn are videos (b, f, 3, h, w). Steps without noise give the latents of that
pipeline: of the solver unipc with the scheduler that is released beside the weights, of euler with flow matching's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import PolicySpec
from burnish.models.arithmetic import Precision, autocast
from burnish.models.denoiser import DenoisingPolicy
from burnish.models.diffusers_parts import Folder
from burnish.models.flow_times import EULER, UNIPC, FlowTimes
from burnish.models.pipelines import FlowSettings, PipelineNetwork
from burnish.models.pixels import covering
from burnish.models.places import fetch

# Flow-GRPO, scripts/train_wan2_1.py, and Identity-GRPO: the attention over places and the one over the text
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, kw_only=True)
class Wan(FlowSettings, PolicySpec):
    """A transformer that predicts velocities, with its text encoder and its decoder.

    Weights: Wan-AI/Wan2.1-T2V-1.3B-Diffusers; shift 3 for 480p, 5 for 720p. Identity-GRPO: adapters of rank 32,
    alpha 32.
    """

    longest: ClassVar[int] = 512
    videos: ClassVar[bool] = True

    height: int = 480  # of a frame, pixels
    width: int = 832  # of it
    frames: int = 81  # of a video: one more than a multiple of 4
    text_length: int = 512  # tokens of the text encoder; longer texts are cut
    negative_prompt: str = ""  # what guidance leads away from
    decode_rows: int = 1  # videos decoded at once

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "WanPipeline")
        if folder.kind("transformer_2") is not None:
            raise ValueError(
                f"{folder.path}: names a transformer_2, which takes over at low noise (Wan 2.2 A14B); "
                "only models of one transformer are drawn from and trained (Wan 2.1, Wan 2.2 5B)"
            )
        return DenoisingPolicy(WanNetwork(self, folder, device), self.decode_rows)


class WanNetwork(PipelineNetwork[Wan]):
    """A loaded Wan."""

    name = "wan"
    schedulers = (EULER, UNIPC)
    tokenizers, encoders = ("tokenizer",), ("text_encoder",)
    adapted = ADAPTED
    codec: VideoAutoencoder
    clock: FlowTimes

    def coded(self, vae: Any) -> VideoAutoencoder:
        return VideoAutoencoder(vae, self.spec.decode_precision, self.spec.tiled_decode)

    def framed(self, media: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "F 3 H W"]:
        film = media if media.dim() == 4 else media[None]  # a picture is a film of one frame
        if len(film) < self.spec.frames:
            raise ValueError(f"policy.wan: draws videos of {self.spec.frames} frames, and was given {len(film)}")
        return covering(film[: self.spec.frames], self.spec.height, self.spec.width)

    def sized(self) -> tuple[int, int, int, int]:
        """Channels, frames and sides of a latent."""
        config, codec, spec = self.model.config, self.codec, self.spec
        deep, tall, wide = config.patch_size
        for name, step in (("height", codec.cell * tall), ("width", codec.cell * wide)):
            if (value := getattr(spec, name)) < 1 or value % step:
                raise ValueError(f"policy.wan.{name}: {value} is not a multiple of this model's {step}")
        if spec.frames < 1 or (spec.frames - 1) % codec.span:
            raise ValueError(f"policy.wan.frames: {spec.frames} is not one more than a multiple of {codec.span}")
        if config.in_channels != codec.channels:
            raise ValueError(
                f"policy.wan: the network reads {config.in_channels} channels, the decoder {codec.channels}; "
                "models that read more than noise (a first frame, a video) are not drawn from by text alone"
            )
        shape = (spec.frames - 1) // codec.span + 1, spec.height // codec.cell, spec.width // codec.cell
        if shape[0] % deep:
            raise ValueError(f"policy.wan.frames: {shape[0]} frames of a latent are not a multiple of {deep}")
        longest = max(side // patch for side, patch in zip(shape, (deep, tall, wide), strict=True))
        if longest > config.rope_max_seq_len:
            raise ValueError(
                f"policy.wan: {longest} places along one axis, above the {config.rope_max_seq_len} of this model"
            )
        return (config.in_channels, *shape)

    def clocked(self) -> FlowTimes:
        return FlowTimes(self.pipeline.scheduler, self.folder.path / "scheduler", self.spec.shift)

    def encode(self, texts: list[str]) -> tuple[Float[Tensor, "p l f"]]:
        """Features of the tokens, zeros behind the end of a text."""
        features, _ = self.pipeline.encode_prompt(
            prompt=texts,
            do_classifier_free_guidance=False,  # the negative prompt is encoded like any other
            max_sequence_length=self.spec.text_length,
            device=self.device,
        )
        return (features,)

    def nothing(self, conditions: tuple[Tensor, ...]) -> Sequence[Tensor]:
        return self.texts([self.spec.negative_prompt])

    def predicted(self, x: Float[Tensor, "n c f h w"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n c f h w"]:
        (features,) = conditions
        with self.autocast():
            velocity = self.model(
                hidden_states=x,
                timestep=self.clock.timestep(t),
                encoder_hidden_states=features,
                return_dict=False,
            )[0]
        return velocity.float()


class VideoAutoencoder:
    """Latents to videos in [0, 1] and back, by AutoencoderKLWan, whose config tells a mean and a deviation a channel.

    precision  of its arithmetic; its weights are float32
    tiled      decode in overlapping tiles that are blended: less memory, and faint seams
    """

    def __init__(self, vae: Any, precision: Precision, tiled: bool) -> None:
        self._vae = vae
        self._precision: Precision = precision
        self.cell = int(vae.config.scale_factor_spatial)  # pixels a side of a latent's place
        self.span = int(vae.config.scale_factor_temporal)  # frames of one of a latent, but for the first, which is one
        self.channels = int(vae.config.z_dim)
        self._mean, self._std = (
            torch.tensor(values, device=vae.device).view(-1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        if tiled:
            vae.enable_tiling()

    def decode(self, latents: Float[Tensor, "n c f h w"]) -> Float[Tensor, "n F 3 H W"]:
        with autocast(latents.device, self._precision):
            videos = self._vae.decode(latents * self._std + self._mean, return_dict=False)[0]
        return (videos.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)

    def encode(self, media: Float[Tensor, "n F 3 H W"]) -> Float[Tensor, "n c f h w"]:
        """The likeliest latents of videos."""
        with autocast(media.device, self._precision):
            law = self._vae.encode(media.transpose(1, 2) * 2 - 1, return_dict=False)[0]
        return (law.mode().float() - self._mean) / self._std
