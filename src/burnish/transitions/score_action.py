"""The score as an action: what a step is to follow is drawn, and then the noise of the equation. arXiv:2502.01819."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Stirred, Transition
from burnish.formulas import gaussian, steps


@dataclass(frozen=True)
class ScoreAction(Transition):
    """a ~ N(score of the weights, covariance) is drawn, a step of `inner` follows a, and its noise comes after.

    Zhao et al. 2025, 'Score as Action': dX = (-f + g^2 a) dt + g dB with a Gaussian policy over a; log pi is of a, and
    not of the next state. That equation is `inner: {flow_sde: {a: 1.4142}}` here (g^2 = 2 t / (1 - t) in a rectified
    flow); ddim with eta 1 takes larger steps of the same equation. Any transition will do, as the paper wants it.

    The paper's covariance is not known to us. Ours is that of t a, the score in deviations of the noise: as t a is
    minus the noise that is expected in x, the action is a noise with `variance` around the network's.

    Recorded is where the step would lead without the noise after it: a linear image of a, given x. So ratios are those
    of the actions, and log-probabilities differ from theirs by a number that no weight changes. At t = 1, where a score
    says nothing of the velocity, 1 - t is that of the step's end.
    """

    inner: Transition  # the step: how it follows an action, and the noise after it
    variance: float = 0.05  # of the action, in a dimension of noise that has a variance of 1

    def __post_init__(self) -> None:
        if not self.variance > 0:
            raise ValueError(f"variance must be above 0, or there is nothing to learn from, got {self.variance}")
        if isinstance(self.inner, Stirred):
            raise ValueError(
                f"inner: {type(self.inner).__name__} is an action with noise after it already; ddim is not"
            )

    def move(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"], s: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        t, s = t.double(), s.double()
        mean, _ = self.inner.move(x, velocity, t, s)
        reach = steps.gain(self.inner.move, torch.stack([t, s], -1)).to(t)
        # noise = x + (1 - t) v
        return mean, (math.sqrt(self.variance) * reach / (1 - gaussian.off_noise(t, s))).to(x.dtype)

    def logp(
        self, after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return gaussian.logp(after, mean, std)

    def stir(self, t: Float[Tensor, " n"], s: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        still = torch.zeros(len(t), 1, dtype=torch.float64, device=t.device)
        return self.inner.move(still, still, t.double(), s.double())[1]
