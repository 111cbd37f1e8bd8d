"""A weighted sum of rewards, raw and tiered from one forward. AR-GRPO, arXiv 2508.06924, section on rewards.

AR-GRPO adds 5 times the CLIP cosine and a step function of the same cosine:

    reward: {weighted: {parts: {clip: clip_score}, tiers: {clip: {}}, weights: {clip: 5.0, clip_tier: 1.0}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.formulas.tiers import Steps, step_values
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Weighted(Reward):
    """Sum of weight times score. A sample is invalid if any score with a weight other than 0 is."""

    parts: Mapping[str, Reward]  # rewards by the name they are reported under
    weights: Mapping[str, float]  # of every part, and of every `NAME_tier`; 0 reports a part without counting it
    tiers: Mapping[str, Steps] = field(default_factory=dict)  # by part: a step function of it, reported as `NAME_tier`

    def __post_init__(self) -> None:
        _check(self)

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every raw part that counts is, and at least one counts. Tiers are flat, and add no gradient."""
        counted = [part for name, part in self.parts.items() if self.weights[name]]
        return bool(counted) and all(part.differentiable for part in counted)

    @property
    def videos(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every part reads them."""
        return all(part.videos for part in self.parts.values())

    @property
    def compares(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any part does."""
        return any(part.compares for part in self.parts.values())

    def load(self, device: torch.device) -> Scorer:
        """Load every part. Raises what they raise."""
        return _WeightedScorer(self, {name: part.load(device) for name, part in self.parts.items()})


def _check(settings: Weighted) -> None:
    names, weights, tiers = list(settings.parts), list(settings.weights), list(settings.tiers)
    if not names:
        raise ValueError("reward.weighted.parts: expected at least one reward")
    strange = [name for name in tiers if name not in names]
    if strange:
        raise ValueError(f"reward.weighted: tiers {strange} name no part (parts: {names})")
    clash = [f"{name}_tier" for name in tiers if f"{name}_tier" in names]
    if clash:
        raise ValueError(f"reward.weighted: {clash} would name both a part and a tier; rename the part")
    scored = names + [f"{name}_tier" for name in tiers]
    if set(scored) != set(weights):
        raise ValueError(f"reward.weighted: parts {scored} and weights {weights} must name the same rewards")


class _WeightedScorer(Scorer):
    def __init__(self, settings: Weighted, scorers: Mapping[str, Scorer]) -> None:
        self._settings = settings
        self._scorers = scorers

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        """Parts: the total of every part by its name, and the step of every tier, all before weighting."""
        parts: dict[str, Tensor] = {}
        valid: dict[str, Bool[Tensor, " b"]] = {}
        notes: dict[str, tuple[str, ...]] = {}
        for name, scorer in self._scorers.items():
            scores = scorer(images, prompts)
            parts[name] = torch.where(scores.valid, scores.total, torch.nan)
            valid[name] = scores.valid
            if scores.notes:
                notes[name] = tuple(
                    "; ".join(filter(None, words)) for words in zip(*scores.notes.values(), strict=True)
                )
            if name in self._settings.tiers:
                parts[f"{name}_tier"] = step_values(parts[name], self._settings.tiers[name])
                valid[f"{name}_tier"] = scores.valid
        counted = {name: weight for name, weight in self._settings.weights.items() if weight}
        every = torch.ones(len(prompts), dtype=torch.bool, device=images.device)
        for name in counted:
            every = every & valid[name].to(images.device)
        total = images.new_zeros(len(prompts), dtype=torch.float32)
        for name, weight in counted.items():
            total = total + weight * parts[name].to(images.device)
        return Scores(torch.where(every, total, torch.nan), parts, every, notes)
