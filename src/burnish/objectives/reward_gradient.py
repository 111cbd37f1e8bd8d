"""The gradient of the reward itself, through the last steps of a draw. DRaFT, Clark et al. 2023; AlignProp."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas import gaussian, steps
from burnish.formulas.aggregation import token, token_mean
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class RewardGradient(Objective[Denoiser]):
    """-reward(picture), differentiated through the last K steps. DRaFT-K, arXiv:2309.17400; K random: AlignProp.

    The steps are drawn again from the recorded state, with the recorded noise, so that at the weights that drew it is
    the same picture; steps that were not recorded follow the ODE (Euler). The state the last K steps begin from has to
    be recorded: that step is drawn at random and trained. There is no advantage in it.

    Metrics:
        reward        mean reward of the pictures that are differentiated
    """

    last: int = 1  # K: steps that are differentiated, each through the ones before it

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"objective.reward_gradient.last: must be 1 or more, not {self.last}")

    def needs(self) -> Needs:
        return Needs(reward_gradient=True)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        latents = self._drawn_again(batch, policy)
        scores = reward(policy.decode(latents).clamp(0, 1), batch.rollout.prompts)
        total = torch.where(scores.valid, scores.total, 0.0).unsqueeze(1)
        weight = scores.valid.to(total).unsqueeze(1)
        return Loss(*token(-total, weight, batch.keep), {"reward": token_mean(total, weight, batch.keep)})

    def _drawn_again(self, batch: Batch, policy: Denoiser) -> Float[Tensor, "b *d"]:
        """The clean latents, through the last steps."""
        rollout, plan = batch.rollout, batch.rollout.plan
        assert isinstance(plan, LatentPlan)
        known, first = steps.latents_of(rollout, "objective.reward_gradient"), plan.steps - self.last
        at = {int(step): j for j, step in enumerate(known.step[0])}
        if first not in at or (known.step != known.step[:1]).any():
            raise ValueError(
                f"objective.reward_gradient: last: {self.last} begins at step {first}, which this plan does not record"
                f" for every sample; plan.stochastic: [{first}] does (or objective refl, which needs no record)"
            )
        times, x = policy.times(plan.steps), known.before[:, at[first]]
        for i in range(first, plan.steps):
            t, s = (torch.full((len(x),), float(times[j]), dtype=torch.float64, device=x.device) for j in (i, i + 1))
            v = policy.velocity(x, t.float(), rollout.prompts, plan.guidance)
            if i in at:
                assert plan.transition is not None
                drawn = (known.after[:, at[i]] - known.mean[:, at[i]]) / gaussian.rows(known.std[:, at[i]], x)
                mean, std = plan.transition.move(x, v, t, s)
                x = mean + gaussian.rows(std, mean) * drawn
            else:
                x = x - gaussian.rows(t - s, x) * v
        return x
