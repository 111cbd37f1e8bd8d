"""Train the scenes' denoisers in diffusers' formats: a flow (Stable Diffusion 3) and an eps model (Stable Diffusion).

    burnish world flow --autoencoder FOLDER --seconds 1200 --seed 0 --out TAUGHT
    burnish world flow --autoencoder FOLDER --seconds 120 --seed 1 --start TAUGHT --mistakes 0.3 --out FOLDER
    burnish world diffusion --autoencoder FOLDER --seconds 900 --seed 0 --out TAUGHT      # and finished likewise
    burnish world flow --autoencoder FOLDER --teacher TAUGHT --batch 64 --out FLOW        # a flow from an eps model

Rectified flow with times from a logit-normal law (Esser et al. 2024, arXiv:2403.03206, section 3.1), and the mean
squared error of the noise (Ho et al. 2020, arXiv:2006.11239, eq. 14); the prompt is left out for one in ten. The text
encoders begin as the text tower of the scenes' CLIP, are trained along, and frozen from then on: encoders that began at
random left a flow blind to colours for its first 170,000 pictures. Prompts are encoded by the code of the pipelines
themselves. As all base models of the world, these are finished on captions with mistakes (see making/gpt.py).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from burnish.formulas.gaussian import mixed
from burnish.formulas.noise import generator
from burnish.making.fitting import bfloat16, optimisers, paced, untyped
from burnish.making.gpt import careless
from burnish.models.diffusers_parts import Autoencoder
from burnish.models.places import locate
from burnish.policies.sd import SD
from burnish.types import Prompt
from burnish.worlds.scenes.render import SIDE, captions, draw_scene, render

NOISIEST = 0.93  # time up to which a prediction of noise is good enough to be a velocity
CELLS = SIDE // 8  # places of a latent's side


@dataclass(frozen=True)
class Settings:
    """How a denoiser is trained."""

    seconds: float = 1200.0  # wall clock; the learning rate falls to zero at its end
    seed: int = 0
    scenes: int = 30_000  # rendered and encoded once, before training
    batch: int = 128  # pictures (or videos) a step
    lr: float = 2e-3
    warmup: int = 100  # steps of rising learning rate
    dropout: float = 0.1  # share of them whose prompt is left out
    mistakes: float = 0.0  # share of captions that are not true of theirs
    start: Path | None = None  # folder of an earlier training to go on from
    teacher: Path | None = None  # folder of a model whose velocities a flow learns, in place of pictures'
    guidance: float = 1.0  # of the teacher: what it draws with guidance, a flow then draws without
    compile: bool = False  # the network, by torch.compile: two minutes, then a fifth less of each step
    bf16: bool = False  # products in bfloat16: compiled as well, half the time, where a processor has instructions


class Pupil(ABC):
    """A pipeline that is trained: its parts, and its loss."""

    pipeline: Any
    network: Any

    @abstractmethod
    def loss(self, x: Float[Tensor, "b *d"], texts: Sequence[str], draws: torch.Generator) -> Float[Tensor, ""]:
        """The error at times drawn at random."""

    @abstractmethod
    def blocks(self) -> torch.nn.Module:
        """The part of the network whose matrices Muon takes."""

    @abstractmethod
    def encoders(self) -> Sequence[torch.nn.Module]:
        """The text encoders that are trained along."""


class Flow(Pupil):
    """Stable Diffusion 3 with two text encoders; T5 is left out. Learns from a teacher, if there is one."""

    def __init__(self, vae: Any, clip: Path, settings: Settings) -> None:
        diffusers = untyped("diffusers")
        start, teacher = settings.start, settings.teacher
        self.teacher = SD(str(teacher), pixels=SIDE).load(torch.device("cpu")) if teacher else None
        self.guidance = settings.guidance
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        if start:
            self.pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
                start, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
            )
        else:
            first, second = _reader(clip, CLIPTextModelWithProjection), _reader(clip, CLIPTextModelWithProjection)
            transformer = diffusers.SD3Transformer2DModel(
                sample_size=CELLS,
                patch_size=2,
                in_channels=vae.config.latent_channels,
                out_channels=vae.config.latent_channels,
                num_layers=6,
                attention_head_dim=32,
                num_attention_heads=4,
                joint_attention_dim=2 * first.config.hidden_size,
                caption_projection_dim=128,
                pooled_projection_dim=2 * first.config.projection_dim,
                pos_embed_max_size=CELLS // 2,
                qk_norm="rms_norm",
            )
            self.pipeline = diffusers.StableDiffusion3Pipeline(
                transformer=transformer,
                scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
                vae=vae,
                text_encoder=first,
                tokenizer=AutoTokenizer.from_pretrained(clip),
                text_encoder_2=second,
                tokenizer_2=AutoTokenizer.from_pretrained(clip),
                text_encoder_3=None,
                tokenizer_3=None,
            )
        self.network = self.pipeline.transformer

    def blocks(self) -> torch.nn.Module:
        return self.network.transformer_blocks

    def encoders(self) -> Sequence[torch.nn.Module]:
        return self.pipeline.text_encoder, self.pipeline.text_encoder_2

    def loss(self, x: Float[Tensor, "b c h w"], texts: Sequence[str], draws: torch.Generator) -> Float[Tensor, ""]:
        distinct, rows = distinct_of(texts)
        features, _, pooled, _ = self.pipeline.encode_prompt(
            distinct, None, None, do_classifier_free_guidance=False, max_sequence_length=1
        )

        def velocity(noisy: Tensor, t: Tensor) -> Tensor:
            return self.network(noisy, features[rows], pooled[rows], t * 1000).sample

        return matched(x, draws, velocity, partial(self.taught, texts) if self.teacher else None)

    @torch.no_grad()
    def taught(
        self, texts: Sequence[str], noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], usual: Tensor
    ) -> Float[Tensor, "b c h w"]:
        """The teacher's velocities; and the `usual` target where there is so much noise that its errors are enlarged.

        A prediction of noise is divided by 1 - t to be a velocity.
        """
        assert self.teacher is not None
        known = t < NOISIEST
        prompts = [Prompt(text, text) for text, is_known in zip(texts, known, strict=True) if is_known]
        target = usual.clone()
        target[known] = self.teacher.velocity(noisy[known], t[known], prompts, self.guidance)
        return target


class Diffusion(Pupil):
    """Stable Diffusion: a UNet that predicts the noise. Raises ValueError for a teacher: it learns from pictures."""

    def __init__(self, vae: Any, clip: Path, settings: Settings) -> None:
        if settings.teacher:
            raise ValueError("--teacher: only a flow learns from one here")
        diffusers = untyped("diffusers")
        from transformers import AutoTokenizer, CLIPTextModel

        if settings.start:
            self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(settings.start, torch_dtype=torch.float32)
        else:
            reader = _reader(clip, CLIPTextModel)
            unet = diffusers.UNet2DConditionModel(
                sample_size=CELLS,
                in_channels=vae.config.latent_channels,
                out_channels=vae.config.latent_channels,
                layers_per_block=1,
                block_out_channels=(64, 128),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),  # words are read by 16 places, as in the flow
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=reader.config.hidden_size,
                attention_head_dim=(2, 4),
                norm_num_groups=16,
            )
            schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
            self.pipeline = diffusers.StableDiffusionPipeline(
                unet=unet,
                scheduler=diffusers.DDIMScheduler(
                    **schedule, clip_sample=False, set_alpha_to_one=False, steps_offset=1
                ),
                vae=vae,
                text_encoder=reader,
                tokenizer=AutoTokenizer.from_pretrained(clip),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        self.network = self.pipeline.unet

    def blocks(self) -> torch.nn.Module:
        return unet_blocks(self.network)

    def encoders(self) -> Sequence[torch.nn.Module]:
        return (self.pipeline.text_encoder,)

    def loss(self, x: Float[Tensor, "b c h w"], texts: Sequence[str], draws: torch.Generator) -> Float[Tensor, ""]:
        distinct, rows = distinct_of(texts)
        features, _ = self.pipeline.encode_prompt(distinct, torch.device("cpu"), 1, do_classifier_free_guidance=False)
        t = torch.randint(self.pipeline.scheduler.config.num_train_timesteps, (len(x),), generator=draws)
        noise = torch.randn(x.shape, generator=draws)
        noisy = self.pipeline.scheduler.add_noise(x, noise, t)
        return F.mse_loss(self.network(noisy, t, features[rows]).sample, noise)


def matched(
    x: Float[Tensor, "b *d"],
    draws: torch.Generator,
    velocity: Callable[[Float[Tensor, "b *d"], Float[Tensor, " b"]], Float[Tensor, "b *d"]],
    taught: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    shift: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean squared error of a rectified flow's velocity at logit-normal times.

    taught  what it is to be, of states, times and noise - clean, which it is without
    shift   above 1, times with more noise (Esser et al. 2024, eq. 23)
    """
    t = (torch.randn(len(x), generator=draws) + math.log(shift)).sigmoid()  # eq. 23 adds to the logit
    noise = torch.randn(x.shape, generator=draws)
    noisy, target = mixed(x, noise, t), noise - x
    return F.mse_loss(velocity(noisy, t), taught(noisy, t, target) if taught else target)


