"""Stable Diffusion 1.x and 2.x as a policy: latent diffusion. Rombach et al. 2022, arXiv:2112.10752.

Read from folders in the format of diffusers' StableDiffusionPipeline, whose own code encodes the prompts. Whatever the
network predicts is turned into the velocity of a rectified flow here, and DDIM's states into states of that flow:

    t / (1 - t) = sqrt(1 - abar) / sqrt(abar)        x = x_vp sqrt((1 - t)^2 + t^2)

Both say x = (1 - t) x_0 + t noise, so an Euler step along the velocity is a step of DDIM with eta 0.
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
from burnish.formulas.gaussian import rows, variance_preserving
from burnish.formulas.guidance import guided
from burnish.models.denoiser import DenoisingPolicy, Network
from burnish.models.diffusers_parts import DTYPES, Decoder, Folder, Texts, autocast, latent_shape
from burnish.models.lora import Lora, adapt, adapters_off, merged
from burnish.models.places import fetch
from burnish.types import Prompt

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")  # every attention: ddpo-pytorch, scripts/train.py
PREDICTIONS = ("epsilon", "v_prediction", "sample")


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
        self._scheduler, self._table = _ddim(self._pipeline.scheduler, folder.path / "scheduler")
        self._nearest = ((self._table[1:] + self._table[:-1]) / 2).to(device)
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
        """The network is asked at the training timestep nearest to t in log signal-to-noise.

        The times of `times` are such timesteps; between two the network is told a noise level that is wrong by half
        their distance at most (0.006 in log t / (1 - t) at 1000 timesteps, away from the ends). Above the noisiest (t
        0.936 for 1.5) it was not trained, and predictions of noise say nothing there: the velocity is infinite at 1.
        """
        t = t.double()
        step, x_vp = self._timestep(t), x / rows(torch.sqrt((1 - t).square() + t.square()), x)
        if guidance == 1:
            return _velocity(self._kind, self._predicted(x_vp, step, conditions), x, x_vp, t)
        if self._empty is None:
            self._empty = self.texts([""])[0]
        features = torch.cat([self._empty.expand_as(conditions), conditions])
        null, conditional = self._predicted(torch.cat([x_vp, x_vp]), torch.cat([step, step]), features).chunk(2)
        return _velocity(self._kind, guided(conditional, null, guidance), x, x_vp, t)

    def _predicted(self, x_vp: Tensor, step: Int[Tensor, " n"], features: Tensor) -> Tensor:
        with autocast(self.device, self.spec.precision):
            return self.unet(x_vp, step, encoder_hidden_states=features, return_dict=False)[0].float()

    def _timestep(self, t: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        return torch.bucketize(torch.log(t / (1 - t)), self._nearest, right=True)

    @property
    def _kind(self) -> str:
        return self._scheduler.config.prediction_type

    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        """Those of the scheduler's timesteps, as DDIM spaces them, and then 0.

        The last step goes to 0 whatever set_alpha_to_one says: 1.5 as released stops at abar_0 = 0.9991 instead and
        decodes a latent with 3 % of its noise in it, for which a flow that ends at 0 has no place. Where the spacing is
        uneven (linspace; trailing with steps that do not divide 1000) diffusers' own DDIM steps by an even spacing and
        evaluates beside where it arrived; ours arrives where it evaluates next.
        """
        number = self._scheduler.config.num_train_timesteps
        if steps > number:
            raise ValueError(f"plan.steps: {steps} is more than the {number} timesteps this model was trained on")
        self._scheduler.set_timesteps(steps)
        places = self._scheduler.timesteps.cpu()
        if places.max() >= number:  # steps_offset pushes the first one out where every timestep is used
            raise ValueError(
                f"plan.steps: {steps} with this scheduler's steps_offset begin beyond timestep {number - 1}"
            )
        return torch.cat([torch.sigmoid(self._table[places]), torch.zeros(1, dtype=torch.float64)])

    def start(self, noise: Float[Tensor, "n c h w"], steps: int) -> Float[Tensor, "n c h w"]:
        """Noise of the length that a state of the flow has at the first time, if it is all noise."""
        t = self.times(steps)[0]
        return noise * float(torch.sqrt((1 - t).square() + t.square()))

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        return self._decoder(latents)

    # --- weights -----------------------------------------------------------------------------------------------------

    def trained(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.unet.named_parameters() if weight.requires_grad]

    def adapter_off(self) -> Callable[[], AbstractContextManager[None]] | None:
        return partial(adapters_off, self.unet) if self.spec.lora else None

    def export(self, folder: Path) -> None:
        self.folder.write(folder, {"unet": merged(self.unet) if self.spec.lora else self.unet})


def _velocity(
    kind: str, predicted: Float[Tensor, "n *d"], x: Tensor, x_vp: Tensor, t: Float[Tensor, " n"]
) -> Float[Tensor, "n *d"]:
    """noise - clean, from what the network predicted of x_vp = signal clean + noise_level noise.

    epsilon      the noise
    v            signal noise - noise_level clean (Salimans & Ho 2022, arXiv:2202.00512)
    sample       the clean state
    """
    if kind == "epsilon":
        return (predicted - x) / rows(1 - t, x)
    if kind == "sample":
        return (x - predicted) / rows(t, x)
    signal, level = variance_preserving(t)
    return rows(signal + level, x) * predicted + rows(level - signal, x) * x_vp


def _ddim(scheduler: Any, where: Path) -> tuple[Any, Float[Tensor, " timesteps"]]:
    """DDIM's scheduler with the settings of another (1.5 ships PNDM), and log t / (1 - t) of its timesteps."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    kind = type(scheduler).__name__
    if kind not in [known.__name__ for known in DDIMScheduler().compatibles]:
        raise ValueError(f"{where}: a {kind}, whose settings are not those of a scheduler for DDIM")
    ddim: Any = DDIMScheduler.from_config(scheduler.config)
    if ddim.config.prediction_type not in PREDICTIONS:
        raise ValueError(f"{where}: predicts {ddim.config.prediction_type!r}; known are {', '.join(PREDICTIONS)}")
    if ddim.config.thresholding:
        raise ValueError(f"{where}: thresholding is for diffusion of pixels; it changes what is drawn but not its law")
    abar = ddim.alphas_cumprod.double()
    if ddim.config.prediction_type == "epsilon" and abar[-1] == 0:
        raise ValueError(
            f"{where}: at its last timestep there is no signal, so a prediction of noise says nothing there"
        )
    return ddim, 0.5 * torch.log((1 - abar) / abar)
