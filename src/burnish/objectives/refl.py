"""The gradient of the reward, through one step that cleans a noisy state: ReFL, DRaFT-LV. Any sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas import gaussian
from burnish.formulas.aggregation import token, token_mean
from burnish.formulas.matching import noised
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class ReFL(Objective[Denoiser]):
    """max(0, enough - reward) or -reward of the picture that x - t v promises, x a state at one of the last times t.

        ReFL        last 0, draws 1, enough 2, weight 0.001;      ImageReward, arXiv:2304.05977, algorithm 1
                    plan truncated, a step of 30 to 39 of 40
        DRaFT-LV    last 1, draws 2, no bound                     Clark et al. 2023, arXiv:2309.17400

    What x is:

        last 0    where the draw stands when the plan's step begins (`plan.waypoint`), one step for all samples
        last K    the finished sample, noised again to where one of the last K steps begins: of the same law if the
                  sampler keeps the flow's. Averaging several draws, the gradient varies less at equal cost

    Nothing before x is differentiated, and there is no advantage in it. ReFL's released code (ImageReward/ReFL.py)
    draws without guidance, tells the network the number of the step instead of its time, and cleans with the time of
    the step before; here all are as the plan has them. ReFL adds a pretraining loss on data: objectives/pretraining.py.

    Metrics:
        reward        mean reward of the pictures that are differentiated
    """

    last: int = 1  # steps of the sampler, from its end, at whose beginnings samples are cleaned; 0: the plan's waypoint
    draws: int = 2  # pictures made from each sample in an update; 1 with last 0
    enough: float | None = None  # reward above which there is nothing to gain (ReFL 2); None: no bound
    weight: float = 1.0  # multiplies the loss (ReFL 0.001)

    def __post_init__(self) -> None:
        if self.last < 0:
            raise ValueError(
                f"objective.refl.last: must be 1 or more, or 0 for the state at the plan's waypoint, not {self.last}"
            )
        if self.last == 0 and self.draws != 1:
            raise ValueError(
                f"objective.refl.draws: with last 0 a sample has one state, which the plan kept: must be 1, "
                f"not {self.draws}"
            )

    def needs(self) -> Needs:
        return Needs(reward_gradient=True)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        plan = batch.rollout.plan
        assert isinstance(plan, LatentPlan)
        x, t = self._states(batch, plan.times(policy.times))
        prompts = tuple(prompt for prompt in batch.rollout.prompts for _ in range(self.draws))
        latents = gaussian.clean(x, policy.velocity(x, t, prompts, plan.guidance), t)
        scores = reward(policy.decode(latents).clamp(0, 1), prompts)
        total = torch.where(scores.valid, scores.total, 0.0).view(-1, self.draws)
        values = -total if self.enough is None else (self.enough - total).clamp(min=0)
        weight = scores.valid.view(-1, self.draws).to(values)
        return Loss(*token(self.weight * values, weight, batch.keep), {"reward": token_mean(total, weight, batch.keep)})

    def _states(self, batch: Batch, times: Float[Tensor, " s"]) -> tuple[Float[Tensor, "bn *d"], Float[Tensor, " bn"]]:
        """What is cleaned, `draws` states of a sample lying together, and when. `times`: of the sampler's steps."""
        rollout, plan = batch.rollout, batch.rollout.plan
        assert isinstance(plan, LatentPlan)
        if self.last > 0:
            some = noised(batch, self.draws, "steps", times[-1 - self.last :])
            return some.x, some.t
        if plan.waypoint is None:
            raise ValueError(
                "objective.refl.last: 0 cleans the state at the plan's waypoint, and this plan has none; plan "
                "truncated has one"
            )
        assert rollout.waypoint is not None
        x = rollout.waypoint
        return x, torch.full((len(x),), float(times[plan.waypoint]), device=x.device)
