"""The gradient of the reward, through one step that cleans a noised sample: ReFL, DRaFT-LV. Any sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.core import Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas import gaussian
from burnish.formulas.aggregation import token, token_mean
from burnish.formulas.matching import noised
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class ReFL(Objective[Denoiser]):
    """max(0, enough - reward) or -reward of the picture that x - t v promises, t one of the sampler's last times.

        ReFL        last 10 of 40 steps, enough 2, loss x 0.001   ImageReward, arXiv:2304.05977, algorithm 1
        DRaFT-LV    last 1, draws 2, no bound                     Clark et al. 2023, arXiv:2309.17400

    x is the finished sample, noised to t, as in DRaFT-LV; ReFL stops its draw there instead, which has the same law
    where the sampler keeps the flow's. Averaging several draws, the gradient varies less at equal cost. There is no
    advantage in it. ReFL adds a pretraining loss on data: objectives/pretraining.py.

    Metrics:
        reward        mean reward of the pictures that are differentiated
    """

    last: int = 1  # steps of the sampler, from its end, at whose beginnings samples are cleaned
    draws: int = 2  # pictures made from each sample in an update
    enough: float | None = None  # reward above which there is nothing to gain (ReFL 2); None: no bound
    weight: float = 1.0  # multiplies the loss (ReFL 0.001)

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"objective.refl.last: must be 1 or more, not {self.last}")

    def needs(self) -> Needs:
        return Needs(reward_gradient=True)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        plan = batch.rollout.plan
        assert isinstance(plan, LatentPlan)
        some = noised(batch, self.draws, "steps", policy.times(plan.steps)[-1 - self.last :])
        v = policy.velocity(some.x, some.t, some.prompts, plan.guidance)
        latents = gaussian.clean(some.x, v, some.t)
        scores = reward(policy.decode(latents).clamp(0, 1), some.prompts)
        total = some.per_sample(torch.where(scores.valid, scores.total, 0.0))
        values = -total if self.enough is None else (self.enough - total).clamp(min=0)
        weight = some.per_sample(scores.valid).to(values)
        return Loss(*token(self.weight * values, weight, batch.keep), {"reward": token_mean(total, weight, batch.keep)})
