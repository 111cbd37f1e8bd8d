"""Every token is drawn and trained alike, with the same plan at every step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

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
        self.at(0)  # raises ValueError for a number out of range

    def at(self, step: int) -> TokenPlan:
        return TokenPlan(**asdict(self))

    def evaluation(self) -> TokenPlan:
        return replace(self.at(0), group=1)
