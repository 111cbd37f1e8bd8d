"""Every step but the last is drawn at random: DDPO (arXiv:2305.13301), Flow-GRPO (2505.05470), DanceGRPO (2505.07818).

DDPO       transition ddim, steps 50, guidance 5
Flow-GRPO  transition flow_sde a 0.7, steps 10, group 24, guidance 4.5, evaluation_steps 40
DanceGRPO  transition flow_sde a 0.3 constant, steps 16, group 12, shared_start, train_share 0.6
RLCM       transition consistency, steps 8, guidance 8, evaluate_with_noise
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from burnish.core import LatentPlan, Planner, Solver, Transition
from burnish.formulas.windows import drawable, part_of
from burnish.viewing import viewed


@dataclass(frozen=True)
class AllSteps(Planner):
    """All steps but the last are drawn at random, and each sample is learned from by all of these, or by its own share.

    Which steps are a sample's follows from the key of its noise, so that no batch split changes it.
    """

    transition: Transition  # how a step moves at random
    group: int = 24  # samples drawn for each prompt and compared with one another
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 10  # network evaluations from noise to picture
    train_share: float = 1.0  # part of the random steps that a sample is learned from by, chosen anew for each sample
    shared_start: bool = False  # samples of a group start from one noise
    solver: Solver = "euler"  # of the steps that are not drawn at random: the last, and those of evaluation
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training
    evaluate_with_noise: bool = False  # they too are drawn at random, as a consistency model has to be

    def __post_init__(self) -> None:
        if not 0 < self.train_share <= 1:
            raise ValueError(f"train_share must be above 0 and at most 1 (all random steps), got {self.train_share}")
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    def at(self, step: int) -> LatentPlan:
        drawn = tuple(range(drawable(self.steps)))
        some = None if self.train_share == 1 else part_of(len(drawn), self.train_share)
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            stochastic=drawn,
            trained_each=some,
            transition=self.transition,
            solver=self.solver,
            shared_start=self.shared_start,
            stored=self.stored,
        )

    def evaluation(self) -> LatentPlan:
        plan = viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)
        if not self.evaluate_with_noise:
            return plan
        return replace(plan, stochastic=tuple(range(plan.steps - 1)), transition=self.transition)
