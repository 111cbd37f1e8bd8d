"""Clean samples noised again: what objectives train on that need no likelihood, and so accept any sampler.

x_t = (1 - t) x_0 + t noise, and the velocity to match is noise - x_0. Times and noise are keyed by the run's seed, the
step and the sample's id, so neither the order of a batch, nor its split, nor the number of processes changes them; a
new step brings new ones. Rows are b samples x n draws of each, the draws of a sample lying together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.formulas import gaussian
from burnish.formulas.noise import Noise
from burnish.types import Batch, Prompt, Rollout, take

Times = Literal["steps", "uniform", "logit_normal"]
Target = Literal["velocity", "noise"]


@dataclass(frozen=True)
class Noised:
    """Samples at the times they were noised to."""

    x: Float[Tensor, "bn *d"]
    t: Float[Tensor, " bn"]
    clean: Float[Tensor, "bn *d"]
    target: Float[Tensor, "bn *d"]  # noise - clean
    prompts: tuple[Prompt, ...]  # of each row
    draws: int  # rows of each sample

    def per_sample(self, values: Float[Tensor, " bn"]) -> Float[Tensor, "b n"]:
        return values.view(-1, self.draws)

    def error(self, velocity: Float[Tensor, "bn *d"], of: Target = "velocity") -> Float[Tensor, "b n"]:
        """Mean squared distance of a velocity from noise - clean; or of the noise x + (1 - t) v from what it was.

        The latter is (1 - t)^2 of the former, and what models that predict noise learn from (arXiv:2006.11239, eq. 14).
        """
        found = self.per_sample(gaussian.mean_over_dimensions((velocity - self.target).square()))
        return found if of == "velocity" else (1 - self.per_sample(self.t)).square() * found

    def apart(self, velocity: Float[Tensor, "bn *d"], other: Float[Tensor, "bn *d"]) -> Float[Tensor, "b n"]:
        """Mean squared distance of two velocities."""
        return self.per_sample(gaussian.mean_over_dimensions((velocity - other).square()))


def noised(
    batch: Batch,
    draws: int,
    times: Times,
    schedule: Float[Tensor, " s"],
    low: float = 0.0,
    together: Bool[Tensor, " b"] | None = None,
    stream: str = "noised",
) -> Noised:
    """Every sample of a batch, noised to `draws` times of at least `low`.

        steps         beginnings of the sampler's steps, of which `schedule` holds beginnings and ends
        uniform       from [low, 1]
        logit_normal  the logistic of a standard normal number (Stable Diffusion 3, arXiv:2403.03206), from [low, 1]

    Times are stratified: the j-th of n is taken from the j-th n-th of their law. With `together`, samples of a group
    share times and noise, those of its first sample that counts. Another `stream` brings other times and noise.
    Raises ValueError for a rollout without clean latents.
    """
    rollout = batch.rollout
    if rollout.final is None:
        raise ValueError("this objective trains on clean latents (rollout.final), which this policy does not give")
    clean = rollout.final
    if clean.dim() < 2 or draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    keys = rollout.ids if together is None else _of_the_first(rollout, together)
    random = Noise(batch.seed, batch.step, keys, stream)
    share = (torch.arange(draws) + random.uniform(draws, "time").double()) / draws
    t = _at(share.flatten(), times, schedule, low).to(clean.device)
    noise = random.normal((draws, *clean.shape[1:]), "noise").flatten(0, 1).to(clean)
    clean = clean.repeat_interleave(draws, 0)
    prompts = tuple(prompt for prompt in rollout.prompts for _ in range(draws))
    return Noised(gaussian.mixed(clean, noise, t), t.float(), clean, noise - clean, prompts, draws)


def of_samples(advantage: Float[Tensor, " b"] | Float[Tensor, "b k"], who: str) -> Float[Tensor, "b 1"]:
    """Advantages of samples, ready to multiply their draws. Raises ValueError for advantages of decisions."""
    if advantage.dim() > 1:
        raise ValueError(f"{who}: trains on clean samples, and this advantage differs between decisions")
    return advantage.unsqueeze(1)


class Imitating(Protocol):
    """What an objective of imitation has."""

    @property
    def draws(self) -> int: ...
    @property
    def times(self) -> Times: ...
    @property
    def target(self) -> Target: ...


def imitated(
    batch: Batch, weight: Float[Tensor, "b 1"] | Bool[Tensor, "b 1"], of: Imitating, policy: Any, steps: int
) -> tuple[Float[Tensor, "n draws"], Float[Tensor, "n draws"], Bool[Tensor, " n"]]:
    """Errors of the samples that have a weight (b 1), their weights, and which of them count.

    Nobody else is asked about; of a batch without any the first sample is, with weight 0.
    """
    counts = (weight > 0).squeeze(1) & batch.keep
    rows = counts.nonzero().squeeze(1) if counts.any() else torch.zeros(1, dtype=torch.long, device=counts.device)
    chosen = take(batch, rows.cpu())
    some = noised(chosen, of.draws, of.times, policy.times(steps))
    error = some.error(policy.velocity(some.x, some.t, some.prompts), of.target)
    return error, weight[rows].to(error).expand_as(error), chosen.keep


def _at(share: Tensor, times: Times, schedule: Tensor, low: float) -> Float[Tensor, " n"]:
    """Times at these shares (0 to 1) of their law, float64."""
    if times == "steps":
        known = schedule[:-1].double().cpu().flip(0)
        known = known[known >= low]
        if not len(known):
            raise ValueError(f"no step of the sampler begins at a time of {low} or more")
        return known[(share * len(known)).long().clamp(max=len(known) - 1)]
    if times == "logit_normal":
        share = torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)).sigmoid()
    return low + (1 - low) * share


def _of_the_first(rollout: Rollout, counts: Bool[Tensor, " b"]) -> tuple[int, ...]:
    """For every sample, the smallest id among those of its group that count; its own, if none does."""
    first: dict[int, int] = {}
    for group, name, counted in zip(rollout.group.tolist(), rollout.ids, counts.tolist(), strict=True):
        if counted:
            first[group] = min(first.get(group, name), name)
    return tuple(first.get(group, name) for group, name in zip(rollout.group.tolist(), rollout.ids, strict=True))
