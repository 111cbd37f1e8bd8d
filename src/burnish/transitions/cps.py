"""Coefficient-preserving sampling: steps with exactly the noise their time stands for (arXiv:2509.05952)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from burnish.core import Transition
from burnish.formulas import gaussian
from burnish.formulas.gaussian import mean_over_dimensions, rows


@dataclass(frozen=True)
class CPS(Transition):
    """(1 - s) clean + sqrt(s^2 - sigma^2) noise + sigma z with sigma = s sin(eta pi / 2).

    The released log-probability is -|after - mean|^2 alone, so clip ranges are not comparable with those of flow_sde
    (1e-5 there); `density` takes the Gaussian's own instead.
    """

    eta: float = 0.7  # 0 is the ODE, 1 replaces all noise
    density: bool = False  # log-probability of the Gaussian, and not the released squared distance

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 (deterministic) to 1 (all noise is new), got {self.eta}")

    def move(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"], s: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        t, s = t.double(), s.double()
        angle = self.eta * math.pi / 2
        clean, noise = gaussian.clean(x, velocity, t), gaussian.noise(x, velocity, t)
        return rows(1 - s, x) * clean + rows(s * math.cos(angle), x) * noise, (s * math.sin(angle)).to(x.dtype)

    def logp(
        self, after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        if self.density:
            return gaussian.logp(after, mean, std)
        return -mean_over_dimensions((after - mean).square())
