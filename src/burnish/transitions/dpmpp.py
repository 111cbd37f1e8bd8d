"""DPM-Solver++ as a stochastic step of first order (Lu et al. 2022, arXiv:2211.01095), as MixGRPO has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Transition
from burnish.formulas import gaussian
from burnish.formulas.gaussian import rows


@dataclass(frozen=True)
class DPMpp(Transition):
    """s/t e^-h x + (1 - s)(1 - e^-2h) clean, deviation s sqrt(1 - e^-2h); h is the gain in log((1 - t) / t).

    The same Gaussian as ddim with eta 1, named and written as MixGRPO has it. At t = 1 all noise is new.
    """

    def move(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"], s: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        t, s = t.double(), s.double()
        shrink = s / t * ((1 - t) / (1 - s))  # e^-h
        fresh = (1 - shrink.square()).clamp(min=0)
        mean = rows(s / t * shrink, x) * x + rows((1 - s) * fresh, x) * gaussian.clean(x, velocity, t)
        return mean, (s * torch.sqrt(fresh)).to(x.dtype)

    def logp(
        self, after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return gaussian.logp(after, mean, std)
