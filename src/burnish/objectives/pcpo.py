"""PCPO: every step gets credit in proportion to what it did, through a hinge on the log-ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Copy, Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas import steps
from burnish.formulas.aggregation import counted, per_decision, token, token_mean
from burnish.formulas.ratios import LIMIT, anchor_of, clipped, law_gap, log_ratio
from burnish.types import Batch, Loss, Rollout


@dataclass(frozen=True)
class PCPO(Objective[Denoiser]):
    """max(0, clip |A| - A c log r) + kl x distance to the reference, mean over samples and steps. arXiv:2509.25774.

    At r = 1 and c = 1 the gradient is PPO's, and the hinge is active where PPO is. The log-ratio of a step is
    proportional to its leverage w (formulas.steps), which varies thirtyfold along a draw; c evens that out:

        time     c = zeta h / w with zeta = sum of w / sum of h over the trained steps: credit as a step is long (flows)
        noise    c = mean w / w, w per unit of predicted noise: equal credit (models that predict noise)
        none     c = 1: the hinge alone

    For models that predict noise the paper changes the noise level of the sampler instead; the closed form in its
    author's code (transition ddim, law pcpo) does not make w constant. So the log-ratio is reweighed, for any sampler.

    Metrics:
        ratio_mean    mean of the reweighed ratio r^c; 1 before the first update
        clipped       share of steps that the hinge stops
        kl            mean distance to the reference in the chosen form, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats a dimension
    """

    clip: float = 1e-4  # width of the hinge, in log-ratio
    max_advantage: float = 5.0  # advantages are cut at plus and minus this
    credit: Literal["time", "noise", "none"] = "time"  # what a step's share of the log-ratio is made equal to
    kl: float = 0.0  # weight of the distance to the reference; above 0 keeps a reference copy
    kl_form: steps.Distance = "gaussian"  # which distance: formulas.steps.distance says them

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"objective.pcpo.clip: must be above 0, not {self.clip}")

    def needs(self) -> Needs:
        return Needs(copies={"reference": Copy()} if self.kl > 0 else {})

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        now, reference = steps.scored(policy, rollout, self.kl)
        gap = log_ratio(now.logp, anchor_of(rollout, now.logp, "behaviour"), counted(weight, keep))
        gap = gap * self._credit(rollout, policy).to(gap)
        advantage = per_decision(batch.advantage).clamp(-self.max_advantage, self.max_advantage)
        values = (self.clip * advantage.abs() - advantage * gap).clamp(min=0)

        low_cut, high_cut = clipped(1 + gap, advantage, self.clip, self.clip)
        pull, distance = steps.leash(self.kl, self.kl_form, now, reference, rollout, keep)
        metrics = {
            "ratio_mean": token_mean(gap.clamp(-LIMIT, LIMIT).exp(), weight, keep),
            "clipped": token_mean(low_cut | high_cut, weight, keep),
            "law_gap": law_gap(now.logp, rollout, keep),
            **distance,
        }
        return Loss(*token(values + pull, weight, keep), metrics)

    def _credit(self, rollout: Rollout, policy: Denoiser) -> Float[Tensor, "b k"]:
        """c of every step. A function of the plan alone, so that no split of the batch changes it."""
        known, plan = steps.latents_of(rollout, "objective.pcpo"), rollout.plan
        assert isinstance(plan, LatentPlan)
        here, every = known.time, steps.times_of(plan.learned, plan.times(policy.times))
        move, moves = steps.moving(plan, known.step), steps.moving(plan, plan.learned)
        if self.credit == "none":
            return torch.ones(here.shape[:-1])
        if self.credit == "time":
            length, unit = here[..., 0] - here[..., 1], (every[:, 0] - every[:, 1]).sum()
            return steps.leverage(moves, every).sum() / unit * length.cpu() / steps.leverage(move, here)
        if not (every[:, 0] < 1).all():
            raise ValueError(
                "objective.pcpo.credit: noise is for models that predict noise, whose first time is below 1; use time"
            )
        # v = (eps - x) / (1 - t), so a change of the noise by 1 changes the velocity by 1 / (1 - t)
        usual = (steps.leverage(moves, every) / (1 - every[:, 0])).mean()
        return usual / (steps.leverage(move, here) / (1 - here[..., 0].cpu()))
