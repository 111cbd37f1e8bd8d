"""A reward asked of workers on a Ray cluster: reward models on other machines, several pictures at once.

Every worker loads the reward; the pictures of a call are shared out among them. With `overlap: true` they score a part
of a step while the next one is drawn. In a run of several processes each has workers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.crew import Crew, Workers
from burnish.types import Prompt, Scores, concatenate, moved


@dataclass(frozen=True)
class OnRay(Reward):
    """`of`, loaded by each worker. What comes back has no gradient."""

    of: Reward  # what scores
    workers: Workers = field(default_factory=Workers)  # who load it

    def __post_init__(self) -> None:
        if self.of.compares and self.workers.count > 1:
            raise ValueError("reward.on_ray: workers would part the samples it compares; count: 1 would work")

    @property
    def videos(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """If the reward inside reads them."""
        return self.of.videos

    @property
    def compares(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """If the reward inside does."""
        return self.of.compares

    def load(self, device: torch.device) -> Scorer:
        """Start the workers. Raises ValueError if that fails, and what the reward raises."""
        return _RayScorer(Crew(partial(_Scoring, self.of), self.workers))


class _RayScorer(Scorer):
    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def __call__(self, images: Float[Tensor, "b *f 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        here, shares = images.detach().cpu(), self._crew.shares(range(len(prompts)))
        return concatenate(list(self._crew.calls([(here[at], [prompts[i] for i in at]) for at in shares])))


class _Scoring:
    """What a worker does."""

    def __init__(self, of: Reward, device: torch.device) -> None:
        self._scorer, self._device = of.load(device), device

    def __call__(self, images: Float[Tensor, "b *f 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        with torch.no_grad():
            found = self._scorer(images.to(self._device), prompts)
        return moved(Scores.require(found).noted(), torch.device("cpu"))
