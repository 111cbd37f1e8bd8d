"""Only the last steps are learned from, and more of them as training goes on. B2-DiffuRL, arXiv:2503.11240.

B2-DiffuRL   transition ddim eta 1, steps 20, guidance 5, branches 5, group 5, first 14, last 20, stages 100
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Planner, Solver, Transition
from burnish.formulas.windows import drawable, growing
from burnish.viewing import viewed


@dataclass(frozen=True)
class BackwardInterval(Planner):
    """Samples share their way to the last m steps, divide there, and are learned from thereafter.

    m goes evenly from `first` to `last` over `stages` training steps. The very last step, of which m counts one, is not
    drawn at random and so not learned from.
    """

    transition: Transition  # how a step moves at random
    group: int = 5  # samples drawn for each prompt; a multiple of `branches`
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 20  # network evaluations from noise to picture
    branches: int = 5  # samples that share a way
    first: int = 14  # m at the beginning of training
    last: int = 20  # m from training step `stages` on
    stages: int = 100  # training steps over which m goes from first to last
    shared: Literal["noise", "ode"] = "noise"  # the way that is shared: drawn at random (not learned from), or the ODE
    solver: Solver = "euler"  # of the steps that are not drawn at random
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        drawable(self.steps)
        for name, m in (("first", self.first), ("last", self.last)):
            if not 2 <= m <= self.steps:
                raise ValueError(f"{name} must be from 2 to {self.steps}, the number of steps, got {m}")
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1 training step, got {self.stages}")
        if self.branches < 2:
            raise ValueError(f"branches must be at least 2, got {self.branches}")
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    def at(self, step: int) -> LatentPlan:
        fork = self.steps - growing(self.first, self.last, self.stages, step)
        interval = tuple(range(fork, drawable(self.steps)))
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            stochastic=interval if self.shared == "ode" else tuple(range(drawable(self.steps))),
            trained=interval,
            transition=self.transition,
            solver=self.solver,
            forks=((fork, self.branches),),
            stored=self.stored,
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)
