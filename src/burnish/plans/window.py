"""A few steps in a row are drawn at random, the others follow the ODE. MixGRPO, Li et al. 2025, arXiv:2507.21802.

MixGRPO         transition flow_sde a 0.7, steps 25, group 12, width 4, dwell 25, stride 1, shared_start
MixGRPO-Flash   the same with compression 0.4: what follows the window takes fewer steps, of second order
MixGRPO-Flash*  compression 0.2 and until 4: the window stays at the first steps
Flow-GRPO-Fast  transition cps eta 0.8, steps 10, group 24, width 2 or 3, mode random, dwell 1, until 5
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Planner, Solver, Transition
from burnish.formulas.noise import generator
from burnish.formulas.windows import compressed, drawable, fading, stage, starts
from burnish.viewing import viewed


@dataclass(frozen=True)
class Window(Planner):
    """`width` steps are drawn at random and learned from. The window moves as training goes on:

    progressive  from noise to picture, `dwell` training steps at each place, and round again
    decay        the same, and shorter at late steps: dwell e^(-rate relu(place - threshold))
    random       anywhere, `dwell` training steps at each place
    """

    transition: Transition  # how a step moves at random
    group: int = 12  # samples drawn for each prompt and compared with one another
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 25  # network evaluations from noise to picture, if nothing is compressed
    width: int = 4  # steps drawn at random
    mode: Literal["progressive", "random", "decay"] = "progressive"  # how the window moves
    dwell: int = 25  # training steps at one place
    stride: int = 1  # steps of the denoiser from one place to the next
    until: int = 0  # windows lie before this step; 0: anywhere before the last
    rate: float = 0.1  # of mode decay
    threshold: int = 13  # of mode decay: the first place that is not shortened
    shared_start: bool = True  # samples of a group start from one noise
    solver: Solver = "euler"  # of the steps outside the window
    compression: float = 1.0  # below 1: part of the steps after the window that are taken, and they are taken by dpm2
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    seed: int = 0  # of mode random
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        if self.dwell < 1:
            raise ValueError(f"dwell must be at least 1 training step, got {self.dwell}")
        if self.rate < 0:
            raise ValueError(f"rate must be 0 (no decay) or more, got {self.rate}")
        if not 0 < self.compression <= 1:
            raise ValueError(f"compression must be above 0 and at most 1 (takes all steps), got {self.compression}")
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    def at(self, step: int) -> LatentPlan:
        start = self._start(step)
        end, flash = start + self.width, self.compression < 1
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            stochastic=tuple(range(start, end)),
            transition=self.transition,
            solver=self.solver,
            finish="dpm2" if flash else None,
            ways=((*range(end), *compressed(self.steps, end, self.compression)),) if flash else (),
            shared_start=self.shared_start,
            stored=self.stored,
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)

    def _start(self, step: int) -> int:
        places = starts(drawable(self.steps, self.until), self.width, self.stride)
        if self.mode == "random":
            place = generator("window", self.seed, max(step - 1, 0) // self.dwell).integers(len(places))
            return places[int(place)]
        rate = self.rate if self.mode == "decay" else 0.0
        return places[stage(step, [fading(self.dwell, place, rate, self.threshold) for place in places])]
