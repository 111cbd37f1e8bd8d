"""The gradient of the reward itself, through the last steps of a draw: DRaFT-K, AlignProp."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from burnish.core import Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas import gaussian, steps
from burnish.formulas.aggregation import token, token_mean
from burnish.models.solvers import SOLVERS, chosen
from burnish.types import Batch, Latents, Loss


@dataclass(frozen=True)
class RewardGradient(Objective[Denoiser]):
    """-weight x reward(picture), differentiated through the last K steps.

        DRaFT-K     last K, each step through the ones before it      Clark et al. 2023, arXiv:2309.17400
        AlignProp   last 0, a plan that begins at a random step       Prabhudesai et al. 2023, arXiv:2310.03739
                    (truncated), weight 0.01

    The steps are drawn again, from the state that the plan keeps at that step (`plan.waypoint`) or from the record of a
    step drawn at random, with the recorded noise: at the weights that drew it is the same picture. Steps that were not
    recorded follow the ODE, by Euler. With `recompute` a step's activations are not kept for the backward pass but
    computed again: memory is that of one step, for one more evaluation of each. There is no advantage in it.

    Metrics:
        reward        mean reward of the pictures that are differentiated
        steps         steps that were differentiated
    """

    last: int = 1  # K: steps that are differentiated; 0: all from the plan's waypoint on
    weight: float = 1.0  # multiplies the reward (AlignProp 0.01)
    detach_input: bool = False  # the network reads its state without gradient: a step reaches the picture only as a sum
    recompute: bool = False  # compute each step again for the backward pass, and keep states alone

    def __post_init__(self) -> None:
        if self.last < 0:
            raise ValueError(
                f"objective.reward_gradient.last: must be 1 or more, or 0 for all steps from the plan's waypoint on, "
                f"not {self.last}"
            )
        if not self.weight > 0:
            raise ValueError(f"objective.reward_gradient.weight: must be above 0, not {self.weight}")

    def needs(self) -> Needs:
        return Needs(reward_gradient=True)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        latents, number = self._drawn_again(batch, policy)
        pictures = checkpoint(policy.decode, latents, use_reentrant=False) if self.recompute else policy.decode(latents)
        scores = reward(pictures.clamp(0, 1), batch.rollout.prompts)
        total = torch.where(scores.valid, scores.total, 0.0).unsqueeze(1)
        weight = scores.valid.to(total).unsqueeze(1)
        metrics = {
            "reward": token_mean(total, weight, batch.keep),
            "steps": token_mean(torch.full_like(total, number), weight, batch.keep),
        }
        return Loss(*token(-self.weight * total, weight, batch.keep), metrics)

    def _drawn_again(self, batch: Batch, policy: Denoiser) -> tuple[Float[Tensor, "b *d"], int]:
        """What is decoded, through the last steps, and how many these are."""
        rollout, plan = batch.rollout, batch.rollout.plan
        assert isinstance(plan, LatentPlan)
        if rollout.decisions and not plan.chained:
            raise ValueError("objective.reward_gradient: a sample of this plan does not go on from what it recorded")
        first, x = self._beginning(batch)
        known = rollout.decisions[0] if rollout.decisions else None
        assert known is None or isinstance(known, Latents)
        at = {} if known is None else {int(step): j for j, step in enumerate(known.step[0])}
        times = plan.times(policy.times)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return policy.velocity(x.detach() if self.detach_input else x, t, rollout.prompts, plan.guidance)

        for i in range(first, plan.steps):
            t, s = (torch.full((len(x),), float(times[j]), dtype=torch.float64, device=x.device) for j in (i, i + 1))
            args = (x, t.float())
            v = checkpoint(velocity, *args, use_reentrant=False) if self.recompute else velocity(*args)
            assert isinstance(v, Tensor)
            if known is not None and i in at:
                drawn = (known.after[:, at[i]] - known.mean[:, at[i]]) / gaussian.rows(known.std[:, at[i]], x)
                mean, std = plan.move(x, v, t, s, torch.full_like(t, i, dtype=torch.long))
                x = mean + gaussian.rows(std, mean) * drawn
            elif i == plan.steps - 1:
                x = policy.finished(x, v, t)
            else:
                x = x - gaussian.rows(t - s, x) * v
        return x, plan.steps - first

    def _beginning(self, batch: Batch) -> tuple[int, Float[Tensor, "b *d"]]:
        """The first step that is differentiated, and the state that it begins with."""
        rollout, plan = batch.rollout, batch.rollout.plan
        assert isinstance(plan, LatentPlan)
        if plan.ways or plan.trained_each is not None:
            raise ValueError(
                "objective.reward_gradient: draws every step again, and this plan skips some, or records steps that "
                "differ from sample to sample"
            )
        if self.last == 0 and plan.waypoint is None:
            raise ValueError(
                "objective.reward_gradient.last: 0 begins at the plan's waypoint, and this plan has none; "
                "plan truncated has one"
            )
        first = plan.waypoint if self.last == 0 else plan.steps - self.last
        assert first is not None
        random = torch.zeros(1, plan.steps, dtype=torch.bool)
        random[:, list(plan.stochastic)] = True
        curved = chosen(plan.solver, random, plan.finish).masked_fill(random, 0)[0, max(first - 1, 0) : -1]
        if curved.any():  # the one before may be corrected by the first
            other = SOLVERS[int(curved.max())]
            raise ValueError(f"objective.reward_gradient: differentiates steps of plan.solver euler, not {other}")
        if first == plan.waypoint:
            assert rollout.waypoint is not None
            return first, rollout.waypoint
        known = steps.latents_of(rollout, "objective.reward_gradient")
        if (known.step == known.step[:1]).all():
            at = {int(step): j for j, step in enumerate(known.step[0])}
            if first in at:
                return first, known.before[:, at[first]]
            if first - 1 in at:
                return first, known.after[:, at[first - 1]]
        raise ValueError(
            f"objective.reward_gradient: last: {self.last} begins at step {first}, which this plan does not record"
            f" for every sample; plan.waypoint: {first} does (plan truncated), or objective refl needs no record"
        )
