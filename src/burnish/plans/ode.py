"""Clean samples only, along the ODE: of objectives that need no likelihood of a step. DiffusionNFT, arXiv:2509.16117.

DiffusionNFT   solver dpm2, steps 10, group 24, no guidance
DGPO           solver dpm2, steps 10, group 16 to 24, guidance 4.5
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Planner, Solver
from burnish.viewing import viewed


@dataclass(frozen=True)
class ODE(Planner):
    """Samples differ by their starting noise and by nothing else; there are no decisions to score."""

    group: int = 24  # samples drawn for each prompt and compared with one another
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 10  # network evaluations from noise to picture
    solver: Solver = "dpm2"  # euler, dpm2 or unipc (models/solvers.py)
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    def at(self, step: int) -> LatentPlan:
        return LatentPlan(
            group=self.group, guidance=self.guidance, steps=self.steps, solver=self.solver, stored=self.stored
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)
