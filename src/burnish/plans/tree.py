"""Samples are the leaves of a tree that divides at some steps. BranchGRPO, Li et al. 2025, arXiv:2509.06040.

BranchGRPO        transition flow_sde a 0.3 constant, steps 20, forks 0 3 6 9, children 2, group 16
  depth pruning   besides, pruned 14 15 16 17, pruned_moves 30, pruned_until 8
Dynamic-TreeRPO   transition flow_sde, forks 0 1 2 3, between ode: a path, a tree of four levels, and paths again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Planner, Siblings, Solver, Transition
from burnish.formulas.windows import drawable
from burnish.viewing import viewed


@dataclass(frozen=True)
class Tree(Planner):
    """Before each step of `forks` every branch divides into `children`. What branches share is computed once.

    How siblings are drawn (core.Siblings): independently, each from the Gaussian that scores it; or wide or near.
    """

    transition: Transition  # how a step moves at random
    group: int = 16  # samples drawn for each prompt; a multiple of the leaves of a tree
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 20  # network evaluations from noise to picture
    forks: tuple[int, ...] = (0, 3, 6, 9)  # steps at which every branch divides
    children: int = 2  # branches that each divides into
    between: Literal["noise", "ode"] = "noise"  # steps without a fork: drawn at random too (not the last), or the ODE
    siblings: Siblings = "own"  # own: each from the law that is scored; wide: as released; near: from the law, alike
    spread: float = 4.0  # of siblings: how many times as wide, or the share that is their own
    shared_start: bool = True  # the trees of a group, if it holds several, start from one noise
    pruned: tuple[int, ...] = ()  # steps that are drawn and not learned from (depth pruning), when training begins
    pruned_moves: int = 0  # training steps after which they move one step towards the noise; 0: they stay
    pruned_until: int = 0  # the first step they move to
    solver: Solver = "euler"  # of the steps that are not drawn at random
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        count = drawable(self.steps)
        if not self.forks or sorted(set(self.forks)) != list(self.forks):
            raise ValueError(f"forks must be one step or more, each once and in order, got {list(self.forks)}")
        if not 0 <= self.forks[0] <= self.forks[-1] < count:
            raise ValueError(
                f"forks must be from 0 to {count - 1}, because the last step is never drawn at random, "
                f"got {list(self.forks)}"
            )
        if self.children < 2:
            raise ValueError(f"children must be at least 2, got {self.children}")
        if not set(self.pruned) < set(self._random) or sorted(set(self.pruned)) != list(self.pruned):
            raise ValueError(
                f"pruned: some of the steps drawn at random, {list(self._random)}, each once and in order; "
                f"got {list(self.pruned)}"
            )
        if self.pruned_moves < 0 or self.pruned_until < 0:
            raise ValueError("pruned_moves and pruned_until must be 0 or more")
        if self.pruned_moves and self.between == "ode":
            raise ValueError(
                "pruned_moves: steps between forks that follow the ODE cannot be pruned, so they cannot move"
            )
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    @property
    def _random(self) -> tuple[int, ...]:
        return self.forks if self.between == "ode" else tuple(range(drawable(self.steps)))

    def at(self, step: int) -> LatentPlan:
        moved = step // self.pruned_moves if self.pruned_moves else 0
        moved = min(moved, max(0, min(self.pruned, default=0) - self.pruned_until))
        left_out = {number - moved for number in self.pruned}
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            stochastic=self._random,
            trained=tuple(number for number in self._random if number not in left_out) if left_out else None,
            transition=self.transition,
            solver=self.solver,
            shared_start=self.shared_start,
            forks=tuple((fork, self.children) for fork in self.forks),
            siblings=self.siblings,
            spread=self.spread,
            stored=self.stored,
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)
