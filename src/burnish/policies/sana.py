"""Sana as a policy: a rectified flow by a transformer of linear attention. Xie et al. 2024, arXiv:2410.10629.

Read from folders in the format of diffusers' SanaPipeline, whose own code encodes the prompts. Steps without noise give
that pipeline's latents: of the solver dpm2 where it is released with DPM-Solver, as 1.0 and 1.5 are, else of euler.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.core import PolicySpec
from burnish.models.denoiser import DenoisingPolicy
from burnish.models.diffusers_parts import Folder
from burnish.models.flow_times import DPM, EULER, FlowTimes
from burnish.models.pipelines import FlowSettings, PictureNetwork, PictureSettings
from burnish.models.places import fetch

ADAPTED = ("to_q", "to_k", "to_v")  # every attention: diffusers, train_dreambooth_lora_sana.py


@dataclass(frozen=True, kw_only=True)
class Sana(FlowSettings, PictureSettings, PolicySpec):
    """A transformer that predicts velocities, with Gemma 2 as its text encoder and a decoder that enlarges 32 times.

    Weights: Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers, released with shift 3.
    """

    longest: ClassVar[int] = 300
    pixels: int = 1024  # side of a picture
    instruction: bool = True  # texts are read behind the pipeline's instruction to enhance them, as trained (sec. 3.1)
    text_length: int = 300  # tokens of a text; longer texts are cut

    def load(self, device: torch.device) -> DenoisingPolicy:
        """Read the weights. Raises ValueError for a folder that is no such pipeline, is cut short, or does not fit."""
        folder = Folder(fetch(self.weights), "SanaPipeline")
        return DenoisingPolicy(SanaNetwork(self, folder, device), self.decode_rows)


class SanaNetwork(PictureNetwork[Sana]):
    """A loaded Sana."""

    name = "sana"
    schedulers = (EULER, DPM)
    tokenizers, encoders = ("tokenizer",), ("text_encoder",)
    adapted = ADAPTED
    clock: FlowTimes

    def grain(self) -> tuple[int, int]:
        return self.model.config.in_channels, self.model.config.patch_size

    def clocked(self) -> FlowTimes:
        return FlowTimes(self.pipeline.scheduler, self.folder.path / "scheduler", self.spec.shift)

    def encode(self, texts: list[str]) -> tuple[Float[Tensor, "p l f"], Bool[Tensor, "p l"]]:
        """Features of the tokens, the instruction's left out, and which of them are the text's and not filling."""
        usual = inspect.signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        return self._read(texts, usual if self.spec.instruction else None)

    def nothing(self, conditions: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """The text "", behind no instruction."""
        return self._read([""], None)

    def _read(self, texts: list[str], instruction: Any) -> tuple[Tensor, Tensor]:
        features, mask, _, _ = self.pipeline.encode_prompt(
            prompt=texts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.spec.text_length,
            complex_human_instruction=instruction,
        )
        return features, mask.bool()

    def predicted(self, x: Float[Tensor, "n c h w"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n c h w"]:
        features, mask = conditions
        with self.autocast():
            predicted = self.model(
                hidden_states=x,
                encoder_hidden_states=features,
                encoder_attention_mask=mask,
                timestep=self.clock.timestep(t) * self.model.config.timestep_scale,
                return_dict=False,
            )[0]
        return predicted[:, : x.shape[1]].float()  # some predict a variance too, which the pipeline leaves aside
