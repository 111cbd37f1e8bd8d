"""Train the scenes' autoencoder: a small AutoencoderKL of diffusers, from rendered pictures alone.

    burnish world autoencoder --seconds 900 --seed 0 --out FOLDER

The denoisers of the world draw in its latents: 8 x 8 places of a 64 x 64 picture. Absolute error of the pixels, counted
more where the picture is not background, and a weak pull of the latents towards a standard normal law (Rombach et al.
2022, arXiv:2112.10752, section 3.1). No adversary: coloured shapes need none. Scale and shift of the latents are
measured afterwards and stand in the config, where diffusers' pipelines look for them.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.making.fitting import paced, untyped
from burnish.making.tokenizer import error_of, things
from burnish.worlds.scenes.render import SIDE, captions, render

CHANNELS = (16, 32, 32, 64)


@dataclass(frozen=True)
class Settings:
    """How the autoencoder is trained."""

    seconds: float = 900.0  # wall clock; the learning rate falls to zero at its end
    seed: int = 0
    batch: int = 16  # pictures a step
    lr: float = 2e-3
    warmup: int = 50  # steps of rising learning rate
    object_weight: float = 4.0  # extra weight of pixels that are not background
    pull: float = 3e-4  # weight of the latents' divergence from a standard normal law, nats a number


def train(settings: Settings, latents: int = 4) -> tuple[Any, dict]:
    """A trained AutoencoderKL of `latents` channels with its scale and shift, and the log."""
    torch.manual_seed(settings.seed)
    model = untyped("diffusers").AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=8,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    log, step, start = [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / settings.seconds) < 1:
        paced([optimiser], settings.lr, settings.warmup, step, done)
        images = pictures(settings.batch, settings.seed, step)
        law = model.encode(images.to(memory_format=torch.channels_last) * 2 - 1).latent_dist
        mean, spread = law.mean, law.logvar
        shown = model.decode(mean + torch.exp(0.5 * spread) * torch.randn_like(mean)).sample / 2 + 0.5
        error = error_of(shown, images, things(images), settings.object_weight)
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
    with torch.no_grad():
        z = model.encode(pictures(512, settings.seed, -1) * 2 - 1).latent_dist.mean
    model.register_to_config(scaling_factor=1 / z.std().item(), shift_factor=z.mean().item())
    return model, {"steps": step, "log": log}


def pictures(n: int, seed: int, step: int) -> Tensor:
    """`n` rendered scenes, keyed by seed and step."""
    return render([scene for _, scene in captions(n, generator(seed, "autoencoder", step))])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="burnish world autoencoder", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=Settings.seconds)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--out", type=Path, required=True)
    known = parser.parse_args(argv)
    model, log = train(Settings(seconds=known.seconds, seed=known.seed))
    model.half().save_pretrained(known.out)
    (known.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
