"""DDPO's advantage: how a sample compares with what its prompt has brought so far, in this step and those before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage, Memory, Policy
from burnish.formulas.groups import exact
from burnish.prompts import distinct_prompts
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class PromptHistory(Advantage):
    """(R - mean) / (std + eps) over the last rewards of a prompt. Black et al. 2023, arXiv:2305.13301, section 4.3.

    As released (ddpo-pytorch, stat_tracking.py): a prompt's rewards of this step join its history first; one with
    fewer than `least` is compared with all samples of the step instead; std has ddof 0. No group is needed: one sample
    of a prompt is compared with earlier ones. Rewards of a step join in the order of the samples' numbers.

    Metrics:
        known         share of the valid samples that were compared with their own prompt
    """

    buffer: int = 32  # rewards of a prompt that are remembered; the oldest goes first
    least: int = 16  # of them that are needed before a prompt is judged by its own
    eps: float = 1e-6  # added to the standard deviation, in units of the reward

    def __post_init__(self) -> None:
        if not 2 <= self.least <= self.buffer:
            raise ValueError(
                "advantage.prompt_history: least must be 2 or more and at most buffer, "
                f"not {self.least} of {self.buffer}"
            )

    def begin(self, policy: Policy | None) -> _History:
        return _History(self)

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        return self.begin(None)(scores, rollout)


class _History(Advantage, Memory):
    def __init__(self, settings: PromptHistory) -> None:
        self._settings = settings
        self._rewards: dict[str, Float[Tensor, " n"]] = {}  # of every prompt by its id, newest last; float64
        self._known = 0.0

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"]:
        total, valid = exact(scores.total).cpu(), scores.valid.cpu()
        rows, distinct = distinct_prompts(rollout.prompts)
        everyone = self._normed(total, total[valid])
        found, known = torch.zeros_like(total), 0
        in_order = torch.tensor(rollout.ids).argsort()
        for number, prompt in enumerate(distinct):
            mine = in_order[((rows == number) & valid)[in_order]]
            earlier = self._rewards.get(prompt.id, total.new_empty(0))
            if not len(mine):
                continue
            past = self._rewards[prompt.id] = torch.cat([earlier, total[mine]])[-self._settings.buffer :]
            enough = len(past) >= self._settings.least
            found[mine] = (self._normed(total, past) if enough else everyone)[mine]
            known += enough * len(mine)
        self._known = known / max(1, int(valid.sum()))
        return found.to(scores.total)

    def _normed(self, total: Tensor, among: Float[Tensor, " n"]) -> Float[Tensor, " b"]:
        return (total - among.mean()) / (among.std(correction=0) + self._settings.eps)

    def state(self) -> dict[str, Any]:
        return {"rewards": dict(self._rewards)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rewards = dict(state["rewards"])

    def metrics(self) -> dict[str, float]:
        return {"known": self._known}
