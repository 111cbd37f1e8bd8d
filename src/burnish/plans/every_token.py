"""Every token is drawn and trained alike, with the same plan at every step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import get_args

from burnish.core import Planner
from burnish.types import Law, TokenPlan


@dataclass(frozen=True)
class EveryToken(Planner):
    """The same plan at every step: all tokens are drawn and all are trained (AR-GRPO, arXiv:2508.06924)."""

    group: int = 8  # samples drawn for each prompt and compared with one another
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional logits; 1 is no guidance
    temperature: float = 1.0  # logits are divided by it before filtering
    top_k: int = 0  # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of tokens whose mass reaches p; 1 keeps all
    law: Law = "sampled"  # whose log-probability is recomputed and trained: sampled, conditional, guided, tempered
    detach_null: bool = False  # stop the gradient through the unconditional branch

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}")
        if not self.guidance >= 0:
            raise ValueError(f"guidance must be 0 or more, got {self.guidance} (1 is no guidance)")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature} (top_k: 1 draws greedily)")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (keeps all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (keeps all tokens), got {self.top_p}")
        if self.law not in get_args(Law):
            raise ValueError(f"law must be one of {', '.join(get_args(Law))}, got {self.law!r}")

    def at(self, step: int) -> TokenPlan:
        return TokenPlan(**asdict(self))
