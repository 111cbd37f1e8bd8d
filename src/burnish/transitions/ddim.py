"""DDIM with noise (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16), the step of DDPO and its successors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Transition
from burnish.formulas import gaussian
from burnish.formulas.gaussian import rows, variance_preserving


@dataclass(frozen=True)
class DDIM(Transition):
    """sigma = eta x the deviation of DDPM's posterior; eta 1 is that posterior, 0 the ODE.
    Marginals are exact where all data is one point, and converge with the steps otherwise.

    Written for a rectified flow: the variance-preserving formula in states that are divided by their length.

    law pcpo is the deviation of PCPO's code (arXiv:2509.25774): with c1 = sqrt((1 - abar_t) abar_s / abar_t),

        (level c1 + sqrt((1 - abar_s)(1 + level^2) - c1^2)) / (1 + level^2), at most sqrt(1 - abar_s).

    It makes (c1 + c2) / sigma the level of every step, c2 = sqrt(1 - abar_s - sigma^2). What a step weighs is
    (c1 - c2) / sigma, which still varies.
    """

    eta: float = 1.0  # share of the posterior's noise
    law: Literal["posterior", "pcpo"] = "posterior"  # of sigma
    level: float = 4.5  # of law pcpo

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 (deterministic) to 1 (all of DDPM's noise), got {self.eta}")

    def move(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"], s: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        t, s = t.double(), s.double()
        (signal, noise), (signal_after, noise_after) = variance_preserving(t), variance_preserving(s)
        length = torch.sqrt((1 - s).square() + s.square())
        if self.law == "pcpo":
            c1, room = noise * signal_after / signal, 1 + self.level**2
            root = (noise_after.square() * room - c1.square()).clamp(min=0).sqrt()
            std = torch.minimum((self.level * c1 + root) / room, noise_after) * length
        else:
            # 1 - abar_t / abar_s; where the signal at t is 0 it is 1
            lost = 1 - (signal / signal_after).square()
            std = self.eta * noise_after / noise * lost.clamp(min=0).sqrt() * length
        kept = (s.square() - std.square()).clamp(min=0).sqrt()
        clean, other = gaussian.clean(x, velocity, t), gaussian.noise(x, velocity, t)
        return rows(1 - s, x) * clean + rows(kept, x) * other, std.to(x.dtype)

    def logp(
        self, after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return gaussian.logp(after, mean, std)
