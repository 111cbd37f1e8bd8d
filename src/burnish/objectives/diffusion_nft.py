"""DiffusionNFT: good and bad samples pull two velocities, which mirror one another about the one that drew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Copy, Denoiser, LatentPlan, Needs, Objective, Scorer
from burnish.formulas import gaussian
from burnish.formulas.aggregation import token, token_mean
from burnish.formulas.matching import Noised, Times, noised, of_samples
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class DiffusionNFT(Objective[Denoiser]):
    """r |v+ - v*|^2 + (1 - r) |v- - v*|^2 + kl |v - v_ref|^2, v* = noise - clean. Zheng et al. 2025, arXiv:2509.16117.

    v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v; r = clip(A / max_advantage, -1, 1) / 2 + 1/2.
    As released, the first two terms are multiplied by max_advantage / beta (`scale`), which gives them the scale of
    flow matching: at v = v_old their gradient is 2 max_advantage (2 r - 1) (v_old - v*), and r = 1, beta = 1 is that.
    Without it gradients are that much smaller, which Adam does not feel, and `kl` weighs that much more. The distance
    is taken between clean samples and divided by its mean absolute value (weighting clean). With no advantage it pulls
    back to v_old.

    Samples are drawn and old velocities computed by an average of the weights. Guidance is in neither: v is what the
    network says of the prompt alone, and the plan should say guidance 1, as in the paper.

    Metrics:
        r             mean r; 1/2 for advantages with mean 0
        moved         mean |v - v_old|^2
        kl            mean |v - v_ref|^2, if a reference is kept
    """

    beta: float = 1.0  # how far v+ and v- lie from v_old (0.1 for OCR and several rewards)
    max_advantage: float = 5.0  # the advantage at which a sample is all good, minus it all bad
    decay: float = 0.5  # what that of the average that draws rises to (0.999 with flat 75 and rise 0.0075)
    rise: float = 0.001  # of this decay with every step; 0: it is what it is from the beginning
    flat: int = 0  # steps before it rises, in which the live weights draw
    kl: float = 1e-4  # weight of the distance to the reference; above 0 keeps a reference copy
    weighting: Literal["clean", "none"] = "clean"  # none: |v - v*|^2 as it stands in the paper
    scale: Literal["released", "paper"] = "released"  # paper: the two terms as they are written
    draws: int = 1  # times that each sample is noised to in an update
    times: Times = "steps"  # which times: those of the sampler, uniform, logit_normal

    def __post_init__(self) -> None:
        if not self.beta > 0 or not self.max_advantage > 0 or not 0 <= self.decay < 1 or self.rise < 0:
            raise ValueError(
                "objective.diffusion_nft: beta and max_advantage must be above 0 and decay in [0, 1), rise 0 or more, "
                f"not {self.beta}, {self.max_advantage}, {self.decay}, {self.rise}"
            )

    def needs(self) -> Needs:
        near = {"reference": Copy()} if self.kl > 0 else {}
        return Needs(draw_from="old", copies={"old": Copy(self.decay, self.rise, self.flat, "step"), **near})

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout, keep = batch.rollout, batch.keep
        assert isinstance(rollout.plan, LatentPlan)
        some = noised(batch, self.draws, self.times, policy.times(rollout.plan.steps))
        with torch.no_grad(), policy.using("old"):
            old = policy.velocity(some.x, some.t, some.prompts)
        if self.kl > 0:
            with torch.no_grad(), policy.using("reference"):
                reference = policy.velocity(some.x, some.t, some.prompts)
        now = policy.velocity(some.x, some.t, some.prompts)
        advantage = of_samples(batch.advantage, "objective.diffusion_nft") / self.max_advantage
        r = (advantage.clamp(-1, 1) / 2 + 0.5).to(now).expand(-1, self.draws)
        good = self._error(some, (1 - self.beta) * old + self.beta * now)
        bad = self._error(some, (1 + self.beta) * old - self.beta * now)
        values = r * good + (1 - r) * bad
        if self.scale == "released":
            values = self.max_advantage / self.beta * values

        weight = torch.ones_like(values)
        metrics = {"r": token_mean(r, weight, keep), "moved": token_mean(some.apart(now, old), weight, keep)}
        if self.kl > 0:
            distance = some.apart(now, reference)
            values = values + self.kl * distance
            metrics["kl"] = token_mean(distance, weight, keep)
        return Loss(*token(values, weight, keep), metrics)

    def _error(self, some: Noised, velocity: Float[Tensor, "bn *d"]) -> Float[Tensor, "b n"]:
        if self.weighting == "none":
            return some.error(velocity)
        miss = gaussian.clean(some.x, velocity, some.t) - some.clean
        usual = gaussian.mean_over_dimensions(miss.detach().abs()).clamp(min=1e-5)
        return some.per_sample(gaussian.mean_over_dimensions(miss.square()) / usual)
