"""Several candidates for each step, of which one is gone on with. SPO, Liang et al. 2024, arXiv:2406.04314.

SPO   transition ddim eta 1, steps 20, first 4, candidates 4 (SD 1.5; 2 to 3 for SDXL), guidance 5
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Planner, Solver, Transition
from burnish.formulas.windows import drawable
from burnish.viewing import viewed


@dataclass(frozen=True)
class Candidates(Planner):
    """From step `first` on, `candidates` samples draw from one state, and all go on from one of them, chosen at random.

    The choice looks at nothing, so the way that is gone is drawn by the law of a single sample. A step of it is one
    evaluation of the network for all its candidates, in drawing and in scoring. The samples of a way have one picture
    and one score: which candidate is better is for an advantage to find out (step_preview), or for an objective.
    The last step is not drawn at random, and those before `first` are, but are not learned from.
    """

    transition: Transition  # how a step moves at random
    group: int = 4  # samples drawn for each prompt; a multiple of `candidates`, of which each makes one way
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 20  # network evaluations from noise to picture
    candidates: int = 4  # for each step
    first: int = 4  # step with the first candidates, counted from 0, the noisiest
    shared_start: bool = False  # ways of a group start from one noise
    solver: Solver = "euler"  # of the last step, and of those of evaluation
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        if not 0 <= self.first < drawable(self.steps):
            raise ValueError(f"first must be from 0 to {drawable(self.steps) - 1}, got {self.first}")
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2, got {self.candidates}")
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    def at(self, step: int) -> LatentPlan:
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            stochastic=tuple(range(drawable(self.steps))),
            trained=tuple(range(self.first, drawable(self.steps))),
            transition=self.transition,
            solver=self.solver,
            shared_start=self.shared_start,
            stored=self.stored,
            candidates=self.candidates,
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)
