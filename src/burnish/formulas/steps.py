"""Steps of a denoiser as decisions: how far weights have moved their Gaussians, and how much each step has a say.

The mean of a step is linear in the velocity; its deviation depends on the times alone. Everything is a mean over the
dimensions of a state. b samples, k steps of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.formulas.aggregation import counted, token_mean
from burnish.types import Latents, Mean, Rollout

Distance = Literal["gaussian", "flow_grpo", "mean", "velocity", "noise"]
Move = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # core.Transition.move


class Scored(Protocol):
    """What core.Steps has: recorded steps under some weights."""

    @property
    def mean(self) -> Float[Tensor, "b k *d"]: ...
    @property
    def std(self) -> Float[Tensor, "b k"]: ...
    @property
    def velocity(self) -> Float[Tensor, "b k *d"]: ...


class Moving(Protocol):
    """What core.LatentPlan has."""

    def move(self, x: Tensor, velocity: Tensor, t: Tensor, s: Tensor, step: Tensor) -> tuple[Tensor, Tensor]: ...


class Scoring(Protocol):
    """What core.Denoiser has."""

    def score(self, rollout: Rollout) -> Any: ...
    def using(self, copy: str) -> AbstractContextManager[None]: ...


def scored(policy: Scoring, rollout: Rollout, kl: float) -> tuple[Any, Any]:
    """The steps (core.Steps) under the live weights and, if `kl` is above 0, under the reference; None otherwise.

    The reference comes first and without gradient, while no graph holds the live weights.
    """
    reference = None
    if kl > 0:
        with torch.no_grad(), policy.using("reference"):
            reference = policy.score(rollout)
    return policy.score(rollout), reference


def latents_of(rollout: Rollout, who: str) -> Latents:
    """The recorded steps. Raises ValueError, naming `who` asks, for a rollout that has none."""
    if not rollout.decisions or not isinstance(rollout.decisions[0], Latents):
        raise ValueError(
            f"{who}: needs steps drawn at random; this rollout holds none (plan.stochastic, plan.branches)"
        )
    return rollout.decisions[0]


def mean_over_dimensions(values: Float[Tensor, "b k *d"]) -> Float[Tensor, "b k"]:
    return values.flatten(2).mean(2)


def distance(form: Distance, now: Scored, other: Scored, time: Float[Tensor, "b k 2"]) -> Float[Tensor, "b k"]:
    """How far two sets of weights are from one another at each step. The forms of the field differ by a factor.

    gaussian   |mean - mean'|^2 / (2 std^2), the exact KL, nats a dimension   TempFlow-GRPO, exact for any kernel
    flow_grpo  the same x (t - s): divides by 2 sigma_t^2, without the length of the step   Flow-GRPO as released
    mean       |mean - mean'|^2, in the units of a log-probability without 1 / (2 std^2)    Flow-Factory, for cps
    velocity   |v - v'|^2                                                     Flow-Factory, DiffusionNFT, DGPO
    noise      |eps - eps'|^2 = (1 - t)^2 |v - v'|^2                          DPOK, of models that predict noise
    """
    if form in ("velocity", "noise"):
        square = mean_over_dimensions((now.velocity - other.velocity).square())
        return square if form == "velocity" else square * (1 - time[..., 0]).square().to(square)
    square = mean_over_dimensions((now.mean - other.mean).square())
    if form == "mean":
        return square
    kl = square / (2 * now.std.to(square).square())
    return kl if form == "gaussian" else kl * (time[..., 0] - time[..., 1]).to(kl)


def leash(
    kl: float, form: Distance, now: Scored, reference: Scored | None, rollout: Rollout, keep: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, "b k"] | float, dict[str, Mean]]:
    """kl x the distance to the reference at each step, to be added to a loss, and the distance as a metric.

    0 and no metric without a reference. Steps that do not count have no influence.
    """
    if reference is None:
        return 0.0, {}
    apart = distance(form, now, reference, latents_of(rollout, "kl").time)
    apart = torch.where(counted(rollout.weight, keep), apart, 0.0)
    return kl * apart, {"kl": token_mean(apart, rollout.weight, keep)}


def guarded_log_ratio(mean: Float[Tensor, "b k *d"], steps: Latents) -> Float[Tensor, "b k"]:
    """z . (mean - mean_old), z the noise that was drawn: GRPO-Guard's log-ratio (arXiv:2510.22319).

    Equal to std log r + |mean - mean_old|^2 / (2 std). log r has a negative expectation, -|mean - mean_old|^2 /
    (2 std^2), which grows as std falls; this has none, at any step. Written as one product, nothing cancels.
    """
    std = steps.std.view(*steps.std.shape, *[1] * (mean.dim() - 2))
    return mean_over_dimensions((steps.after - steps.mean) / std * (mean - steps.mean))


def times_of(learned: Sequence[int], times: Float[Tensor, " s"]) -> Float[Tensor, "n 2"]:
    """Beginning and end of each of these steps."""
    at = torch.tensor(learned)
    return torch.stack([times[at], times[at + 1]], -1)


def moving(plan: Moving, step: Int[Tensor, "*n"] | Sequence[int]) -> Move:
    """How a plan moves steps of these numbers: what `deviation` and `leverage` take beside their times."""
    numbers = torch.as_tensor(step).detach().cpu().flatten()
    return lambda x, velocity, t, s: plan.move(x, velocity, t, s, numbers)


def deviation(move: Move, time: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    """Standard deviation of steps with these times, float64."""
    return _moved(move, time, 0.0)[1]


def gain(move: Move, time: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    """|d mean / d velocity|, float64: how far the mean goes when the velocity changes by 1."""
    return (_moved(move, time, 1.0)[0] - _moved(move, time, 0.0)[0]).abs()


def leverage(move: Move, time: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    """w = |d mean / d velocity| / std: deviations that a step moves by when its velocity changes by 1. float64.

    log r = -w dv . z - w^2 |dv|^2 / 2 (PCPO, arXiv:2509.25774). Of FlowSDE, sqrt(h) (1 / sigma + sigma (1 - t) / 2t).
    """
    return gain(move, time) / deviation(move, time)


def clean_of(move: Move, steps: Latents) -> Float[Tensor, "b k *d"]:
    """The clean state that was expected before each step, x - t v, v read off the recorded mean, linear in it."""
    time, flat = steps.time, steps.before.flatten(0, 1).double()
    t, s = time.double().reshape(-1, 2).unbind(1)
    still, _ = move(flat, torch.zeros_like(flat), t, s)
    rows = (-1, *[1] * (flat.dim() - 1))
    gain = (_moved(move, time, 1.0)[0] - _moved(move, time, 0.0)[0]).to(flat).view(rows)
    velocity = (steps.mean.flatten(0, 1).double() - still) / gain
    return (flat - t.view(rows) * velocity).to(steps.before).view_as(steps.before)


def _moved(move: Move, time: Float[Tensor, "*n 2"], velocity: float) -> tuple[Tensor, Tensor]:
    t, s = time.detach().cpu().double().reshape(-1, 2).unbind(1)
    x = torch.zeros(len(t), 1, dtype=torch.float64)
    mean, std = move(x, torch.full_like(x, velocity), t, s)
    return mean.view(time.shape[:-1]), std.view(time.shape[:-1])
