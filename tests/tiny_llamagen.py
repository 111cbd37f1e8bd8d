"""Small random LlamaGens, saved in the real format and loaded as a user loads them."""

from dataclasses import replace
from pathlib import Path

import torch

from burnish.formulas.noise import Noise
from burnish.models.llamagen.files import save_model
from burnish.models.llamagen.gpt import GPT, GPTConfig
from burnish.models.llamagen.vq import VQConfig, VQModel
from burnish.policies.llamagen import LlamaGen
from burnish.types import Prompt
from burnish.worlds.scenes.words import word_tokenizer

TEXTS = ("a red circle", "two blue stars above a square", "star", "a red circle and a star")


def spec(folder: Path, text: bool, **fields) -> LlamaGen:
    """Weights in `folder`, and the settings that load them. 4x4 tokens of 12 codes."""
    torch.manual_seed(3)
    shape = GPTConfig(dim=32, layers=2, heads=2, vocabulary=12, classes=5)
    shape = replace(shape, caption_dim=16, caption_length=9) if text else shape
    gpt = GPT(shape)
    for weight in gpt.parameters():
        torch.nn.init.normal_(weight, 1.0 if weight.dim() == 1 else 0.0, 0.1 if weight.dim() == 1 else 0.2)
    torch.nn.init.normal_(gpt.output.weight, std=0.5)
    save_model(gpt, folder / "model")
    save_model(VQModel(VQConfig(32, (1, 2), 32, 12, 8)), folder / "model")
    if text:
        from transformers import T5Config, T5EncoderModel

        tokenizer = word_tokenizer(" ".join(TEXTS).split(), 9)
        config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder / "t5")
        tokenizer.save_pretrained(folder / "t5")
    model = str(folder / "model")
    return LlamaGen(model, model, vq="", pixels=8, text_encoder=str(folder / "t5") if text else "", **fields)


def prompts(text: bool, each: int = 2) -> tuple[Prompt, ...]:
    if text:
        distinct = [Prompt(str(i), t) for i, t in enumerate(TEXTS)]
    else:
        distinct = [Prompt(str(i), "", {"class_id": i}) for i in (4, 0, 2)]
    return tuple(p for p in distinct for _ in range(each))


def noise(b: int, step: int = 0) -> Noise:
    return Noise(7, step, tuple(range(b)))
