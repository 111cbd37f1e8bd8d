"""A set is rewarded for how near it is to a diverse reference set, and every sample for its share in that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage, Large, Memory, Policy
from burnish.formulas.discrepancy import credits, discrepancy
from burnish.models.features import Features, load_features, read_pictures
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class DiversityCredit(Advantage):
    """`inner` of weight x (MMD^2 without the sample - MMD^2) + score x R. Miao et al. 2024, IEEE 10656815.

    The discrepancy is that of all valid samples of the step from reference pictures, with a cubic kernel, (cos + 1)^3,
    of what a vision model makes of them; without a reference it is how alike samples are. So samples are not weighed by
    their scores alone. The credit becomes a part of the reward called "diversity".

    Metrics:
        discrepancy   MMD^2 of the samples of the step
    """

    reads: ClassVar[tuple[Large, ...]] = ("media",)

    inner: Advantage  # takes the advantage of the credit; the paper trains as DDPO: prompt_history
    reference: str = ""  # folder of diverse pictures; empty: none
    features: str = ""  # hub id or local folder of a transformers DINO or CLIP; empty: pixels
    weight: float = 1.0  # of the credit
    score: float = 0.0  # of the reward beside it
    rows: int = 64  # pictures encoded at once. Changes memory, not the result

    def begin(self, policy: Policy | None) -> _Credited:
        """Raises ValueError for weights or reference pictures that cannot be read."""
        device = policy.parameters()[0][1].device if policy else torch.device("cpu")
        features = load_features(self.features, "advantage.diversity_credit.features", device, self.rows)
        return _Credited(self, features)

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"] | Float[Tensor, "b k"]:
        return self.begin(None)(scores, rollout)


class _Credited(Advantage, Memory):
    def __init__(self, settings: DiversityCredit, features: Features) -> None:
        self._settings, self._features, self._discrepancy = settings, features, torch.nan
        where = "advantage.diversity_credit.reference"
        pictures = read_pictures(settings.reference, where) if settings.reference else ()
        found = [self._vectors(picture) for picture in pictures]
        if len({part.shape[1] for part in found}) > 1:
            raise ValueError(f"{where}: its pictures differ in size; name a model in features, or make them alike")
        self._reference = torch.cat(found) if found else None

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"] | Float[Tensor, "b k"]:
        own, valid = self._settings, scores.valid.cpu()
        samples = self._vectors(rollout.media)[valid]
        reference = samples.new_empty(0, samples.shape[1]) if self._reference is None else self._reference
        if reference.shape[1] != samples.shape[1]:
            raise ValueError(
                "advantage.diversity_credit.reference: its pictures have another size than the samples; "
                "name a model in features, or make them alike"
            )
        self._discrepancy = float(discrepancy(samples, reference)) if len(samples) > 1 else torch.nan
        credit = torch.full(valid.shape, torch.nan, dtype=torch.float64)
        credit[valid] = credits(samples, reference)
        credit = credit.to(scores.total)
        total = own.weight * credit + own.score * torch.where(scores.valid, scores.total, torch.nan)
        return own.inner(replace(scores, total=total, parts={**scores.parts, "diversity": credit}), rollout)

    def _vectors(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Of length sqrt(d): the kernel divides by d, and would be as good as linear in vectors of length 1."""
        found = self._features(images).double().cpu()
        return found * found.shape[1] ** 0.5

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        assert not state, "a set is compared by itself"

    def metrics(self) -> dict[str, float]:
        return {"discrepancy": self._discrepancy}