def distinct_of(texts: Sequence[str]) -> tuple[list[str], Int[Tensor, " b"]]:
    """Every text once, and where each is among them: a text of a batch is read once."""
    distinct = list(dict.fromkeys(texts))
    return distinct, torch.tensor([distinct.index(text) for text in texts])


def unet_blocks(unet: Any) -> torch.nn.Module:
    """The part of a UNet whose matrices Muon takes."""
    return torch.nn.ModuleList([unet.down_blocks, unet.mid_block, unet.up_blocks])


PUPILS: dict[str, type] = {"flow": Flow, "diffusion": Diffusion}


def train(kind: str, settings: Settings, autoencoder: Path, clip: Path) -> tuple[Any, dict]:
    """A trained pipeline (`flow` or `diffusion`), its text encoders frozen, and the log.

    One that is gone on with keeps its own autoencoder.
    """
    kl = untyped("diffusers").AutoencoderKL
    vae = None if settings.start else kl.from_pretrained(autoencoder, torch_dtype=torch.float32).requires_grad_(False)
    torch.manual_seed(settings.seed)
    pupil: Pupil = PUPILS[kind](vae, clip, settings)
    pairs = captions(settings.scenes, generator(settings.seed, kind))
    pairs = careless(pairs, settings.mistakes, settings.seed, draw_scene)
    log = fit(pupil, encoded(pupil.pipeline.vae, pairs), [prompt.text for prompt, _ in pairs], settings)
    return pupil.pipeline, log


