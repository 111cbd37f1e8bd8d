"""The ODE, with the state kept that a gradient begins from. AlignProp, Prabhudesai et al. 2023, arXiv:2310.03739.

AlignProp   steps 50, guidance 7.5, law uniform (the paper), or normal around step 42
DRaFT-K     law fixed, mean steps - K
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.core import LatentPlan, Planner
from burnish.formulas.noise import generator
from burnish.viewing import viewed


@dataclass(frozen=True)
class Truncated(Planner):
    """Objectives that differentiate the draw (reward_gradient with last 0) begin at one step, drawn anew every time:

        uniform   any of `low` to `high`, each as likely
        normal    the whole number next to N(mean, deviation^2), within `low` to `high`
        fixed     `mean`

    One step for all samples of a training step. The released code draws it again at every step of the denoiser and
    cuts those before it, so that step i of 50 is learned from with chance (i + 1) / 51, each on its own.
    """

    group: int = 1  # samples drawn for each prompt
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance
    steps: int = 50  # network evaluations from noise to picture
    law: Literal["uniform", "normal", "fixed"] = "uniform"  # of the first step that is differentiated
    low: int = 0  # the earliest it may be, counted from 0, the noisiest
    high: int | None = None  # the latest; None: the last step
    mean: float | None = None  # of law normal, and the step of law fixed; None: 0.84 of the steps, 42 of 50
    deviation: float = 5.0  # of law normal, in steps
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    seed: int = 0  # of the choice of the step
    evaluation_steps: int = 0  # of pictures that are only looked at; 0: as in training
    evaluation_guidance: float | None = None  # of them; None: as in training

    def __post_init__(self) -> None:
        last = self.steps - 1
        if not 0 <= self.low <= self._high <= last:
            raise ValueError(f"low and high must be steps from 0 to {last}, in order, got {self.low} and {self.high}")
        if not 0 <= self._mean <= last:
            raise ValueError(f"mean must be from 0 to {last}, got {self.mean}")
        if self.deviation < 0:
            raise ValueError(f"deviation must be 0 or more steps, got {self.deviation}")
        self.at(0)  # raises ValueError for a number out of range
        self.evaluation()

    @property
    def _high(self) -> int:
        return self.steps - 1 if self.high is None else self.high

    @property
    def _mean(self) -> float:
        return min(0.84 * self.steps, self.steps - 1) if self.mean is None else self.mean

    def at(self, step: int) -> LatentPlan:
        return LatentPlan(
            group=self.group,
            guidance=self.guidance,
            steps=self.steps,
            stored=self.stored,
            waypoint=self._first(step),
        )

    def evaluation(self) -> LatentPlan:
        return viewed(self.at(0), self.evaluation_steps, self.evaluation_guidance)

    def _first(self, step: int) -> int:
        random = generator("truncated", self.seed, step)
        if self.law == "uniform":
            return int(random.integers(self.low, self._high + 1))
        mean = self._mean if self.law == "fixed" else random.normal(self._mean, self.deviation)
        return min(max(round(float(mean)), self.low), self._high)
