"""Train the scenes' text encoder: a small T5 encoder, from sentences alone.

    burnish world encoder --seconds 90 --seed 0 --out FOLDER

LlamaGen is trained beside a T5 that has already learned to read, and its image tokens weigh all words of a caption
alike: they see a mean over the words. So what is asked has to be in every word's feature. This encoder learns just
that: from each word, one linear layer has to name everything the sentence says.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from burnish.types import Prompt
from burnish.worlds.scenes.grammar import COLOURS, NUMBERS, RELATIONS, SHAPES, everything, vocabulary
from burnish.worlds.scenes.words import word_tokenizer

SLOTS = 12  # longest prompt and its end, in words
WIDTH = 96
TOWER = {"d_model": WIDTH, "d_kv": 24, "d_ff": 256, "num_layers": 3, "num_heads": 4, "dropout_rate": 0.0}
NOTHING = (None,)
ANSWERS = (SHAPES, COLOURS + NOTHING, (1, *NUMBERS), SHAPES + NOTHING, COLOURS + NOTHING, RELATIONS + NOTHING)


def said(prompt: Prompt) -> list[int]:
    """What a sentence says, as one number for each of ANSWERS."""
    first, *others = prompt.facts["objects"]
    second = others[0] if others else {"shape": None, "colour": None}
    facts = (first["shape"], first["colour"], first["count"], second["shape"], second["colour"])
    return [known.index(fact) for known, fact in zip(ANSWERS, (*facts, prompt.facts["relation"]), strict=True)]


def train(seconds: float, seed: int, out: Path, lr: float = 2e-3, batch: int = 256) -> None:
    """Train and write the encoder with its tokenizer."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    words = word_tokenizer(vocabulary(), SLOTS)
    encoder: Any = T5EncoderModel(T5Config(vocab_size=len(words), **TOWER)).train()
    heads = torch.nn.Linear(WIDTH, sum(len(known) for known in ANSWERS))
    prompts = everything()
    encoded = words([p.text for p in prompts], padding="max_length", max_length=SLOTS, return_tensors="pt")
    target = torch.tensor([said(p) for p in prompts])
    kinds = [p.facts["category"] for p in prompts]
    evenly = torch.tensor([1.0 / kinds.count(kind) for kind in kinds])  # categories alike, as the scenes are drawn
    weights = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    draws = torch.Generator().manual_seed(seed)
    log, step, start = [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        pick = torch.multinomial(evenly, batch, replacement=True, generator=draws)
        mask = encoded.attention_mask[pick]
        hidden = encoder(encoded.input_ids[pick], attention_mask=mask).last_hidden_state
        answers = heads(hidden[mask.bool()]).split([len(known) for known in ANSWERS], 1)
        asked = target[pick].repeat_interleave(mask.sum(1), 0)
        loss = torch.stack([F.cross_entropy(a, asked[:, i]) for i, a in enumerate(answers)]).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if step % 200 == 0:
            right = torch.stack([a.argmax(1) == asked[:, i] for i, a in enumerate(answers)], 1)
            found = {"nats_per_word": loss.item(), "right": right.all(1).float().mean().item()}
            log.append({"step": step, "seconds": round(time.monotonic() - start)})
            log[-1] |= {name: round(value, 4) for name, value in found.items()}
            print(json.dumps(log[-1]), flush=True)
        step += 1
    encoder.eval().half().save_pretrained(out)
    words.save_pretrained(out)
    (out / "log.json").write_text(json.dumps({"steps": step, "log": log}, indent=1) + "\n")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="burnish world encoder", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    known = parser.parse_args(argv)
    train(known.seconds, known.seed, known.out)
