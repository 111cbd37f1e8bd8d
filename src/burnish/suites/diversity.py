"""How different the samples of one prompt are, in pixels and to CLIP. What policy gradients lose first.

Mean pairwise distance within a prompt. Unlike recall it needs no reference: 0 says that a prompt has one picture
left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Evaluation, Policy, Scorer, Suite
from burnish.draws import draw_all
from burnish.formulas.sentinel import pairwise_distance
from burnish.models.clip_towers import ClipTowers, load_towers
from burnish.prompts import read_prompts
from burnish.types import Plan


@dataclass(frozen=True)
class Diversity(Suite):
    """Mean distance between samples of one prompt."""

    prompts: str  # as of a source: file.txt, file.jsonl or module:function
    count: int = 32  # distinct prompts, the first of them; fewer if there are fewer
    per_prompt: int = 8  # samples of each, at least 2
    features: str = ""  # hub id or local folder of a transformers CLIP; empty: pixels only
    rows: int = 64  # pictures drawn, or encoded, at once. Changes memory, not the result

    def __post_init__(self) -> None:
        for name, value, least in (
            ("count", self.count, 1),
            ("per_prompt", self.per_prompt, 2),
            ("rows", self.rows, 1),
        ):
            if value < least:
                raise ValueError(f"suites.diversity.{name}: expected {least} or more, got {value}")

    @property
    def videos(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """In pixels; CLIP looks at pictures."""
        return not self.features

    def run(self, policy: Policy, plan: Plan, reward: Scorer | None, seed: int) -> Evaluation:
        """Metrics `pixels`, root-mean-square distance in [0, 1], and with `features` `clip`, 1 - cosine in [0, 2].

        Values: for each sample, its mean distance to the other samples of its prompt.
        """
        asked = tuple(p for p in read_prompts(self.prompts)[: self.count] for _ in range(self.per_prompt))
        media = draw_all(policy, asked, plan, seed, self.rows)
        values = {"pixels": self._within(media.flatten(1))}
        if self.features:
            values["clip"] = self._apart(_towers(self.features, self.rows), media)
        return Evaluation({name: float(value.mean()) for name, value in values.items()}, values, asked, media)

    def _within(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return torch.cat([pairwise_distance(group) for group in rows.split(self.per_prompt)])

    def _apart(self, towers: ClipTowers, media: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """1 - cosine between the vectors of a sample and the others of its prompt, mean over them."""
        with torch.no_grad():
            vectors = towers.pictures(media).cpu().unflatten(0, (-1, self.per_prompt))
        gaps = 1 - vectors @ vectors.mT
        return ((gaps.sum(2) - gaps.diagonal(dim1=1, dim2=2)) / (self.per_prompt - 1)).flatten()


@lru_cache(maxsize=2)
def _towers(features: str, rows: int) -> ClipTowers:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_towers(features, "", "suites.diversity.features", device, "float32", rows)
