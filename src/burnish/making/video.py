"""Train the scenes' text-to-video model in diffusers' format: a small Wan (Wan Team 2025, arXiv:2503.20314).

    burnish world video_autoencoder --seconds 3000 --seed 0 --out AUTOENCODER
    burnish world video --autoencoder AUTOENCODER --stills 2400 --seconds 3600 --seed 0 --out TAUGHT
    burnish world video --seconds 300 --seed 1 --start TAUGHT --mistakes 0.3 --out FOLDER
    burnish world video --start TAUGHT --teacher TAUGHT --guidance 2 --out FOLDER     # to draw without guidance

Videos of moving.py have nine frames here and not eight: Wan's encoder takes the first frame and then four at a time,
and leaves out what remains (of eight frames, the last three). Nine are five frames of a latent.

A rectified flow as in making/denoisers.py, of first frames alone for `--stills` seconds: shapes and colours come from
pictures, a fifth as many tokens each, before motions do, as Wan's own did. The text encoder, a UMT5, begins as the
scenes' T5, whose function it has with one table of positions copied to every layer; words of motion begin at random,
and all is trained along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.making.autoencoder import FRAMES, STILLS
from burnish.making.denoisers import CELLS, Pupil, Settings, asked, chosen, distinct_of, fit, matched, taught_by, write
from burnish.making.fitting import untyped
from burnish.making.gpt import careless
from burnish.models.places import locate
from burnish.policies.wan import VideoAutoencoder, Wan
from burnish.types import Prompt
from burnish.worlds.scenes.moving import Moving, captions, draw_moving, render_moving, vocabulary
from burnish.worlds.scenes.render import SIDE
from burnish.worlds.scenes.words import word_tokenizer

SLOTS = 10  # longest prompt and its end, in words: what the recipe's text_length has to be
USUAL = Settings(seconds=3600.0, scenes=12_000, batch=32)


class Video(Pupil):
    """Wan with a text encoder of words.

    vae    its autoencoder; that of the earlier training is kept
    text   folder of a T5 encoder and its tokenizer of words, to begin with
    """

    def __init__(self, vae: Any, text: Path, settings: Settings) -> None:
        diffusers = untyped("diffusers")
        start, self.guidance = settings.start, settings.guidance
        self.teacher = None
        if settings.teacher:
            teacher = Wan(str(settings.teacher), height=SIDE, width=SIDE, frames=FRAMES, text_length=SLOTS)
            self.teacher = teacher.load(torch.device("cpu"))
        if start:
            self.pipeline = diffusers.WanPipeline.from_pretrained(start, torch_dtype=torch.float32)
        else:
            encoder, words = reader(text)
            transformer = diffusers.WanTransformer3DModel(
                num_attention_heads=5,
                attention_head_dim=32,
                in_channels=vae.config.z_dim,
                out_channels=vae.config.z_dim,
                text_dim=encoder.config.d_model,
                freq_dim=64,
                ffn_dim=640,
                num_layers=6,
                rope_max_seq_len=CELLS,
            )
            self.pipeline = diffusers.WanPipeline(
                tokenizer=words,
                text_encoder=encoder,
                vae=vae,
                scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
                transformer=transformer,
            )
        self.network = self.pipeline.transformer

    def blocks(self) -> torch.nn.Module:
        return self.network.blocks

    def encoders(self) -> Sequence[torch.nn.Module]:
        return (self.pipeline.text_encoder,)

    def loss(self, x: Float[Tensor, "b c f h w"], texts: Sequence[str], draws: torch.Generator) -> Float[Tensor, ""]:
        distinct, rows = distinct_of(texts)
        features, _ = self.pipeline.encode_prompt(
            distinct, do_classifier_free_guidance=False, max_sequence_length=SLOTS, device=torch.device("cpu")
        )
        shift = x.shape[2] ** 0.5  # frames repeat each other, so that as much noise hides less (Esser et al. 2024)
        return matched(
            x, draws, lambda noisy, t: self.network(noisy, t * 1000, features[rows]).sample,
            partial(self.taught, texts) if self.teacher else None, shift,
        )  # fmt: skip

    @torch.no_grad()
    def taught(
        self, texts: Sequence[str], noisy: Float[Tensor, "b c f h w"], t: Float[Tensor, " b"], usual: Tensor
    ) -> Float[Tensor, "b c f h w"]:
        """The teacher's velocities."""
        assert self.teacher is not None
        return self.teacher.velocity(noisy, t, [Prompt(text, text) for text in texts], self.guidance)


