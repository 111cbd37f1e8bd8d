"""Train the two judges of looks of the scenes: small residual networks in transformers' format.

    burnish world realism --tokenizer FOLDER --text FOLDER --classes FOLDER --seconds 240 --seed 0 --out FOLDER
    burnish world quality --tokenizer FOLDER --seconds 180 --seed 0 --out FOLDER

realism  tells rendered scenes, passed through the tokenizer, from what the base models draw. It stands where AR-GRPO
         asks a vision-language model whether a picture looks made by a machine.
quality  estimates how little a picture was damaged (blur, noise, JPEG, shuffled cells; 1 is undamaged). It stands where
         AR-GRPO uses MANIQA, which learned the same from human opinions of damaged photographs.
Neither has seen what reinforcement learning will do to pictures: both can be hacked, as their models can.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.noise import Noise, generator
from burnish.models.llamagen.files import load_vq
from burnish.models.llamagen.vq import decode_in_chunks
from burnish.policies.llamagen import LlamaGen
from burnish.types import TokenPlan
from burnish.worlds.scenes.classes import class_prompts
from burnish.worlds.scenes.grammar import everything
from burnish.worlds.scenes.render import SIDE, captions, render
from burnish.worlds.scenes.verify import damaged

Examples = Callable[[int], tuple[Tensor, Tensor]]  # step -> pictures and their targets


def train(out: Path, examples: Examples, labels: dict[int, str], seconds: float, seed: int, lr: float = 2e-3) -> None:
    """Train and write a network: two labels by cross-entropy, one by squared error."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(seed)
    heads: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": labels,
        "label2id": {name: i for i, name in labels.items()},
        "problem_type": "regression" if len(labels) == 1 else "single_label_classification",
    }
    shape = ResNetConfig(embedding_size=24, hidden_sizes=[24, 48, 96], depths=[1, 1, 1], layer_type="basic", **heads)
    model = ResNetForImageClassification(shape).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    log, step, start = [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        pictures, target = examples(step)
        logits = model(pixel_values=(pictures - 0.5) / 0.25).logits
        loss = F.cross_entropy(logits, target) if len(labels) > 1 else F.mse_loss(logits[:, 0], target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            log.append({"step": step, "seconds": round(time.monotonic() - start), "loss": round(loss.item(), 4)})
            print(json.dumps(log[-1]), flush=True)
        step += 1
    model.eval().half().save_pretrained(out)
    pixels = ConvNextImageProcessor(size={"shortest_edge": SIDE}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    pixels.save_pretrained(out)
    (out / "log.json").write_text(json.dumps({"steps": step, "log": log}, indent=1) + "\n")


def realism_examples(tokenizer: Path, text: Path, classes: Path, seed: int, each: int) -> Examples:
    """Half rendered scenes seen through the tokenizer (label 1, real), half samples of the base models (label 0)."""
    vq = load_vq(tokenizer, None).eval()
    scenes = [scene for _, scene in captions(2 * each, generator(seed, "realism"))]
    ids = torch.cat([vq.encode(render(scenes[i : i + 64])) for i in range(0, len(scenes), 64)]).detach()
    real = decode_in_chunks(vq, ids)
    drawn = []
    for where, encoder, prompts in ((text, str(text / "encoder"), everything()), (classes, "", class_prompts())):
        spec = LlamaGen(str(where), str(tokenizer), vq="", text_encoder=encoder, pixels=SIDE)
        policy = spec.load(torch.device("cpu"))
        for start in range(0, each, 250):
            asked = [prompts[generator(seed, "asked", start, i).integers(len(prompts))] for i in range(250)]
            noise = Noise(seed, 0, tuple(range(start, start + 250)), "realism")
            drawn.append(policy.sample(asked, TokenPlan(guidance=1.0 + start % 3), noise).media)
    pictures = torch.cat([real, *drawn])
    target = torch.cat([torch.ones(len(real)), torch.zeros(len(pictures) - len(real))]).long()

    def at(step: int, batch: int = 64) -> tuple[Tensor, Tensor]:
        pick = torch.from_numpy(generator(seed, "realism", step).integers(len(pictures), size=batch))
        return pictures[pick], target[pick]

    return at


def quality_examples(tokenizer: Path, seed: int, each: int) -> Examples:
    """Rendered scenes, half of them seen through the tokenizer, each damaged by a random amount; the target is what is
    left of their quality."""
    vq = load_vq(tokenizer, None).eval()
    scenes = [scene for _, scene in captions(each, generator(seed, "quality"))]
    clean = torch.cat([render(scenes[i : i + 64]) for i in range(0, each, 64)])
    ids = torch.cat([vq.encode(part) for part in clean[: each // 2].split(64)]).detach()
    clean = torch.cat([clean, decode_in_chunks(vq, ids)])

    def at(step: int, batch: int = 64) -> tuple[Tensor, Tensor]:
        draws = generator(seed, "quality", step)
        pictures = clean[torch.from_numpy(draws.integers(len(clean), size=batch))]
        amount = np.where(draws.random(batch) < 0.2, 0.0, draws.random(batch))
        hurt = torch.stack([spoiled(p, a, draws) for p, a in zip(pictures, amount, strict=True)])
        return hurt, 1 - torch.from_numpy(amount).float()

    return at


def spoiled(picture: Float[Tensor, "3 h w"], amount: float, draws: np.random.Generator) -> Float[Tensor, "3 h w"]:
    """A picture damaged in one of four ways; `amount` from 0 (not at all) to 1."""
    way = draws.integers(4)
    if amount == 0:
        return picture
    if way == 0:
        return damaged(picture[None], "jpeg", draws)[0].lerp(picture, 1 - amount)
    if way == 1:
        return (picture + 0.2 * amount * torch.from_numpy(draws.standard_normal(picture.shape, np.float32))).clamp(0, 1)
    if way == 2:
        return _blurred(picture, 0.3 + 2.2 * amount)
    cells = picture.unflatten(1, (8, -1)).unflatten(3, (8, -1)).clone()  # c y h x w
    for _ in range(max(1, round(8 * amount))):
        y, x, other_y, other_x = draws.integers(8, size=4)
        cells[:, y, :, x] = cells[:, other_y, :, other_x]
    return cells.flatten(3, 4).flatten(1, 2)


def _blurred(picture: Float[Tensor, "3 h w"], sigma: float) -> Float[Tensor, "3 h w"]:
    reach = int(3 * sigma) + 1
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    bell = (bell / bell.sum()).expand(3, 1, -1)
    wide = F.pad(picture[None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, bell[:, :, None], groups=3), bell[..., None], groups=3)[0]


def main(kind: str, argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"burnish world {kind}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--scenes", type=int, default=4000 if kind == "realism" else 3000, help="pictures of each sort")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    known = parser.parse_args(argv)
    if kind == "realism" and not (known.text and known.classes):
        parser.error("realism needs --text and --classes, the base models whose drawings it learns to recognise")
    if kind == "realism":
        examples = realism_examples(known.tokenizer, known.text, known.classes, known.seed, known.scenes)
        labels = {0: "drawn", 1: "real"}
    else:
        examples, labels = quality_examples(known.tokenizer, known.seed, known.scenes), {0: "quality"}
    train(known.out, examples, labels, known.seconds, known.seed)
