"""Good samples count more the further they are from their siblings: GARDO's diversity multiplier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.core import Advantage, Large, Memory, Policy
from burnish.formulas.groups import group_mean
from burnish.models.features import Features, load_features
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class Diverse(Advantage):
    """`inner`, times the distance to the nearest sibling where it is above 0. GARDO, arXiv:2512.24138.

    The distance is 1 - cosine of what a vision model makes of the pictures (released: DINOv3). A good sample that
    another one equals is learned from no more; what is bad stays as bad as it was. So samples are not weighed by their
    scores alone. A sample without valid siblings keeps its advantage.

    Metrics:
        nearest       mean distance to the nearest sibling
    """

    reads: ClassVar[tuple[Large, ...]] = ("media",)

    inner: Advantage  # GARDO: group_mean
    features: str = ""  # hub id or local folder of a transformers DINO or CLIP; empty: pixels
    scale: Literal["group", "none"] = "group"  # distances are divided by their mean in the group, as released, or not
    rows: int = 64  # pictures encoded at once. Changes memory, not the result

    def begin(self, policy: Policy | None) -> _Diverse:
        device = policy.parameters()[0][1].device if policy else torch.device("cpu")
        return _Diverse(self, load_features(self.features, "advantage.diverse.features", device, self.rows))

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"] | Float[Tensor, "b k"]:
        return self.begin(None)(scores, rollout)


class _Diverse(Advantage, Memory):
    def __init__(self, settings: Diverse, features: Features) -> None:
        self._settings, self._features, self._nearest = settings, features, torch.nan

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"] | Float[Tensor, "b k"]:
        advantage = self._settings.inner(scores, rollout)
        distance, known = nearest(self._features(rollout.media), rollout.group, scores.valid)
        self._nearest = float(distance[known].mean()) if known.any() else torch.nan
        if self._settings.scale == "group":
            usual = group_mean(distance, rollout.group, known)
            distance = torch.where(usual > 0, distance / torch.where(usual > 0, usual, 1.0), 1.0)
        times = torch.where(known, distance, 1.0).to(advantage)
        if advantage.dim() > 1:
            times = times.unsqueeze(1)
        return torch.where(advantage > 0, advantage * times, advantage)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        assert not state, "a distance remembers nothing"

    def metrics(self) -> dict[str, float]:
        return {"nearest": self._nearest}


def nearest(
    features: Float[Tensor, "b d"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
    """(1 - cosine to the nearest valid sibling, float64; whether there is one). Features have length 1."""
    features, group = features.double().to(valid.device), group.to(valid.device)
    siblings = (group == group.unsqueeze(1)) & ~torch.eye(len(group), dtype=torch.bool, device=valid.device) & valid
    known = siblings.any(1) & valid
    apart = torch.where(siblings, (1 - features @ features.T).clamp(min=0), torch.inf).amin(1)
    return torch.where(known, apart, 0.0), known