def reader(text: Path) -> tuple[Any, Any]:
    """A UMT5 encoder that reads known words as the T5 in folder `text` does, and its tokenizer, of the words of motion.

    Both differ in one thing: T5's first layer lends its table of positions to the others, UMT5's have their own.
    """
    from transformers import AutoTokenizer, T5EncoderModel, UMT5Config, UMT5EncoderModel

    known: Any = T5EncoderModel.from_pretrained(text, dtype=torch.float32)
    old, words = AutoTokenizer.from_pretrained(text).get_vocab(), word_tokenizer(vocabulary(), SLOTS)
    config = known.config.to_dict()
    shape = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "dropout_rate")
    encoder: Any = UMT5EncoderModel(UMT5Config(vocab_size=len(words), **{name: config[name] for name in shape}))
    weights = known.encoder.state_dict()
    table = next(name for name in weights if name.endswith("relative_attention_bias.weight"))
    for layer in range(config["num_layers"]):
        weights[table.replace("block.0.", f"block.{layer}.")] = weights[table]
    vectors = weights["embed_tokens.weight"]
    fresh = vectors.std() * torch.randn(len(words), vectors.shape[1])
    for word, row in words.get_vocab().items():
        if word in old:
            fresh[row] = vectors[old[word]]
    encoder.encoder.load_state_dict({**weights, "embed_tokens.weight": fresh})
    return encoder, words


def train(settings: Settings, autoencoder: Path, text: Path, stills: float = 0.0) -> tuple[Any, dict]:
    """A trained pipeline, its text encoder frozen, and the log. One that is gone on with keeps its own autoencoder.

    stills  seconds before, of first frames alone
    """
    wan = untyped("diffusers").AutoencoderKLWan
    vae = None if settings.start else wan.from_pretrained(autoencoder, torch_dtype=torch.float32).requires_grad_(False)
    torch.manual_seed(settings.seed)
    pupil = Video(vae, text, settings)

    def taught(seconds: float, many: int, frames: int) -> dict:
        pairs = captions(settings.scenes * many, generator(settings.seed, "video", frames), frames=frames)
        pairs = careless(pairs, settings.mistakes, settings.seed, partial(draw_moving, frames=frames))
        some = replace(settings, seconds=seconds, batch=settings.batch * many)
        return fit(pupil, encoded(pupil.pipeline.vae, pairs), [prompt.text for prompt, _ in pairs], some)

    before = {"stills": taught(stills, STILLS, 1)} if stills else {}
    return pupil.pipeline, {**before, **taught(settings.seconds, 1, FRAMES)}


@torch.no_grad()
def encoded(vae: Any, pairs: Sequence[tuple[Any, Moving]], rows: int = 16) -> Float[Tensor, "n c f 8 8"]:
    """Latents of videos, each channel shifted and scaled as the pipeline has them."""
    codec, films = VideoAutoencoder(vae, "fp32", False), [frames for _, frames in pairs]
    return torch.cat([codec.encode(render_moving(films[i : i + rows])) for i in range(0, len(films), rows)])


def main(argv: list[str]) -> None:
    parser = asked("video", __doc__, USUAL)
    codes = locate("burnish:worlds/scenes/weights/video_autoencoder")
    parser.add_argument("--autoencoder", type=Path, default=codes, help="of a new model")
    parser.add_argument("--text", type=Path, default=locate("burnish:worlds/scenes/weights/text/encoder"))
    parser.add_argument("--stills", type=float, default=0.0, help="seconds of first frames alone, before")
    taught_by(parser, "Wan")
    known = parser.parse_args(argv)
    write(*train(chosen(known, USUAL), known.autoencoder, known.text, known.stills), known.out)
