"""The multi-step sampler of a consistency model (Song et al. 2023, arXiv:2303.01469, alg. 1), as RLCM trains it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from burnish.core import Transition
from burnish.formulas import gaussian
from burnish.formulas.gaussian import rows


@dataclass(frozen=True)
class Consistency(Transition):
    """The clean state that the network names, with fresh noise of the next time: mean (1 - s) clean, deviation s."""

    def move(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"], s: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        return rows(1 - s, x) * gaussian.clean(x, velocity, t), s.to(x.dtype)

    def logp(
        self, after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return gaussian.logp(after, mean, std)
