"""A loss on pictures with captions of one's own beside any objective of denoisers: what is known is not unlearned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from burnish.core import Denoiser, LatentPlan, Memory, Needs, Objective, Policy, Remembers, Scorer
from burnish.formulas.aggregation import token
from burnish.formulas.matching import Noised, Target, Times, noised
from burnish.formulas.noise import Noise
from burnish.pairs import Pair, read_pairs
from burnish.types import Batch, Loss, Mean


@dataclass(frozen=True)
class Pretraining(Objective[Denoiser]):
    """`inner` + weight x the denoiser's error on data: one pair of a caption and its picture for every sample.

        ReFL               inner refl, weight 1                            arXiv:2304.05977, algorithm 1
        reward-weighted    inner reward_weighted with rule reward, beta    Lee et al. 2023, arXiv:2302.12192, eq. 3

    Which pair goes with a sample depends on the run's seed, the step and the sample's number alone, and so do its time
    and its noise. ReFL's released code updates the weights by one loss and then by the other; here an update has both.
    With no advantage it learns from data all the same. Metrics of `inner` are reported too.

    Metrics:
        data          mean squared error of the target on data
    """

    inner: Objective  # what samples are learned from by
    pairs: str  # a folder with metadata.jsonl (file_name and text a line), or module:function; see pairs.py
    weight: float = 1.0  # of the error on data
    draws: int = 1  # times that each picture is noised to in an update
    times: Times = "uniform"  # which times: those of the sampler, uniform, logit_normal
    target: Target = "velocity"  # whose error; noise: of models that predict it, for which late times weigh less

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"objective.pretraining.weight: must be 0 or more, not {self.weight}")
        if isinstance(self.inner, Remembers):
            known = type(self.inner).__name__.lower()
            raise ValueError(f"objective.pretraining.inner: {known} remembers; put pretraining into its own inner")

    def needs(self) -> Needs:
        return self.inner.needs()

    def begin(self, policy: Policy | None) -> _Pretraining:
        return _Pretraining(self, read_pairs(self.pairs, "objective.pretraining.pairs"))

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        return self.begin(policy).loss(batch, policy, reward)


class _Pretraining(Objective[Denoiser], Memory):
    def __init__(self, settings: Pretraining, pairs: Sequence[Pair]) -> None:
        self._settings, self._pairs = settings, pairs

    def needs(self) -> Needs:
        return self._settings.needs()

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        own = self._settings
        found = own.inner.loss(batch, policy, reward)
        some = self._data(batch, policy)
        error = some.error(policy.velocity(some.x, some.t, some.prompts), own.target)
        total, count = token(error, torch.ones_like(error), batch.keep)
        mean = total / count.clamp(min=1)  # over the samples that count; the inner loss is divided by its own count
        metrics = {**found.metrics, "data": Mean(total.detach(), count)}
        return Loss(found.total + own.weight * mean * found.count, found.count, metrics)

    def _data(self, batch: Batch, policy: Denoiser) -> Noised:
        """A pair for each sample, noised."""
        plan = batch.rollout.plan
        assert isinstance(plan, LatentPlan)
        chosen = self._chosen(batch)
        clean = policy.latents([pair.read() for pair in chosen])
        rollout = replace(batch.rollout, prompts=tuple(pair.prompt for pair in chosen), final=clean)
        of = replace(batch, rollout=rollout)
        return noised(of, self._settings.draws, self._settings.times, policy.times(plan.steps), stream="pretraining")

    def _chosen(self, batch: Batch) -> list[Pair]:
        place = Noise(batch.seed, batch.step, batch.rollout.ids, "pretraining").uniform(1, "pair").squeeze(1).double()
        rows = (place * len(self._pairs)).long().clamp(max=len(self._pairs) - 1)
        return [self._pairs[row] for row in rows.tolist()]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        assert not state, "pairs are read, not remembered"

    def metrics(self) -> dict[str, float]:
        return {}
