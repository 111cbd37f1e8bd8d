"""Verified success on the scenes world, by category, after GenEval (Ghosh et al. 2023, arXiv 2310.11513)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Evaluation, Policy, Scorer, Suite
from burnish.draws import draw_all
from burnish.prompts import by_prompt
from burnish.types import Plan, Prompt
from burnish.worlds.scenes import moving
from burnish.worlds.scenes.classes import class_prompts
from burnish.worlds.scenes.grammar import balanced, heldout, train
from burnish.worlds.scenes.motion import judge

PROMPTS_SEED = 0  # the questions are the same whatever the run's seed
Questions = Literal["heldout", "train", "classes", "moving", "moving_train"]


@dataclass(frozen=True)
class Scenes(Suite):
    """Draws and verifies prompts of the scenes world. Two passes with one seed compare sample by sample."""

    videos: ClassVar[bool] = True

    prompts: Questions = "heldout"  # combinations not trained on, those trained on, classes; the first two of motions
    count: int = 120  # prompts: the categories (or classes) taking turns, over again where a category has too few
    per_prompt: int = 1  # samples of each; from 2 on, how different they are is reported too
    rows: int = 64  # pictures drawn, and scored, at once, or all of one prompt. Changes memory, not the result

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("per_prompt", self.per_prompt), ("rows", self.rows)):
            if value < 1:
                raise ValueError(f"suites.scenes.{name}: expected 1 or more, got {value}")
        if self.prompts not in get_args(Questions):
            raise ValueError(
                f"suites.scenes.prompts: expected one of {', '.join(get_args(Questions))}, got {self.prompts!r}"
            )

    def run(self, policy: Policy, plan: Plan, reward: Scorer | None, seed: int) -> Evaluation:
        """Metrics: `verified`, `verified_<category>`, `requirements` (share met), `diversity`, `reward` and
        `reward_<part>` (means over valid scores). Values: the same but for `diversity`, one a sample."""
        asked = tuple(p for p in self.questions() for _ in range(self.per_prompt))
        pictures = draw_all(policy, asked, plan, seed, self.rows)
        parts = _parts(asked, self.rows)
        found = [_values(pictures[part], [asked[i] for i in part], reward) for part in parts]
        back = torch.tensor([i for part in parts for i in part]).argsort()
        values = {name: torch.cat([some[name] for some in found])[back] for name in found[0]}
        values |= _by_category(values["verified"], asked)
        metrics = {name: _mean(value) for name, value in values.items()}
        if self.per_prompt > 1:
            metrics["diversity"] = _diversity(pictures, self.per_prompt)
        return Evaluation(metrics, values, asked, pictures)

    def questions(self) -> tuple[Prompt, ...]:
        """The prompts, each once for every time that it is asked in its own right."""
        if self.prompts == "heldout":
            return heldout(self.count, PROMPTS_SEED)
        if self.prompts == "train":
            return balanced(train(), self.count, PROMPTS_SEED)
        if self.prompts == "moving":
            return moving.heldout(self.count, PROMPTS_SEED)
        if self.prompts == "moving_train":
            return balanced(moving.train(), self.count, PROMPTS_SEED, moving.CATEGORIES)
        classes = class_prompts()
        return tuple(classes[i % len(classes)] for i in range(self.count))


def _parts(prompts: Sequence[Prompt], rows: int) -> list[list[int]]:
    """Places of samples, up to `rows` a part. Those of one prompt are in one part: a reward may compare them."""
    parts: list[list[int]] = []
    for group in by_prompt(prompts):
        if not parts or len(parts[-1]) + len(group) > rows:
            parts.append([])
        parts[-1] += group
    return parts


def _values(images: Tensor, prompts: Sequence[Prompt], reward: Scorer | None) -> dict[str, Tensor]:
    verdicts = judge(images, prompts)
    values = {"verified": verdicts.right.float(), "requirements": verdicts.share}
    if reward is not None:
        with torch.no_grad():
            scores = reward(images, prompts)
        values["reward"] = scores.total
        values |= {f"reward_{part}": value for part, value in scores.parts.items()}
    return {name: value.detach().float().cpu() for name, value in values.items()}


def _by_category(verified: Float[Tensor, " n"], prompts: Sequence[Prompt]) -> dict[str, Float[Tensor, " n"]]:
    """For each category the verdicts on its samples, NaN on the others'."""
    kinds = [str(p.facts["category"]) for p in prompts]
    return {
        f"verified_{kind}": verified.where(torch.tensor([k == kind for k in kinds]), torch.nan)
        for kind in dict.fromkeys(kinds)
    }


def _mean(values: Float[Tensor, " n"]) -> float:
    """Mean of the values that could be computed; NaN if there is none."""
    return float(values.nanmean())


def _diversity(images: Float[Tensor, "n *f c h w"], each: int) -> float:
    """Mean absolute difference, in [0, 1], between two samples of one prompt. Every `each` in a row share a prompt."""
    groups = images.flatten(1).unflatten(0, (-1, each))
    gaps = torch.cdist(groups, groups, p=1) / groups.shape[2]
    return float(gaps.sum() / (len(groups) * each * (each - 1)))