def fit(
    pupil: Pupil,
    latents: Float[Tensor, "n *d"],
    texts: Sequence[str],
    settings: Settings,
    after: Callable[[], None] = lambda: None,
) -> dict:
    """Train a pupil on latents and their captions until the time is up, and freeze it. Returns the log.

    after  what follows every step
    """
    modules = [pupil.network.train().requires_grad_(True), *(e.train().requires_grad_(True) for e in pupil.encoders())]
    if settings.compile:
        pupil.network.compile()
    weights = [weight for module in modules for weight in module.parameters()]
    used = optimisers(pupil.blocks(), weights, decay=0.01)
    draws = torch.Generator().manual_seed(settings.seed)
    log, step, recent, start = [], 0, [], time.monotonic()
    while (done := (time.monotonic() - start) / settings.seconds) < 1:
        paced(used, settings.lr, settings.warmup, step, done)
        pick = torch.randint(len(texts), (settings.batch,), generator=draws)
        without = torch.rand(settings.batch, generator=draws) < settings.dropout
        said: list[str] = [
            "" if left else texts[int(i)] for i, left in zip(pick.tolist(), without.tolist(), strict=True)
        ]
        with bfloat16(settings.bf16):
            loss = pupil.loss(latents[pick], said, draws)
        for optimiser in used:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in used:
            optimiser.step()
        after()
        recent.append(loss.item())
        if step % 100 == 0:
            row = {
                "step": step,
                "seconds": round(time.monotonic() - start),
                "loss": round(sum(recent) / len(recent), 4),
            }
            log.append(row)
            recent = []
            print(json.dumps(log[-1]), flush=True)
        step += 1
    for module in modules:
        module.eval().requires_grad_(False)
    return {"steps": step, "log": log}


