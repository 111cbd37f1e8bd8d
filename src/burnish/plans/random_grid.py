"""Every step but the last is drawn at random, on a grid of times drawn anew. Continuous Time RL, arXiv:2502.01819.

Continuous Time RL   transition score_action, steps 50, refine 10
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Planner, Solver, Transition
from burnish.formulas.windows import drawable, scattered
from burnish.viewing import viewed


@dataclass(frozen=True)
class RandomGrid(Planner):
    """Times of the steps are `steps` + 1 of those of `steps` x `refine` even ones, other ones in every training step.

        even      one time in each stretch of `refine` around the even grid
        anywhere  any of them, each set as likely

    What is learned then belongs to a time and not to a step. The paper's law of the grid is not known to us. All
    samples of a training step share theirs. `steps` x `refine` should divide the timesteps that a model was trained on
    (1000 of Stable Diffusion, which otherwise begins below its noisiest).
    """

    transition: Transition  # how a step moves at random
    group: int = 4  # samples drawn for each prompt
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 50  # network evaluations from noise to picture
    refine: int = 10  # times to choose from, for each step
    law: Literal["even", "anywhere"] = "even"  # of the grid
    shared_start: bool = False  # samples of a group start from one noise
    solver: Solver = "euler"  # of the last step, and of those of evaluation
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    seed: int = 0  # of the grids
    evaluation_steps: int = 0  # of pictures that are only looked at, on an even grid; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    def at(self, step: int) -> LatentPlan:
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            stochastic=tuple(range(drawable(self.steps))),
            transition=self.transition,
            solver=self.solver,
            shared_start=self.shared_start,
            stored=self.stored,
            grid=scattered(self.steps, self.refine, self.law == "even", "random grid", self.seed, step),
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)
