"""Samples leave one deterministic path by one random step each: TempFlow-GRPO (arXiv:2508.04324), G2RPO (2510.01982).

A reward then belongs to the one step that differs, and the samples that leave by the same step are compared.

    TempFlow-GRPO  transition flow_sde a 0.7, steps 10, at_once 0, group 54 (6 for each of 9 steps); 4 paths a prompt
    G2RPO          transition flow_sde a 0.7, steps 16, until 8, at_once 1, strides 1 and 2, group 24 (12 on each);
                   advantage granular
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Planner, Solver, Transition
from burnish.formulas.windows import drawable, in_turn, strided
from burnish.viewing import viewed


@dataclass(frozen=True)
class SingleBranch(Planner):
    """`group` samples, equally many for each step that is branched off at, follow the ODE before and after it.

    Siblings have the same input of the network, so one evaluation serves the log-probabilities of all of them. With
    several strides each of them is finished on as many grids, and is a sample of the group on each.
    """

    transition: Transition  # how a sample leaves the path
    group: int = 6  # pictures drawn for each prompt; a multiple of the branches times the strides
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 10  # network evaluations from noise to picture
    until: int = 0  # samples leave at steps before this one; 0: at any but the last
    at_once: int = 1  # of these steps, how many a training step takes, in turn; 0: all of them
    strides: tuple[int, ...] = (1,)  # after the branch every n-th state is gone through, for each n of these anew
    solver: Solver = "euler"  # of the path, before and after the branch
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        count = drawable(self.steps, self.until)
        if not 0 <= self.at_once <= count:
            raise ValueError(f"at_once must be from 1 to {count}, or 0 for all {count} steps, got {self.at_once}")
        if sorted(set(self.strides)) != list(self.strides) or not self.strides or self.strides[0] < 1:
            raise ValueError(
                f"strides must be one number from 1 on or more, each once and in order, got {self.strides}"
            )
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    def at(self, step: int) -> LatentPlan:
        count = drawable(self.steps, self.until)
        branches = in_turn(count, self.at_once or count, step)
        ways = tuple(strided(self.steps, branch, stride) for branch in branches for stride in self.strides)
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            transition=self.transition,
            solver=self.solver,
            branches=branches,
            stored=self.stored,
            ways=() if self.strides == (1,) else ways,
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)
