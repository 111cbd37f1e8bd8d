"""A stochastic equation with the marginals of a flow, in Euler-Maruyama steps (Flow-GRPO, arXiv:2505.05470)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Transition
from burnish.formulas import gaussian
from burnish.formulas.gaussian import rows


@dataclass(frozen=True)
class FlowSDE(Transition):
    """mean = x + dt v - sigma_t^2 dt score / 2, deviation sigma_t sqrt(t - s); dt = s - t, score = -noise / t.

        sqrt      sigma_t = a sqrt(t / (1 - t))                 Flow-GRPO, a 0.7
        constant  sigma_t = a                                   DanceGRPO 0.3 (Flux), BranchGRPO
        linear    sigma_t = floor + (a - floor) t               Identity-GRPO

    The equation keeps the flow's marginals, its Euler steps add noise of order (t - s)^2: see cps for a remedy.
    `sqrt` is infinite at t = 1; there the denominator is that of the step's end, as Flow-GRPO released it
    (sd3_sde_with_logprob.py: sigma_max, its second time, where sigma == 1). Schedules that begin a little below 1, as
    DPM-Solver's at 0.9997 where sigma_t would be 38, are at 1 for this rule: see `gaussian.off_noise`. Steps near
    t = 1 add as much noise however many they are, a^4 / 4 of the variance in the first; in pictures it falls as
    steps^(-a^2).
    """

    a: float = 0.7  # level of the noise
    schedule: Literal["sqrt", "constant", "linear"] = "sqrt"  # how the noise depends on the time
    floor: float = 0.0  # of schedule linear: the noise at t = 0

    def __post_init__(self) -> None:
        if self.a < 0 or self.floor < 0:
            raise ValueError(f"a and floor must be 0 or more, got {self.a} and {self.floor}")

    def move(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"], s: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        t, s = t.double(), s.double()
        sigma, h = self._sigma(t, s), t - s
        pull = sigma.square() * h / (2 * t)
        # x + dt v - sigma^2 dt score / 2 with the score written out
        mean = x * rows(1 - pull, x) - rows(h + pull * (1 - t), x) * velocity
        return mean, (sigma * h.sqrt()).to(x.dtype)

    def louder(self, factor: float) -> FlowSDE:
        """sigma_t times `factor`, and the marginals as they were (schedule depth of Dynamic-TreeRPO)."""
        return replace(self, a=factor * self.a, floor=factor * self.floor)

    def _sigma(self, t: Tensor, s: Tensor) -> Tensor:
        if self.schedule == "constant":
            return torch.full_like(t, self.a)
        if self.schedule == "linear":
            return self.floor + (self.a - self.floor) * t
        return self.a * (t / (1 - gaussian.off_noise(t, s))).sqrt()

    def logp(
        self, after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return gaussian.logp(after, mean, std)
