"""What a state on the way is worth, and what a step adds to it. b samples, k steps of each, in the order of time.

'Score as Action', Zhao et al. 2025, arXiv:2502.01819: a control problem whose reward comes at the end, less a running
cost. The advantage of a step is the rate q times its length, q dt = V(next) - V(state) - cost: in a sum over steps,
grad log pi x q dt is the integral of the policy gradient, whatever the grid of times.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def shares(t: Float[Tensor, "*n"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """(c_skip, c_out) of V = c_skip r(clean) + c_out F: cos and sin of pi t / 2, t = 0 the picture.

    The paper asks for 1 and 0 at the end, so that V is the reward there; the curve is ours.
    """
    return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)


def strayed(logp: Float[Tensor, "b k"], std: Float[Tensor, "b k"], noise: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """|y - m|^2 / (2 noise^2), nats a dimension: what a step y costs that N(m, std^2) gave the log-probability `logp`.

    With m of the reference and `noise` what is added to y, it is the KL between where the two go from here, and so
    g^2 |a - a_ref|^2 dt / 2 of the actions a (Girsanov). Read off a log-probability, a mean over dimensions.
    """
    return (std / noise).square() * (-logp - std.log() - 0.5 * math.log(2 * math.pi))


def to_go(final: Float[Tensor, " b"], cost: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """What was still to come before each step: the reward at the end, less the costs from that step on."""
    return final.unsqueeze(1) - cost.flip(1).cumsum(1).flip(1)


def added(value: Float[Tensor, "b k"], final: Float[Tensor, " b"], cost: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """V(next) - V(state) - cost of each step; the value after the last is the reward at the end.

    The steps of a sample add up to its return less V of its first state.
    """
    return torch.cat([value[:, 1:], final.unsqueeze(1)], 1) - value - cost
