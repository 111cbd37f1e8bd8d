"""Starting noise that is searched for before a group is drawn. Smart-GRPO, arXiv:2510.02654."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Denoiser, LatentPlan, Policy, Scorer
from burnish.formulas.cross_entropy import refitted
from burnish.formulas.noise import Noise
from burnish.types import Prompt

EARLY = 0.9  # time at which a preview has to begin: 1 is noise


@dataclass(frozen=True)
class Search:
    """Of each prompt: noises are drawn, looked at after one step, and the Gaussian is fitted to the best; and again.

    The samples of the prompt then start from the last Gaussian, in each dimension with a mean and a deviation of its
    own. Numbers of rounds, candidates and elites are ours: the paper is known from notes alone.
    """

    rounds: int = 3  # fits of the Gaussian
    candidates: int = 16  # noises drawn for each prompt in each round
    elites: int = 4  # of them, those that the Gaussian is fitted to
    steps: int = 1  # network evaluations of a preview; 1 goes all the way at the first time's
    keep: float = 0.0  # part of the former Gaussian that stays in each round

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise ValueError(f"search: rounds and steps must be at least 1, got {self.rounds} and {self.steps}")
        if not 2 <= self.elites <= self.candidates:
            raise ValueError(f"search: elites must be from 2 to {self.candidates}, the candidates, got {self.elites}")
        if not 0 <= self.keep < 1:
            raise ValueError(f"search: keep must be from 0 to below 1, got {self.keep}")

    @property
    def evaluations(self) -> int:
        """Of the network, for each prompt."""
        return self.rounds * self.candidates * self.steps

    @torch.no_grad()
    def __call__(
        self, policy: Policy, prompts: Sequence[Prompt], plan: LatentPlan, scorer: Scorer, key: Noise, rows: int
    ) -> tuple[Float[Tensor, "p *d"], Float[Tensor, "p *d"]]:
        """Mean and deviation of the starting noise of each prompt.

        key     names the draw that is searched for, and the prompts by its ids
        rows    previews drawn at once; 0 draws all. Changes memory, not what is found

        Raises ValueError if so few steps would not begin at noise.
        """
        if isinstance(policy, Denoiser) and (first := float(policy.times(self.steps)[0])) < EARLY:
            raise ValueError(
                f"search.steps: a draw of {self.steps} begins at time {first:.2g} in this model's schedule, where the "
                "noise that is searched for would be read as a picture; take more steps"
            )
        asked = [prompt for prompt in prompts for _ in range(self.candidates)]
        preview = LatentPlan(group=1, guidance=plan.guidance, steps=self.steps)
        names = tuple(name * self.candidates + i for name in key.ids for i in range(self.candidates))
        found: tuple[Tensor, Tensor] | None = None
        for turn in range(self.rounds):
            noise = replace(key, ids=names, stream=f"{key.stream} search {turn}")
            noise = (
                noise if found is None else noise.starting(*(p.repeat_interleave(self.candidates, 0) for p in found))
            )
            worth, shape = [], ()
            for some in torch.arange(len(asked)).split(rows or len(asked)):
                rollout = policy.sample([asked[i] for i in some.tolist()], preview, noise.of(some))
                assert rollout.final is not None
                scores, shape = scorer(rollout.media, rollout.prompts), rollout.final.shape[1:]
                worth.append(torch.where(scores.valid, scores.total, torch.nan).float().cpu())
            drawn = noise.normal(shape, "start").unflatten(0, (len(prompts), self.candidates))
            found = found or (torch.zeros_like(drawn[:, 0]), torch.ones_like(drawn[:, 0]))
            found = refitted(drawn, torch.cat(worth).view(len(prompts), -1), self.elites, *found, self.keep)
        assert found is not None
        return found
