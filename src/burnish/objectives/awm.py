"""Advantage weighted matching: the flow-matching loss stands for the log-probability in PPO's clipped surrogate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Copy, Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas.aggregation import counted, token, token_mean
from burnish.formulas.matching import Times, noised, of_samples
from burnish.formulas.ratios import clipped, clipped_surrogate, log_ratio
from burnish.types import Batch, Loss

SMALL = 1e-10  # added to an error before its root, as in Flow-Factory


@dataclass(frozen=True)
class AWM(Objective[Denoiser]):
    """step_clip's surrogate with log p = -w(l, t), l = |v - (noise - clean)|^2. Xue et al. 2025, arXiv:2509.25050.

    Plus ema_kl |v - v_ema|^2 + kl |v - v_ref|^2. The ratio is taken to the weights that drew, at equal times and noise.
    w by name, as in Flow-Factory:

        even  l            t  t l            t2  t^2 l
        huber   t ((l + e)^power - e^power) / power      power 0.25; 0.5 is twice their "huber"

    Trained and best sampled without guidance (14 steps).

    Metrics:
        ratio_mean    mean ratio to the weights that drew; 1 in the first update
        clipped       share of samples and times whose gradient the clip stops
        error         mean |v - (noise - clean)|^2
        ema_kl        mean |v - v_ema|^2, if an average is kept
        kl            mean |v - v_ref|^2, if a reference is kept
    """

    clip: float = 1.0  # half-width of the trust region of the ratio (Flow-Factory's default: 1e-5)
    max_advantage: float = 5.0  # advantages are cut at plus and minus this
    weighting: Literal["even", "t", "t2", "huber"] = "huber"  # w: what of the error and its time is the log-probability
    power: float = 0.25  # of weighting huber
    ema_kl: float = 1.0  # weight of the distance to an average of the weights; above 0 keeps one
    decay: float = 0.3  # what that of the average rises to
    rise: float = 0.001  # of this decay with every step; 0: it is what it is from the beginning
    kl: float = 0.0  # weight of the distance to the reference; above 0 keeps one
    draws: int = 6  # times that each sample is noised to in an update
    times: Times = "steps"  # which times: those of the sampler, uniform, logit_normal

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1 or not 0 < self.power <= 1 or not 0 <= self.decay < 1:
            raise ValueError(
                "objective.awm: clip and power must be in (0, 1], decay in [0, 1), "
                f"not {self.clip}, {self.power}, {self.decay}"
            )

    def needs(self) -> Needs:
        average = {"average": Copy(self.decay, self.rise)} if self.ema_kl > 0 else {}
        near = {"reference": Copy()} if self.kl > 0 else {}
        return Needs(copies={"old": Copy(0.0, every="step"), **average, **near})

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, keep = batch.rollout, batch.keep
        assert isinstance(rollout.plan, LatentPlan)
        some = noised(batch, self.draws, self.times, policy.times(rollout.plan.steps))
        fixed = {}
        for name in self.needs().copies:
            with torch.no_grad(), policy.using(name):
                fixed[name] = policy.velocity(some.x, some.t, some.prompts)
        now = policy.velocity(some.x, some.t, some.prompts)
        error, t = some.error(now), some.per_sample(some.t)
        weight = torch.ones_like(error)
        logp, old = -self._weighed(error, t), -self._weighed(some.error(fixed["old"]), t)
        ratio = log_ratio(logp, old, counted(weight, keep)).exp()
        advantage = of_samples(batch.advantage, "objective.awm").clamp(-self.max_advantage, self.max_advantage)
        values = clipped_surrogate(ratio, advantage, self.clip, self.clip)

        low_cut, high_cut = clipped(ratio, advantage, self.clip, self.clip)
        metrics = {
            "ratio_mean": token_mean(ratio, weight, keep),
            "clipped": token_mean(low_cut | high_cut, weight, keep),
            "error": token_mean(error, weight, keep),
        }
        for name, metric, pull in (("average", "ema_kl", self.ema_kl), ("reference", "kl", self.kl)):
            if pull > 0:
                distance = some.apart(now, fixed[name])
                values = values + pull * distance
                metrics[metric] = token_mean(distance, weight, keep)
        return Loss(*token(values, weight.to(values), keep), metrics)

    def _weighed(self, error: Float[Tensor, "b n"], t: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        match self.weighting:
            case "even":
                return error
            case "t":
                return t * error
            case "t2":
                return t.square() * error
            case "huber":
                return t * ((error + SMALL).pow(self.power) - SMALL**self.power) / self.power
