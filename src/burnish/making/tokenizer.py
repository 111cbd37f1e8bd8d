"""Train the scenes' tokenizer: a small VQ-8 in LlamaGen's format, from rendered pictures alone.

    burnish world tokenizer --seconds 1500 --seed 0 --out FOLDER

A VQGAN without the adversary, because a coloured shape needs none: absolute error of the pixels, counted more where the
picture is not background, and the two distances of van den Oord et al. 2017 (arXiv:1711.00937, eq. 3) between unit
vectors. Codes that nobody used for a while are moved to features that are badly served. The arithmetic is bfloat16 over
float32 weights, three times faster than float32 on a CPU that has it.

Most of a picture is plain background, and a codebook left to itself spends a third of its codes on it: forty ways to
say nothing, among which a model then chooses by chance, at a nat a token that every gradient has to carry. So codes are
placed where objects are (a background cell counts `plain` as much), and background cells are held closer to their code.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.making.fitting import paced
from burnish.models.llamagen.files import save_model
from burnish.models.llamagen.vq import VQConfig, VQModel
from burnish.worlds.scenes.render import SIDE, captions, render

CONFIG = VQConfig(channels=32, multipliers=(1, 1, 2, 2), latent=64, codes=384, width=8)


@dataclass(frozen=True)
class Settings:
    """How the tokenizer is trained."""

    seconds: float = 1500.0  # wall clock; the learning rate falls to zero at its end
    seed: int = 0
    batch: int = 32  # pictures a step
    lr: float = 1.2e-3
    warmup: int = 100  # steps of rising learning rate
    continuous: int = 150  # first steps, without a codebook: features settle before they are quantised
    revive: int = 40  # steps between searches for unused codes
    object_weight: float = 4.0  # extra weight of pixels that are not background
    commitment: float = 0.25  # pull of features towards their code, relative to the pull of codes towards features
    plain: float = 0.02  # weight of a background cell where codes are placed; an object's is 1
    plain_commitment: float = 2.0  # commitment of background cells


def train(settings: Settings) -> tuple[VQModel, dict]:
    """A trained tokenizer, and its log."""
    torch.manual_seed(settings.seed)
    model = VQModel(CONFIG)
    fast = copy.deepcopy(model).bfloat16()
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    used = torch.zeros(CONFIG.codes)
    log, step, start = [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / settings.seconds) < 1:
        paced([optimiser], settings.lr, settings.warmup, step, done)
        images = render([scene for _, scene in captions(settings.batch, generator(settings.seed, "tokenizer", step))])
        thing = things(images)
        cell = F.max_pool2d(thing, SIDE // 8).permute(0, 2, 3, 1).squeeze(-1)  # (b, 8, 8), 1 where an object is
        weight = settings.plain + (1 - settings.plain) * cell.flatten()
        z = fast.features(images.bfloat16()).float()
        z = F.normalize(z.permute(0, 2, 3, 1), dim=-1)
        if step == settings.continuous:
            _spread(model, fast, z.detach().flatten(0, 2), weight, settings.seed)
        vectors, distance = z, z.new_zeros(())
        if step >= settings.continuous:
            ids = fast.quantize.nearest(z.detach().flatten(0, 2).bfloat16())
            codes = fast.quantize.vectors(ids).float().view(z.shape)
            used.index_add_(0, ids, torch.ones(len(ids)))
            held = settings.plain_commitment + (settings.commitment - settings.plain_commitment) * cell
            distance = (codes - z.detach()).square().sum(-1).mean()
            distance = distance + (held * (z - codes.detach()).square().sum(-1)).mean()
            vectors = z + (codes - z).detach()
        picture = fast.render(vectors.permute(0, 3, 1, 2).bfloat16()).float()
        error = error_of(picture, images, thing, settings.object_weight)
        (error + 0.5 * distance).backward()
        for slow, quick in zip(model.parameters(), fast.parameters(), strict=True):
            slow.grad = None if quick.grad is None else quick.grad.float()
            quick.grad = None
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step > settings.continuous and step % settings.revive == 0 and done < 0.8:
            _revive(model, used, z.detach().flatten(0, 2), weight, step + settings.seed)
            used.zero_()
        with torch.no_grad():
            for slow, quick in zip(model.parameters(), fast.parameters(), strict=True):
                quick.copy_(slow)
        if step % 50 == 0:
            found = {"error": error.item(), "distance": distance.item(), "norm": norm.item()}
            row = {"step": step, "seconds": round(time.monotonic() - start), "codes": int((used > 0).sum())}
            row |= {name: round(value, 4) for name, value in found.items()}
            log.append(row)
            print(json.dumps(row), flush=True)
        step += 1
    return model.eval(), {"steps": step, "log": log}


def things(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 at objects and one pixel around them: where the colour is not the corner's, which is always background."""
    thing = ((images - images[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.02).float()
    return F.max_pool2d(thing, 3, stride=1, padding=1)


def error_of(
    picture: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"], thing: Float[Tensor, "b 1 h w"], extra: float
) -> Float[Tensor, ""]:
    """Mean absolute error of the pixels, those of objects counting `1 + extra` times."""
    return ((picture - target).abs() * (1 + extra * thing)).mean()


@torch.no_grad()
def _spread(
    model: VQModel, fast: VQModel, features: Float[Tensor, "n w"], weight: Float[Tensor, " n"], seed: int
) -> None:
    """Start the codes on features that are far from one another (k-means++ seeding, Arthur and Vassilvitskii 2007)."""
    draws = torch.Generator().manual_seed(seed)
    chosen = features[torch.randint(len(features), (1,), generator=draws)]
    gap = 1 - features @ chosen[0]
    for _ in range(CONFIG.codes - 1):
        pick = torch.multinomial(weight * gap.clamp(min=1e-6), 1, generator=draws)
        chosen = torch.cat([chosen, features[pick]])
        gap = torch.minimum(gap, 1 - features @ chosen[-1])
    for quantizer in (model.quantize, fast.quantize):
        quantizer.embedding.weight.copy_(chosen)


@torch.no_grad()
def _revive(
    model: VQModel,
    used: Float[Tensor, " codes"],
    features: Float[Tensor, "n w"],
    weight: Float[Tensor, " n"],
    seed: int,
) -> None:
    """Move codes that were not used onto features drawn in proportion to how badly they are served."""
    idle = (used == 0).nonzero().flatten()
    if len(idle) == 0:
        return
    codes = F.normalize(model.quantize.embedding.weight, dim=-1)
    gap = weight * (1 - (features @ codes.T).amax(1)).clamp(min=1e-7)
    picks = torch.multinomial(gap, len(idle), replacement=True, generator=torch.Generator().manual_seed(seed))
    model.quantize.embedding.weight[idle] = features[picks]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="burnish world tokenizer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=Settings.seconds)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--out", type=Path, required=True)
    known = parser.parse_args(argv)
    model, log = train(Settings(seconds=known.seconds, seed=known.seed))
    save_model(model, known.out, torch.float16)
    (known.out / "tokenizer_log.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
