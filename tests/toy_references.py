"""Reference pictures for the suite `distribution`, whose relation to the toy policy is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from toys import ToyRaster

from burnish.draws import draw_all
from burnish.types import Prompt, TokenPlan

CALLS: list[int] = []


def itself(prompts: Sequence[Prompt], seed: int) -> torch.Tensor:
    """What the policy draws under seed 5."""
    CALLS.append(len(prompts))
    return draw_all(ToyRaster().load(torch.device("cpu")), prompts, TokenPlan(group=1), 5, 16)


def negative(prompts: Sequence[Prompt], seed: int) -> torch.Tensor:
    return torch.cat([1 - itself(prompts, seed)[:, :1], torch.ones(len(prompts), 2, 4, 12)], 1)  # red turned round


def gray(prompts: Sequence[Prompt], seed: int) -> torch.Tensor:
    return torch.zeros(len(prompts), 1, 4, 4)


def few(prompts: Sequence[Prompt], seed: int) -> torch.Tensor:
    return torch.zeros(3, 3, 4, 4)
