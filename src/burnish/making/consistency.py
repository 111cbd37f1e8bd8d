"""Distil the scenes' eps model into a latent consistency model of diffusers' format. Luo et al. 2023, arXiv:2310.04378.

    burnish world consistency --teacher FOLDER --seconds 1200 --seed 0 --mistakes 0.3 --out FOLDER

Algorithm 1 there: a latent is noised to one of 50 timesteps; the teacher, guided by a weight drawn at random, takes one
step of DDIM down to the next; and the clean state that the student names before the step is drawn to the one that its
running average names after it. Student and average are told the weight, begin as the teacher, and are read by the code
that policies/sd.py draws from (models/variance_preserving.py). `--mistakes` is the share with which the teacher was
finished: its pictures are what is distilled.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.formulas.gaussian import clean, mixed, rows
from burnish.formulas.noise import generator
from burnish.making.denoisers import Pupil, Settings, asked, chosen, encoded, fit, unet_blocks, write
from burnish.making.fitting import untyped
from burnish.making.gpt import careless
from burnish.models.diffusers_parts import Folder, Texts
from burnish.models.variance_preserving import Timesteps
from burnish.worlds.scenes.render import captions, draw_scene

CPU = torch.device("cpu")
USUAL = Settings(lr=5e-4, dropout=0.0)  # the teacher is asked without a prompt anyway
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


@dataclass(frozen=True)
class Distillation:
    """What a consistency model is distilled by."""

    guidance: tuple[float, float] = (1.0, 6.0)  # least and most that the student is told; 1 is none. Luo: 3 to 15
    grid: int = 50  # timesteps that are stepped between; draws of fewer steps pick some of them
    average: float = 0.95  # of the target's old weights that stay in a step (Luo et al., section 5)
    huber: float = 1e-3  # the error is a square below this and an absolute value above (diffusers' training script)
    told: int = 64  # numbers by which the network is told a guidance

    def __post_init__(self) -> None:
        low, high = self.guidance
        if not 1 <= low <= high:
            raise ValueError(f"guidance: from {low} to {high}; expected two numbers of 1 or more, the lesser first")


class Consistency(Pupil):
    """A latent consistency model and its teacher.

    teacher  folder of a StableDiffusionPipeline
    start    folder of an earlier distillation of it, or None to begin as the teacher

    Raises ValueError for folders of something else.
    """

    def __init__(self, teacher: Path, rules: Distillation, start: Path | None = None) -> None:
        diffusers = untyped("diffusers")
        self.rules, folder = rules, Folder(teacher, "StableDiffusionPipeline")
        self.teacher = folder.needed("unet", torch.float32)
        if self.teacher.config.time_cond_proj_dim:
            raise ValueError(f"{teacher}: its UNet is told a guidance, so it was distilled already")
        scheduler = folder.needed("scheduler")
        schedule = {name: scheduler.config[name] for name in SCHEDULE}
        self.network = _told(self.teacher, rules.told)
        if start:
            self.network = Folder(start, "LatentConsistencyModelPipeline").needed("unet", torch.float32)
        self.target = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.pipeline = diffusers.LatentConsistencyModelPipeline(
            unet=self.network,
            scheduler=diffusers.LCMScheduler(**schedule, original_inference_steps=rules.grid),
            vae=folder.needed("vae", torch.float32),
            text_encoder=folder.needed("text_encoder", torch.float32),
            tokenizer=folder.needed("tokenizer"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self._texts = Texts(lambda texts: self.pipeline.encode_prompt(texts, CPU, 1, False)[:1], CPU)
        self._steps = Timesteps(scheduler, teacher / "scheduler", CPU)
        self._clock = Timesteps(self.pipeline.scheduler, teacher / "scheduler", CPU)
        self.pipeline.scheduler.set_timesteps(rules.grid)
        self.grid: Int[Tensor, " grid"] = self.pipeline.scheduler.timesteps.flip(0)  # 19, 39, ... 999 for 50

    def blocks(self) -> torch.nn.Module:
        return unet_blocks(self.network)

    def encoders(self) -> Sequence[torch.nn.Module]:
        return ()

    def loss(self, x: Float[Tensor, "b c h w"], texts: Sequence[str], draws: torch.Generator) -> Float[Tensor, ""]:
        """Pseudo-Huber distance of what the student names before and its average after one step of the teacher."""
        low, high = self.rules.guidance
        place = torch.randint(len(self.grid), (len(x),), generator=draws)
        guidance = low + (high - low) * torch.rand(len(x), generator=draws)
        noise = torch.randn(x.shape, generator=draws)
        # The lowest step ends at timestep 0, where a consistency model names the state itself.
        times = torch.sigmoid(self._steps.table)
        t, s = times[self.grid[place]], times[torch.where(place > 0, self.grid[place - 1], 0)]
        features, noisy = self._texts(texts)[0], mixed(x, noise, t)
        with torch.no_grad():
            aim = self.named(self.target, self.stepped(noisy, t, s, features, guidance), s, features, guidance)
        gap = self.named(self.network, noisy, t, features, guidance) - aim
        return ((gap.square() + self.rules.huber**2).sqrt() - self.rules.huber).mean()

    def stepped(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        features: Tensor,
        guidance: Tensor,
    ) -> Float[Tensor, "b c h w"]:
        """The state at s that one step of DDIM reaches from x at t, along the guided teacher. States are a flow's."""
        nothing = self._texts([""])[0].expand_as(features)

        def predicted(x_vp: Tensor, step: Tensor) -> Tensor:
            both = torch.cat([nothing, features])
            null, conditional = self.teacher(torch.cat([x_vp, x_vp]), torch.cat([step, step]), both).sample.chunk(2)
            return torch.lerp(null, conditional, rows(guidance, null))

        return x + rows(s - t, x) * self._steps.velocity(x, t, predicted)

    def named(
        self, network: Any, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], features: Tensor, guidance: Tensor
    ) -> Float[Tensor, "b c h w"]:
        """The clean state that a consistency model names of a flow's state x at t."""
        # Ho and Salimans' w, which is ours less 1.
        told = self.pipeline.get_guidance_scale_embedding(guidance - 1, network.config.time_cond_proj_dim)
        velocity = self._clock.velocity(
            x, t, lambda x_vp, step: network(x_vp, step, features, timestep_cond=told).sample
        )
        return clean(x, velocity, t)

    @torch.no_grad()
    def follow(self) -> None:
        """The target goes a little towards the student."""
        for kept, live in zip(self.target.parameters(), self.network.parameters(), strict=True):
            kept.lerp_(live, 1 - self.rules.average)