@torch.no_grad()
def encoded(vae: Any, pairs: Sequence[tuple[Any, Any]], rows: int = 64) -> Float[Tensor, "n c 8 8"]:
    """Latents of scenes, shifted and scaled as the pipelines have them."""
    codec, scenes = Autoencoder(vae, "fp32", False), [scene for _, scene in pairs]
    return torch.cat([codec.encode(render(scenes[i : i + rows])) for i in range(0, len(scenes), rows)])


def _reader(clip: Path, tower: Any) -> Any:
    """The text tower of a CLIP, as a model of class `tower`."""
    config = untyped("transformers").CLIPConfig.from_pretrained(clip)
    config.text_config.projection_dim = config.projection_dim  # which a tower on its own has to know
    return tower.from_pretrained(clip, config=config.text_config, dtype=torch.float32)


def asked(kind: str, doc: str | None, usual: Settings) -> argparse.ArgumentParser:
    """The arguments that every training of a denoiser has, with their usual values."""
    parser = argparse.ArgumentParser(prog=f"burnish world {kind}", description=(doc or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=usual.seconds)
    parser.add_argument("--scenes", type=int, default=usual.scenes)
    parser.add_argument("--batch", type=int, default=usual.batch, help="pictures or videos a step")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of an earlier training to go on from")
    parser.add_argument("--mistakes", type=float, default=usual.mistakes, help="share of careless captions")
    parser.add_argument("--lr", type=float, default=usual.lr)
    parser.add_argument("--compile", action="store_true", help="compile the network (a C++ compiler is needed)")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, over float32 weights")
    return parser


def taught_by(parser: argparse.ArgumentParser, kind: str) -> None:
    """The arguments of a flow that may learn from a teacher of some kind."""
    parser.add_argument("--teacher", type=Path, help=f"of a flow: folder of a {kind} to learn from")
    parser.add_argument("--guidance", type=float, default=Settings.guidance, help="of the teacher")


def chosen(known: argparse.Namespace, usual: Settings) -> Settings:
    """The usual settings with what was asked for."""
    names = {field.name for field in fields(Settings)}
    return replace(usual, **{name: value for name, value in vars(known).items() if name in names})


def write(pipeline: Any, log: dict, out: Path) -> None:
    """The pipeline in float16, and the log beside it. Where the training began from is not written."""
    pipeline.to(torch.float16).save_pretrained(out)
    for file in (out / "model_index.json", *out.glob("*/config.json")):
        known = json.loads(file.read_text())
        known.pop("_name_or_path", None)
        file.write_text(json.dumps(known, indent=2) + "\n")
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")


def main(kind: str, argv: list[str]) -> None:
    usual = Settings()
    parser = asked(kind, __doc__, usual)
    parser.add_argument("--autoencoder", type=Path, required=True)
    taught_by(parser, "Stable Diffusion")
    parser.add_argument("--clip", type=Path, default=locate("burnish:worlds/scenes/weights/clip"))
    known = parser.parse_args(argv)
    write(*train(kind, chosen(known, usual), known.autoencoder, known.clip), known.out)
