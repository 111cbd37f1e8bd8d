"""A step function of another reward. AR-GRPO (arXiv 2508.06924), where it blunts reward hacking.

Where the raw score counts too, name the step function under `weighted.tiers`: raw and tiered then share one forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.formulas.tiers import Steps, step_values
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Tiers(Reward):
    """`of`, mapped to the value of the step it stands on. A score on a cut belongs to the step above it."""

    of: Reward  # the reward whose score is mapped
    cuts: tuple[float, ...] = (
        0.0,
        0.3,
        0.6,
        1.0,
    )  # where the value changes, ascending; the last may only close the range
    values: tuple[float, ...] = (-1.0, 0.5, 1.0, 1.5)  # below the first cut, then from each cut on

    def __post_init__(self) -> None:
        Steps(self.cuts, self.values)  # says what is wrong with them

    @property
    def videos(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """If the reward inside reads them."""
        return self.of.videos

    @property
    def compares(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """If the reward inside does."""
        return self.of.compares

    def load(self, device: torch.device) -> Scorer:
        """Load the reward inside. Raises what it raises."""
        return _TiersScorer(self.of.load(device), Steps(self.cuts, self.values))


class _TiersScorer(Scorer):
    def __init__(self, inner: Scorer, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        """Total: the steps. Parts: `tiers`, and the raw parts of the reward inside."""
        raw = self._inner(images, prompts)
        total = torch.where(raw.valid, step_values(raw.total, self._steps), torch.nan)
        parts: Mapping[str, Tensor] = {"tiers": total, **raw.parts}
        return Scores(total, parts, raw.valid, raw.notes)
