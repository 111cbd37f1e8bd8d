"""Train the scenes' autoencoders, small ones of diffusers' classes, from rendered pictures or videos alone.

    burnish world autoencoder --seconds 900 --seed 0 --out FOLDER               an AutoencoderKL
    burnish world video_autoencoder --seconds 3000 --seed 0 --out FOLDER        an AutoencoderKLWan

The denoisers of the world draw in their latents: 8 x 8 places of a 64 x 64 picture, 5 x 8 x 8 of a video (whose frames
are read in patches of 2 x 2 pixels, as Wan 2.2 reads them: at half the side a step takes a quarter of the time). One
frame of a latent is four of a video in Wan's own weights, of 16 channels, and two here, of as many of 8 as are used.

Absolute error of the pixels, counted more where the picture is not background, and a weak pull of the latents towards a
standard normal law (Rombach et al. 2022, arXiv:2112.10752, section 3.1); videos are pulled harder: where there is
nothing to tell, their latents are next to nothing, and so easily drawn, and channels that tell nothing anywhere are
left out in the end. No adversary: coloured shapes need none. The model of videos learns from single frames first, as
Wan's own did (Wan Team 2025, arXiv:2503.20314), twelve times as many scenes a second, and what joins frames in time
begins as the identity. Scale and shift of the latents are measured afterwards and stand in the config, where diffusers'
pipelines look for them.
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.frames import pictures_of
from burnish.formulas.noise import generator
from burnish.making.fitting import paced, untyped
from burnish.making.tokenizer import error_of, things
from burnish.types import Prompt
from burnish.worlds.scenes import moving
from burnish.worlds.scenes.motion import judge
from burnish.worlds.scenes.render import SIDE, captions, render

CHANNELS = (16, 32, 32, 64)
STILLS = 4  # videos of one frame that are shown in place of one; all of them take a third of its time
FRAMES = 9  # of a video: Wan's encoder takes the first and then four at a time, and leaves out what remains


@dataclass(frozen=True)
class Settings:
    """How an autoencoder is trained."""

    seconds: float = 900.0  # wall clock; the learning rate falls to zero at its end
    seed: int = 0
    batch: int = 16  # pictures (or videos) a step
    lr: float = 2e-3
    warmup: int = 50  # steps of rising learning rate
    object_weight: float = 4.0  # extra weight of pixels that are not background
    still: float = 0.0  # share of the time, from its beginning, in which videos are of one frame
    pull: float = 3e-4  # weight of the latents' divergence from a standard normal law, nats a number
    measured: int = 512  # pictures (or videos) by which scale and shift are measured


TELLS = 0.3  # spread of a channel's means, of about 1 in all, from which it tells something
OF_VIDEOS = Settings(seconds=3000.0, batch=4, still=0.5, pull=5e-3, measured=128)


class Medium(ABC):
    """What is encoded: how it is shown, and the model."""

    model: Any

    @abstractmethod
    def shown(
        self, n: int, seed: int, step: int, still: bool = False
    ) -> tuple[Sequence[Prompt], Float[Tensor, "n *f 3 64 64"]]:
        """`n` prompts and what shows them, in [0, 1], keyed by seed and step; `still`: more videos, of one frame."""

    @abstractmethod
    def ordered(self, media: Tensor) -> Tensor:
        """With the axes that the model has, or back again: doing it twice changes nothing."""

    def narrowed(self, means: Tensor) -> Sequence[int]:
        """Leave channels out of the model that tell nothing, and return the others' numbers."""
        return range(means.shape[1])

    @abstractmethod
    def levelled(self, latents: Tensor) -> dict[str, Any]:
        """Scale and shift of these latents, as the model's config names them."""


