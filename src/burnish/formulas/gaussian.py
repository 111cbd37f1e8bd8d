"""Gaussian steps, with everything taken as a mean over the dimensions of a state: nats *a dimension*.

DDPO (arXiv:2305.13301) and all after it take the mean, not the sum, so a ratio of theirs is the D-th root of the true
one, and clip ranges of 1e-4 are meant for it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def rows(values: Float[Tensor, " n"], like: Float[Tensor, "n *d"]) -> Float[Tensor, "n *1"]:
    """One number a row, in a shape and precision that multiply `like`."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))


def mean_over_dimensions(values: Float[Tensor, "n *d"]) -> Float[Tensor, " n"]:
    return values.flatten(1).mean(1)


def off_noise(t: Float[Tensor, " n"], s: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """t, or s for a step from t to s that begins at noise, for what is divided by 1 - t.

    At noise is t = 1, or so near that what lies before it is a small part of the step, and below 0.01. DPM-Solver's
    first times (0.999, shifted) are, in schedules of up to 199 steps. No later time is in diffusers' schedules of 2 to
    100 steps with shifts of 1 to 17: where 1 - t < 0.01, it is at least 0.46 of the step. In those of 2 or 3 steps
    large shifts make it as little as 0.06, but there 1 - t > 0.05.
    """
    before = 1 - t
    return torch.where((before < 0.01) & (before < 0.2 * (t - s)), s, t)


def logp(after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Log-density of N(mean, std^2) at `after`, nats a dimension."""
    std = std.to(mean.device, mean.dtype)
    square = mean_over_dimensions((after - mean).square())
    return -square / (2 * std.square()) - std.log() - 0.5 * math.log(2 * math.pi)


def entropy(std: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Of a Gaussian, nats a dimension."""
    return std.log() + 0.5 * math.log(2 * math.pi * math.e)


def kl(mean: Float[Tensor, "n *d"], other: Float[Tensor, "n *d"], std: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """KL between two Gaussians of one deviation, nats a dimension: exact, and in both directions the same."""
    return mean_over_dimensions((mean - other).square()) / (2 * std.to(mean.device, mean.dtype).square())


def clean(x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"]) -> Float[Tensor, "n *d"]:
    """The clean state that x at t is expected to come from: x - t v."""
    return x - rows(t, x) * velocity


def noise(x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"]) -> Float[Tensor, "n *d"]:
    """The noise that is expected in x at t: x + (1 - t) v."""
    return x + rows(1 - t, x) * velocity


def mixed(clean: Float[Tensor, "n *d"], noise: Float[Tensor, "n *d"], t: Float[Tensor, " n"]) -> Float[Tensor, "n *d"]:
    """The state at t: (1 - t) x_0 + t noise."""
    return rows(1 - t, clean) * clean + rows(t, clean) * noise


def variance_preserving(t: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Signal and noise level (sqrt(abar), sqrt(1 - abar)) of the variance-preserving path with the same ratio as t.

    x_vp = x / sqrt((1 - t)^2 + t^2): DDPM's states are those of a rectified flow, each divided by its length.
    """
    length = torch.sqrt((1 - t).square() + t.square())
    return (1 - t) / length, t / length
