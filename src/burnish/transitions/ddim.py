"""DDIM with noise (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16), the step of DDPO and its successors."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    eta: float = 1.0  # share of the posterior's noise

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 (deterministic) to 1 (all of DDPM's noise), got {self.eta}")

    def move(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"], s: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        t, s = t.double(), s.double()
        (signal, noise), (signal_after, noise_after) = variance_preserving(t), variance_preserving(s)
        # 1 - abar_t / abar_s; where the signal at t is 0 it is 1
        lost = 1 - (signal / signal_after).square()
        length = torch.sqrt((1 - s).square() + s.square())
        std = self.eta * noise_after / noise * lost.clamp(min=0).sqrt() * length
        kept = (s.square() - std.square()).clamp(min=0).sqrt()
        clean, other = gaussian.clean(x, velocity, t), gaussian.noise(x, velocity, t)
        return rows(1 - s, x) * clean + rows(kept, x) * other, std.to(x.dtype)

    def logp(
        self, after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return gaussian.logp(after, mean, std)
