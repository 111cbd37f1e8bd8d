"""Train the scenes' base models: LlamaGens over the scenes' tokenizer, on rendered scenes and their captions.

    burnish world text    --tokenizer FOLDER --seconds 900 --seed 0 --out TAUGHT
    burnish world text    --tokenizer FOLDER --seconds 120 --seed 1 --start TAUGHT --mistakes 0.4 --out FOLDER

Cross-entropy of the tokens, the prompt left out for one in ten (LlamaGen's recipe for guidance). The text model's T5
encoder is trained with it and frozen from then on. Base models see all combinations: which of them
are held out concerns reinforcement learning, which must not have trained on what it is asked afterwards.

A base model of the world is finished on captions with mistakes: one thing too many, the first thing twice, left for
right, colours exchanged. Such captions abound on the web, and text-to-image models err in just these ways (GenEval,
Ghosh et al. 2023). A model that has learned from true captions and then from these knows what was asked and does
otherwise in a known share of cases: that share is the room which reinforcement learning has.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.making.fitting import bfloat16, optimisers, paced
from burnish.models.llamagen.files import load_gpt, load_vq, save_model
from burnish.models.llamagen.gpt import GPT, GPTConfig, Slots
from burnish.types import Prompt
from burnish.worlds.scenes.classes import class_prompts
from burnish.worlds.scenes.grammar import NUMBERS, vocabulary
from burnish.worlds.scenes.render import Scene, captions, draw_scene, render
from burnish.worlds.scenes.words import word_tokenizer

S = TypeVar("S")
SLOTS = 12  # longest prompt and its end, in words
TEXT_WIDTH = 96
SHAPE = {"dim": 192, "layers": 6, "heads": 6}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
OPPOSITE |= {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "towards": "away from",
    "away from": "towards",
}
TAKEN_FOR = {"red": "purple", "purple": "red", "green": "blue", "blue": "green", "yellow": "black", "black": "yellow"}


@dataclass(frozen=True)
class Settings:
    """How a base model is trained."""

    seconds: float = 900.0  # wall clock; the learning rate falls to zero at its end
    seed: int = 0
    scenes: int = 40_000  # rendered and tokenised once, before training
    batch: int = 64  # images a step
    lr: float = 2e-3
    warmup: int = 100  # steps of rising learning rate
    dropout: float = 0.1  # share of images whose prompt is left out
    mistakes: float = 0.0  # share of captions whose picture shows something else
    start: Path | None = None  # folder of an earlier training to go on from


@dataclass(frozen=True)
class Corpus:
    """Tokenised scenes, and the prompt of each."""

    ids: Int[Tensor, "n k"]
    prompts: list[Prompt]


def train_text(settings: Settings, tokenizer: Path, out: Path) -> None:
    """Train and write the text-conditional model, with its encoder beside it in `out/encoder`."""
    from transformers import T5Config, T5EncoderModel

    pairs = captions(settings.scenes, generator(settings.seed, "text"))
    corpus = tokenised(careless(pairs, settings.mistakes, settings.seed, draw_scene), tokenizer)
    torch.manual_seed(settings.seed)
    words = word_tokenizer(vocabulary(), SLOTS)
    tower = {"d_model": TEXT_WIDTH, "d_kv": 24, "d_ff": 256, "num_layers": 3, "num_heads": 4, "dropout_rate": 0.0}
    shape = T5Config(vocab_size=len(words), **tower)
    encoder = T5EncoderModel(shape)
    if settings.start:
        encoder = T5EncoderModel.from_pretrained(settings.start / "encoder", dtype=torch.float32).train()
    gpt = (
        load_gpt(settings.start, None)
        if settings.start
        else GPT(GPTConfig(**SHAPE, vocabulary=_codes(tokenizer), caption_dim=TEXT_WIDTH, caption_length=SLOTS))
    )
    texts = list(dict.fromkeys(p.text for p in corpus.prompts))
    row = {text: i for i, text in enumerate(texts)}
    which = torch.tensor([row[p.text] for p in corpus.prompts])
    encoded = words(texts, padding="max_length", max_length=SLOTS, return_tensors="pt")

    def prefix(pick: Tensor, without: Tensor) -> Slots:
        distinct, rows = which[pick].unique(return_inverse=True)
        mask = encoded.attention_mask[distinct]
        hidden = encoder(encoded.input_ids[distinct], attention_mask=mask).last_hidden_state
        lengths = mask.sum(1, keepdim=True)
        visible = torch.arange(SLOTS) >= SLOTS - lengths  # captions are padded on the left, as LlamaGen's are
        source = (torch.arange(SLOTS) - (SLOTS - lengths)).clamp(min=0).unsqueeze(-1)
        hidden = hidden.gather(1, source.expand(-1, -1, hidden.shape[-1]))
        both = Slots.concatenate([gpt.caption_slots(hidden, visible), gpt.null_caption_slots(visible)])
        return both.take(rows + without.long() * len(distinct))

    log = _fit(gpt, [*gpt.parameters(), *encoder.parameters()], prefix, corpus, settings)
    save_model(gpt.eval(), out, torch.float16)
    encoder.half().save_pretrained(out / "encoder")
    words.save_pretrained(out / "encoder")
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")


def train_classes(settings: Settings, tokenizer: Path, out: Path) -> None:
    """Train and write the class-conditional model."""
    prompts, draws = class_prompts(), generator(settings.seed, "classes")
    chosen = [prompts[draws.integers(len(prompts))] for _ in range(settings.scenes)]
    pairs = [(p, draw_scene(p.facts, draws)) for p in chosen]
    corpus = tokenised(careless(pairs, settings.mistakes, settings.seed, draw_scene), tokenizer)
    torch.manual_seed(settings.seed)
    shape = GPTConfig(**SHAPE, vocabulary=_codes(tokenizer), classes=len(prompts))
    gpt = load_gpt(settings.start, None) if settings.start else GPT(shape)
    classes = torch.tensor([p.facts["class_id"] for p in chosen])

    def prefix(pick: Tensor, without: Tensor) -> Slots:
        return gpt.class_slots(classes[pick].masked_fill(without, len(prompts)))

    log = _fit(gpt, list(gpt.parameters()), prefix, corpus, settings)
    save_model(gpt.eval(), out, torch.float16)
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")


def careless(
    pairs: list[tuple[Prompt, S]],
    mistakes: float,
    seed: int,
    draw: Callable[[Mapping[str, Any], np.random.Generator], S],
) -> list[tuple[Prompt, S]]:
    """The same prompts, a share of them with something that `draw` made and of which they are not true."""
    draws = generator(seed, "mistakes")
    wrong = draws.random(len(pairs)) < mistakes
    return [(p, draw(mistaken(p.facts), draws) if w else s) for (p, s), w in zip(pairs, wrong, strict=True)]


def mistaken(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is shown when the caption with these facts is careless: one mistake, the same one always."""
    first, *others = facts["objects"]
    match facts["category"]:
        case "single":  # one too many
            objects = [{**first, "count": 2}]
        case "counting":  # one too many, or too few
            objects = [{**first, "count": first["count"] + (1 if first["count"] < max(NUMBERS) else -1)}]
        case "two":  # the first thing twice
            objects = [{**first, "count": 2}]
        case "attribution":  # each has the other's colour
            objects = [{**first, "colour": others[0]["colour"]}, {**others[0], "colour": first["colour"]}]
        case "position":
            return {**facts, "relation": OPPOSITE[facts["relation"]]}
        case "motion" | "towards":  # the other way
            return {**facts, "motions": (OPPOSITE[facts["motions"][0]], *facts["motions"][1:])}
        case "beside" | "both":  # each does what the other should
            return {**facts, "motions": facts["motions"][::-1]}
        case _:  # colours, classes and painted things that move
            objects = [{**first, "colour": TAKEN_FOR[first["colour"]]}]
    return {**facts, "objects": tuple(objects)}


