"""A tree in a window of the draw, noisier at every fork, and the ODE around it. Dynamic-TreeRPO, arXiv:2509.23352.

Dynamic-TreeRPO   transition flow_sde, depth 4, children 2, group 16, growth 0.5
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Louder, Planner, Solver, Transition
from burnish.formulas.noise import generator
from burnish.formulas.windows import drawable, stage, starts
from burnish.viewing import viewed


@dataclass(frozen=True)
class WindowTree(Planner):
    """`depth` steps in a row, at each of which every branch divides; the samples of a prompt are its leaves.

    The k-th of them has 1 + growth k / depth times the noise of the transition, k from 0: what is decided late differs
    more. All samples share the way to the window. Known from abstract and reviews: the law of the noise, the depth and
    where the window stands are ours.
    """

    transition: Transition  # how a step moves at random
    group: int = 16  # samples drawn for each prompt; a multiple of the leaves of a tree
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 25  # network evaluations from noise to picture
    depth: int = 4  # steps of the window
    children: int = 2  # branches that each divides into
    growth: float = 0.0  # beta: how much noisier, as a part, the tree is towards its leaves; above 0 needs flow_sde
    mode: Literal["progressive", "random"] = "progressive"  # how the window moves: from noise to picture, or anywhere
    dwell: int = 25  # training steps at one place
    stride: int = 1  # steps of the denoiser from one place to the next
    until: int = 0  # windows lie before this step; 0: anywhere before the last
    solver: Solver = "euler"  # of the steps outside the window
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    seed: int = 0  # of mode random
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        if self.children < 2 or self.dwell < 1:
            raise ValueError(f"children must be at least 2 and dwell at least 1, got {self.children} and {self.dwell}")
        if not self.growth >= 0:
            raise ValueError(f"growth must be 0 (noise as the transition has it) or more, got {self.growth}")
        if self.growth > 0 and not isinstance(self.transition, Louder):
            raise ValueError(
                f"growth {self.growth}: {type(self.transition).__name__} cannot be made noisier; flow_sde can"
            )
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    def at(self, step: int) -> LatentPlan:
        places = starts(drawable(self.steps, self.until), self.depth, self.stride)
        if self.mode == "random":
            start = places[
                int(generator("window_tree", self.seed, max(step - 1, 0) // self.dwell).integers(len(places)))
            ]
        else:
            start = places[stage(step, [self.dwell] * len(places))]
        window = tuple(range(start, start + self.depth))
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            stochastic=window,
            transition=self.transition,
            transitions=self._transitions(),
            solver=self.solver,
            shared_start=True,
            forks=tuple((fork, self.children) for fork in window),
            stored=self.stored,
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)

    def _transitions(self) -> tuple[Transition, ...]:
        if self.growth == 0:
            return ()
        assert isinstance(self.transition, Louder)
        return tuple(self.transition.louder(1 + self.growth * k / self.depth) for k in range(self.depth))
