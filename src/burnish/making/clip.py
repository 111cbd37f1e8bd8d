"""Train the scenes' CLIP: pictures beside their captions, in transformers' format.

    burnish world clip --seconds 420 --seed 0 --out FOLDER

The loss is CLIP's (Radford et al. 2021), with two changes that a small world asks for. A caption that is true of
another picture of the batch is no negative for it: truth is known, so such pairs are left out. And every picture also
meets near misses of its own caption (another colour, shape, number or relation), or nothing would ask the model to
tell a red circle and a blue star from a blue circle and a red star.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.making.fitting import paced
from burnish.types import Prompt
from burnish.worlds.scenes.grammar import everything, vocabulary
from burnish.worlds.scenes.render import SIDE, Scene, captions, render
from burnish.worlds.scenes.verify import satisfies
from burnish.worlds.scenes.words import word_tokenizer

LENGTH = 12  # words


@dataclass(frozen=True)
class Settings:
    """How the model is trained."""

    seconds: float = 420.0  # wall clock; the learning rate falls to zero at its end
    seed: int = 0
    batch: int = 96  # pictures a step
    near: int = 3  # near misses of each caption
    lr: float = 1e-3
    warmup: int = 100  # steps of rising learning rate
    noise: float = 0.03  # deviation of noise on the pixels, so that renderer and decoder look alike to the model


def train(settings: Settings, out: Path) -> None:
    """Train and write the model with its tokenizer and picture settings."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(settings.seed)
    words = word_tokenizer(vocabulary(), LENGTH)
    tower = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4}
    text = {**tower, "num_hidden_layers": 2, "vocab_size": len(words), "max_position_embeddings": LENGTH,
            "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}  # fmt: skip
    vision = {**tower, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.05)
    neighbours = _neighbours()
    log, step, start = [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / settings.seconds) < 1:
        paced([optimiser], settings.lr, settings.warmup, step, done)
        draws = generator(settings.seed, "clip", step)
        pairs = captions(settings.batch, draws)
        texts = _with_near_misses([p for p, _ in pairs], neighbours, settings.near, draws)
        pictures = render([scene for _, scene in pairs])
        pictures = pictures + settings.noise * torch.from_numpy(draws.standard_normal(pictures.shape, np.float32))
        tokens = words([p.text for p in texts], padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            a = model.get_image_features(pixel_values=(pictures - 0.5) / 0.25).pooler_output.float()
            b = model.get_text_features(**tokens).pooler_output.float()
        logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T * model.logit_scale.exp().clamp(max=50)
        loss, right = _loss(logits, _truth([scene for _, scene in pairs], texts, settings.near))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            log.append({"step": step, "seconds": round(time.monotonic() - start), "loss": round(loss.item(), 4),
                        "right": round(right, 3), "scale": round(model.logit_scale.exp().item(), 2)})  # fmt: skip
            print(json.dumps(log[-1]), flush=True)
        step += 1
    model.eval().half().save_pretrained(out)
    words.save_pretrained(out)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=SIDE, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(out)
    (out / "log.json").write_text(json.dumps({"steps": step, "log": log}, indent=1) + "\n")


def _loss(logits: Tensor, truth: Tensor) -> tuple[Tensor, float]:
    """CLIP's loss in both directions over `b` pictures and `t` texts, the first `b` of which are theirs; and how often
    the picture finds its own text among the false ones."""
    own = torch.arange(len(logits))
    other = truth.clone()
    other[own, own] = False
    apart = logits.masked_fill(other, -torch.inf)
    loss = (F.cross_entropy(apart, own) + F.cross_entropy(apart[:, : len(own)].T, own)) / 2
    return loss, (apart.argmax(1) == own).float().mean().item()


def _truth(scenes: Sequence[Scene], texts: Sequence[Prompt], near: int) -> Tensor:
    """Which texts may be true of which scenes. Only where the shapes agree is there anything to check, and a near miss
    made for another picture is left out rather than checked."""
    shown = [sorted(o.shape for o in scene.objects) for scene in scenes]
    truth = torch.zeros(len(scenes), len(texts), dtype=torch.bool)
    for column, prompt in enumerate(texts):
        asked = sorted(o["shape"] for o in prompt.facts["objects"] for _ in range(o["count"]))
        for row, scene in enumerate(scenes):
            alike, elsewhere = shown[row] == asked, column >= len(scenes) and (column - len(scenes)) // near != row
            truth[row, column] = alike and (elsewhere or satisfies(scene.objects, prompt.facts))
    return truth


def _neighbours() -> Mapping[str, tuple[Prompt, ...]]:
    """For every prompt, those of its category that differ from it in one thing."""
    found: dict[str, tuple[Prompt, ...]] = {}
    by_kind: dict[str, list[Prompt]] = {}
    for prompt in everything():
        by_kind.setdefault(prompt.facts["category"], []).append(prompt)
    for kind in by_kind.values():
        sets = [(p, _things(p.facts)) for p in kind]
        for prompt, things in sets:
            found[prompt.text] = tuple(p for p, other in sets if 0 < len(things ^ other) <= 4)
    return found


def _things(facts: Mapping[str, Any]) -> frozenset:
    """Everything a prompt says, as a set: object by object, attribute by attribute."""
    said = {("relation", facts["relation"])}
    for place, thing in enumerate(facts["objects"]):
        said |= {(place, name, value) for name, value in thing.items()}
    return frozenset(said)


def _with_near_misses(
    prompts: Sequence[Prompt], neighbours: Mapping[str, tuple[Prompt, ...]], near: int, draws: np.random.Generator
) -> list[Prompt]:
    extra = []
    for prompt in prompts:
        around = neighbours[prompt.text]
        extra += [around[i] for i in draws.integers(len(around), size=near)]
    return [*prompts, *extra]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="burnish world clip", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=Settings.seconds)
    parser.add_argument("--batch", type=int, default=Settings.batch, help="pictures a step")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--out", type=Path, required=True)
    known = parser.parse_args(argv)
    train(Settings(seconds=known.seconds, batch=known.batch, seed=known.seed), known.out)