@torch.no_grad()
def tokenised(pairs: list[tuple[Prompt, Scene]], tokenizer: Path, rows: int = 64) -> Corpus:
    """The scenes as token ids."""
    vq = load_vq(tokenizer, None).eval().bfloat16()
    ids = []
    for start in range(0, len(pairs), rows):
        pictures = render([scene for _, scene in pairs[start : start + rows]])
        ids.append(vq.encode(pictures.bfloat16()))
    return Corpus(torch.cat(ids), [prompt for prompt, _ in pairs])


def _fit(
    gpt: GPT, weights: list, prefix: Callable[[Tensor, Tensor], Slots], corpus: Corpus, settings: Settings
) -> dict:
    used = optimisers(gpt.layers, weights, decay=0.05)
    draws = torch.Generator().manual_seed(settings.seed)
    side = round(corpus.ids.shape[1] ** 0.5)
    log, step, start = [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / settings.seconds) < 1:
        paced(used, settings.lr, settings.warmup, step, done)
        pick = torch.randint(len(corpus.ids), (settings.batch,), generator=draws)
        without = torch.rand(settings.batch, generator=draws) < settings.dropout
        ids = corpus.ids[pick]
        with bfloat16():
            logits = gpt.output(gpt.all(ids, prefix(pick, without), side))
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        for optimiser in used:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in used:
            optimiser.step()
        if step % 100 == 0:
            row = {"step": step, "seconds": round(time.monotonic() - start), "nats_per_token": round(loss.item(), 4)}
            log.append(row)
            print(json.dumps(row), flush=True)
        step += 1
    return {"steps": step, "log": log}


def _codes(tokenizer: Path) -> int:
    return json.loads((tokenizer / "config.json").read_text())["tokenizer"]["codes"]


def main(kind: str, argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"burnish world {kind}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=Settings.seconds)
    parser.add_argument("--scenes", type=int, default=Settings.scenes)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of an earlier training to go on from")
    parser.add_argument("--mistakes", type=float, default=Settings.mistakes, help="share of careless captions")
    parser.add_argument("--lr", type=float, default=Settings.lr)
    known = parser.parse_args(argv)
    train = train_text if kind == "text" else train_classes
    fields = {name: value for name, value in vars(known).items() if name not in ("tokenizer", "out")}
    train(Settings(**fields), known.tokenizer, known.out)
