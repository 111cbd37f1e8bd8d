"""The clipped surrogate of PPO, as GRPO, Dr.GRPO, BNPO, DAPO and AR-GRPO use it: a choice of clip and of average."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.core import Copy, Needs, Objective, Policy, Scorer
from burnish.formulas.aggregation import Aggregation, aggregate, counted, per_decision, token_mean
from burnish.formulas.divergence import Estimator, leash
from burnish.formulas.ratios import Anchor, anchor_of, clipped, clipped_surrogate, law_gap, log_ratio
from burnish.types import Batch, Loss


@dataclass(frozen=True)
class PPOClip(Objective[Policy]):
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A) + kl x KL estimate, r a decision's ratio. Schulman 2017, eq. 7.

        GRPO     aggregation sequence, kl 0.04
        Dr.GRPO  aggregation constant, advantage group_mean
        BNPO     aggregation local
        DAPO     aggregation token, clip_high 0.28
        AR-GRPO  aggregation local, anchor recomputed, one update a rollout, kl 0.1 (class), 1.0 (text), law conditional

    Metrics:
        ratio_mean    mean ratio to the anchor; 1 before the first update, where what is trained is what drew
        clipped       share of decisions whose gradient the clip stops
        clipped_low   share stopped at 1 - clip, where the advantage is negative
        clipped_high  share stopped at 1 + clip_high, where the advantage is positive
        kl            mean KL estimate to the reference, nats a decision, if a reference is kept
        law_gap       mean |log p - recorded log p|, nats
    """

    clip: float = 0.2  # how far below 1 the ratio may go before the gradient stops
    clip_high: float | None = None  # how far above 1; None: as far as below (DAPO 0.28)
    dual_clip: float | None = (
        None  # c > 1: the loss of a negative advantage is at most -c A (V-Triune 3); None: no bound
    )
    aggregation: Aggregation = "token"  # which decisions weigh alike: of the batch, of a sequence, ...
    length: int = 0  # for aggregation constant: the length divided by; 0 takes the number of decisions
    kl: float = 0.0  # weight of the KL estimate in the loss; above 0 keeps a reference copy
    kl_estimator: Estimator = "k3"  # k2: the gradient of KL(policy || reference); k3: of the reverse; k1: none
    anchor: Anchor = "behaviour"  # ratios against the law drawn from, or the trained law before the update

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1 or (self.clip_high is not None and self.clip_high <= 0):
            raise ValueError(
                f"objective.ppo_clip: clip must be in (0, 1] and clip_high above 0, not {self.clip}, {self.clip_high}"
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"objective.ppo_clip.dual_clip: must be above 1, or null for none, not {self.dual_clip}")

    def needs(self) -> Needs:
        near = self.kl > 0
        return Needs(copies={"reference": Copy()} if near else {}, reference_logp=near, anchor=self.anchor)

    def loss(self, batch: Batch, policy: Policy, reward: Scorer) -> Loss:
        rollout, weight, keep = batch.rollout, batch.rollout.weight, batch.keep
        logp = policy.logp(rollout)
        here = counted(weight, keep)
        ratio = log_ratio(logp, anchor_of(rollout, logp, self.anchor), here).exp()
        advantage = per_decision(batch.advantage)
        high = self.clip if self.clip_high is None else self.clip_high
        values = clipped_surrogate(ratio, advantage, self.clip, high, self.dual_clip)

        low_cut, high_cut = clipped(ratio, advantage, self.clip, high)
        pull, distance = leash(self.kl, self.kl_estimator, logp, rollout, keep)
        metrics = {
            "ratio_mean": token_mean(ratio, weight, keep),
            "clipped": token_mean(low_cut | high_cut, weight, keep),
            "clipped_low": token_mean(low_cut, weight, keep),
            "clipped_high": token_mean(high_cut, weight, keep),
            "law_gap": law_gap(logp, rollout, keep),
            **distance,
        }
        return Loss(*aggregate(self.aggregation, values + pull, weight, keep, self.length), metrics)