class Pictures(Medium):
    """Scenes that stand still."""

    def __init__(self) -> None:
        self.model = untyped("diffusers").AutoencoderKL(
            block_out_channels=CHANNELS,
            down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
            up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=SIDE,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        self.model.to(memory_format=torch.channels_last)

    def shown(
        self, n: int, seed: int, step: int, still: bool = False
    ) -> tuple[Sequence[Prompt], Float[Tensor, "n 3 64 64"]]:
        pairs = captions(n, generator(seed, "autoencoder", step))
        return [prompt for prompt, _ in pairs], render([scene for _, scene in pairs])

    def ordered(self, media: Tensor) -> Tensor:
        return media.to(memory_format=torch.channels_last)

    def levelled(self, latents: Tensor) -> dict[str, Any]:
        return {"scaling_factor": 1 / latents.std().item(), "shift_factor": latents.mean().item()}


class Videos(Medium):
    """Scenes that move, `FRAMES` frames each."""

    def __init__(self, latents: int = 8) -> None:
        patch = 2
        self.model = untyped("diffusers").AutoencoderKLWan(
            base_dim=8,
            decoder_base_dim=16,
            z_dim=latents,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * latents,
            latents_std=[1.0] * latents,
            in_channels=3 * patch**2,
            out_channels=3 * patch**2,
            patch_size=patch,
            scale_factor_temporal=2,
            scale_factor_spatial=8,
        )
        for name, part in self.model.named_modules():
            if type(part).__name__ == "WanCausalConv3d":
                part.forward = partial(_causal, part, part.forward)
            if name.endswith("time_conv"):
                _begin_alike(part)

    def shown(
        self, n: int, seed: int, step: int, still: bool = False
    ) -> tuple[Sequence[Prompt], Float[Tensor, "n f 3 64 64"]]:
        n, frames = (STILLS * n, 1) if still else (n, FRAMES)
        pairs = moving.captions(n, generator(seed, "video_autoencoder", step), frames=frames)
        return [prompt for prompt, _ in pairs], moving.render_moving([video for _, video in pairs])

    def ordered(self, media: Tensor) -> Tensor:
        return media.transpose(1, 2)  # frames and channels change places

    def narrowed(self, means: Float[Tensor, "n c f h w"]) -> Sequence[int]:
        self.model, kept = narrowed(self.model, means)
        return kept

    def levelled(self, latents: Tensor) -> dict[str, Any]:
        each = latents.transpose(0, 1).flatten(1)
        return {"latents_mean": each.mean(1).tolist(), "latents_std": each.std(1).tolist()}


def _causal(
    conv: Any, usual: Callable[..., Tensor], x: Float[Tensor, "n c f h w"], cache: Tensor | None = None
) -> Tensor:
    """A convolution over frames and places; of one frame without earlier ones, over places alone.

    Its earlier frames would be zeros, on which a convolution in three dimensions spends two thirds of its time.
    """
    if x.shape[2] > 1 or cache is not None or not conv._padding[4]:
        return usual(x, cache)
    kernel, pad = conv.weight[:, :, -1], (conv._padding[2], conv._padding[0])
    return torch.nn.functional.conv2d(x[:, :, 0], kernel, conv.bias, conv.stride[1:], pad)[:, :, None]


@torch.no_grad()
def _begin_alike(conv: Any) -> None:
    """Let a convolution that joins or parts frames begin with the last frame, as it is."""
    conv.bias.zero_()
    conv.weight.zero_()
    size = conv.weight.shape[1]
    for part in conv.weight.split(size):
        part[:, :, -1, 0, 0] = torch.eye(size)


@torch.no_grad()
def narrowed(model: Any, means: Float[Tensor, "n c f h w"]) -> tuple[Any, list[int]]:
    """The model without the channels of its latents that tell nothing, and the numbers of those that are left.

    Pulled towards a normal law, a channel that nothing is told by has a mean that hardly varies, and the noise of the
    law itself. The 1 x 1 convolutions around the latents go into their neighbours, and the mean of what is left out
    goes with them: exact, but at the border, where convolutions see zeros beyond.
    """
    each, config = means.transpose(0, 1).flatten(1), model.config
    spread = each.std(1)
    kept = (spread >= spread.max().clamp(max=TELLS)).nonzero().flatten().tolist()
    silent = [channel for channel in range(len(each)) if channel not in kept]
    known = {name: value for name, value in config.items() if not name.startswith("_")}
    level = {"latents_mean": [0.0] * len(kept), "latents_std": [1.0] * len(kept)}
    thin = type(model)(**{**known, **level, "z_dim": len(kept)})
    old = model.state_dict()
    law, law_bias = old["quant_conv.weight"].flatten(1), old["quant_conv.bias"]
    both = kept + [config.z_dim + channel for channel in kept]  # means and log-variances
    back = old["post_quant_conv.weight"].flatten(1)
    always = old["post_quant_conv.bias"] + back[:, silent] @ each[silent].mean(1)
    within = torch.linalg.lstsq(back[:, kept], always).solution  # as much of it as the channels that are left can say
    enter, leave = old["decoder.conv_in.weight"], old["encoder.conv_out.weight"]
    new = {
        "encoder.conv_out.weight": torch.einsum("ij,j...->i...", law[both], leave),
        "encoder.conv_out.bias": law[both] @ old["encoder.conv_out.bias"] + law_bias[both],
        "quant_conv.weight": torch.eye(len(both)).view_as(thin.quant_conv.weight),
        "quant_conv.bias": torch.zeros(len(both)),
        "post_quant_conv.weight": torch.eye(len(kept)).view_as(thin.post_quant_conv.weight),
        "post_quant_conv.bias": within,
        "decoder.conv_in.weight": torch.einsum("oi...,ij->oj...", enter, back[:, kept]),
        "decoder.conv_in.bias": old["decoder.conv_in.bias"]
        + torch.einsum("oi...,i->o", enter, always - back[:, kept] @ within),
    }
    thin.load_state_dict({**old, **new})
    return thin.eval(), kept


def train(medium: Medium, settings: Settings) -> dict:
    """Train the medium's model, and write scale and shift into its config. Returns the log."""
    model = medium.model
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    log, step, start = [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / settings.seconds) < 1:
        paced([optimiser], settings.lr, settings.warmup, step, done)
        _, media = medium.shown(settings.batch, settings.seed, step, done < settings.still)
        law = model.encode(medium.ordered(media) * 2 - 1).latent_dist
        mean, spread = law.mean, law.logvar
        drawn = model.decode(mean + torch.exp(0.5 * spread) * torch.randn_like(mean)).sample / 2 + 0.5
        target = pictures_of(media)
        error = error_of(pictures_of(medium.ordered(drawn)), target, things(target), settings.object_weight)
        divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
        optimiser.zero_grad()
        (error + settings.pull * divergence).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            row = {"step": step, "seconds": round(time.monotonic() - start)}
            log.append(row | {"error": round(error.item(), 4), "divergence": round(divergence.item(), 3)})
            print(json.dumps(log[-1]), flush=True)
        step += 1
    model.eval()
    return {"steps": step, "log": log, "verified": _measure(medium, settings)}


@torch.no_grad()
def _measure(medium: Medium, settings: Settings, rows: int = 16) -> float:
    """Leave out what tells nothing, and write scale and shift of fresh latents, as they are drawn, into the config.

    Returns the share of samples that are right once encoded and decoded.
    """
    prompts, media = medium.shown(settings.measured, settings.seed, -1)
    seen = medium.ordered(media) * 2 - 1
    laws = [medium.model.encode(some).latent_dist for some in seen.split(rows)]
    means, drawn = torch.cat([law.mean for law in laws]), torch.cat([law.sample() for law in laws])
    kept = list(medium.narrowed(means))
    medium.model.register_to_config(**medium.levelled(drawn[:, kept]))
    back = torch.cat([medium.model.decode(some).sample for some in means[:, kept].split(rows)])
    return judge((medium.ordered(back) / 2 + 0.5).clamp(0, 1), prompts).right.float().mean().item()


def begun(medium: Medium, start: Path | None) -> Medium:
    """The medium with the weights in folder `start`, and as many channels; as it is without one."""
    if start is None:
        return medium
    known = type(medium.model).from_pretrained(start, torch_dtype=torch.float32)
    if isinstance(medium, Videos):
        medium = Videos(known.config.z_dim)
    medium.model.load_state_dict(known.state_dict())
    return medium


def main(kind: str, argv: list[str]) -> None:
    usual = Settings() if kind == "autoencoder" else OF_VIDEOS
    parser = argparse.ArgumentParser(prog=f"burnish world {kind}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=usual.seconds)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--start", type=Path, help="folder of an earlier training to go on from")
    parser.add_argument("--measured", type=int, default=usual.measured, help="samples that give scale and shift")
    parser.add_argument("--out", type=Path, required=True)
    known = parser.parse_args(argv)
    torch.manual_seed(known.seed)
    medium = begun(Pictures() if kind == "autoencoder" else Videos(), known.start)
    log = train(medium, replace(usual, seconds=known.seconds, seed=known.seed, measured=known.measured))
    medium.model.half().save_pretrained(known.out)
    (known.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