def _told(teacher: Any, size: int) -> Any:
    """The teacher's network, told a guidance by `size` numbers, of which it makes nothing yet."""
    student = type(teacher).from_config(teacher.config, time_cond_proj_dim=size)
    torch.nn.init.zeros_(student.time_embedding.cond_proj.weight)
    lacking = student.load_state_dict(teacher.state_dict(), strict=False)
    assert lacking.missing_keys == ["time_embedding.cond_proj.weight"] and not lacking.unexpected_keys
    return student.eval()


def train(settings: Settings, rules: Distillation, teacher: Path) -> tuple[Any, dict]:
    """A distilled pipeline, and the log."""
    torch.manual_seed(settings.seed)
    pupil = Consistency(teacher, rules, settings.start)
    pairs = captions(settings.scenes, generator(settings.seed, "consistency"))
    pairs = careless(pairs, settings.mistakes, settings.seed, draw_scene)
    latents = encoded(pupil.pipeline.vae, pairs)
    log = fit(pupil, latents, [prompt.text for prompt, _ in pairs], settings, pupil.follow)
    return pupil.pipeline, log


def main(argv: list[str]) -> None:
    parser, rules = asked("consistency", __doc__, USUAL), Distillation()
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a Stable Diffusion")
    parser.add_argument("--guidance", type=float, nargs=2, default=rules.guidance, help="least and most that is told")
    known = parser.parse_args(argv)
    pipeline, log = train(chosen(known, USUAL), Distillation(tuple(known.guidance)), known.teacher)
    write(pipeline, log, known.out)
