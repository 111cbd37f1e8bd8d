"""GARDO: samples that one reward likes and others do not are held near a reference, which follows the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Copy, Denoiser, LatentPlan, Memory, Needs, Objective, Policy, Scorer
from burnish.formulas import steps
from burnish.formulas.matching import noised
from burnish.formulas.uncertainty import adapted, uncertain, uncertainty
from burnish.types import Batch, Loss, Mean, Scores, take


@dataclass(frozen=True)
class GARDO(Objective[Denoiser]):
    """`inner` + kl x the distance to the reference, of uncertain samples alone. arXiv:2512.24138.

    A sample is uncertain if the share of the batch that `main` prefers it to exceeds what the auxiliary rewards say by
    more than the (1 - rho) quantile of the excesses that are 0 or more. rho rises and falls with their mean. After a
    step in which the distance of the held samples exceeds a limit, or some steps after the last time, the reference is
    set to the live weights. Auxiliary rewards are parts of the reward, of weight 0 (rewards/weighted.py). The released
    code seems to rank all rewards from best to worst, which turns the sign of the excess: `ranks` says which.

    The distance is that of steps, in `kl_form`; of objectives without steps |v - v_ref|^2 at noised samples. `inner`
    is any objective without a reference of its own. What it measures is reported too; settings that are called
    themselves have seen no batch, and hold nothing.

    Metrics:
        kl            mean distance to the reference over the samples that are held; NaN if there are none
        held          share of samples that are held
        excess        mean of the excesses that are 0 or more
        rho           share of these that is held, as it is now
        renewed       1 if the reference was set to the live weights after the step
    """

    inner: Objective  # what samples are learned from by
    auxiliary: tuple[str, ...] = ()  # parts of the reward to compare with; empty: all of them
    main: str = ""  # the part that may be hacked; empty: the total
    kl: float = 0.04  # weight of the distance to the reference
    over: Literal["held", "all"] = "held"  # samples whose mean the distance is; all: the fewer are held, the weaker
    kl_form: steps.Distance = "gaussian"  # which distance: formulas.steps.distance says them
    ranks: Literal["paper", "released"] = "paper"  # released: those are held whom the others like and `main` does not
    rho: float = 0.1  # share of the excesses to hold, at the start
    rho_low: float = 0.02  # least it falls to
    rho_high: float = 0.2  # most it rises to
    rho_change: float = 0.1  # by how much, as a share of itself
    window: int = 20  # steps whose mean excess a new one is compared with
    renew_above: float = 3e-4  # distance after which the reference is renewed; depends on the task
    renew_after: int = 15  # steps after which it is renewed anyway; 0: never

    def __post_init__(self) -> None:
        if not 0 < self.rho_low <= self.rho <= self.rho_high < 1 or not 0 <= self.rho_change < 1:
            raise ValueError(
                "objective.gardo: expected 0 < rho_low <= rho <= rho_high < 1 and rho_change in [0, 1), not "
                f"{self.rho_low}, {self.rho}, {self.rho_high}, {self.rho_change}"
            )
        if self.kl < 0 or self.window < 1 or self.renew_after < 0:
            raise ValueError(
                "objective.gardo: kl and renew_after must be 0 or more and window 1 or more, "
                f"not {self.kl}, {self.renew_after}, {self.window}"
            )
        if "reference" in self.inner.needs().copies:
            raise ValueError("objective.gardo.inner: it holds all samples near a reference itself; set its kl to 0")

    def needs(self) -> Needs:
        inner = self.inner.needs()
        return replace(inner, copies={**inner.copies, "reference": Copy(renewed=True)}, even=False)

    def begin(self, policy: Policy | None) -> _Holding:
        return _Holding(self)

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        return self.begin(policy).loss(batch, policy, reward)


class _Holding(Objective[Denoiser], Memory):
    def __init__(self, settings: GARDO) -> None:
        self._settings = settings
        self._rho, self._past, self._age = settings.rho, [], 0
        self._held: frozenset[int] = frozenset()  # numbers of the samples of this step that are held
        self._told: dict[str, float] = {}

    def needs(self) -> Needs:
        return self._settings.needs()

    # --- the step ----------------------------------------------------------------------------------------------------

    def before(self, batch: Batch) -> None:
        own = self._settings
        sign = -1 if own.ranks == "released" else 1
        main, others = _rewards(own, batch.scores)
        excess = uncertainty(sign * main, [sign * other for other in others], batch.scores.valid)
        risky = excess[excess >= 0]
        if len(risky):
            mean = float(risky.mean())
            self._rho = adapted(self._rho, mean, self._past, own.rho_change, own.rho_low, own.rho_high)
            self._past = [*self._past, mean][-own.window :]
        held = uncertain(excess, self._rho).tolist()
        self._held = frozenset(name for name, is_held in zip(batch.rollout.ids, held, strict=True) if is_held)
        self._told = {
            "held": len(self._held) / len(held),
            "excess": self._past[-1] if len(risky) else torch.nan,
            "rho": self._rho,
        }

    def after(self, means: Mapping[str, float]) -> Sequence[str]:
        own = self._settings
        self._age += 1
        due = means.get("kl", 0.0) > own.renew_above or 0 < own.renew_after <= self._age
        if due:
            self._age = 0
        self._told["renewed"] = float(due)
        return ["reference"] if due else []

    def state(self) -> dict[str, Any]:
        return {"rho": self._rho, "past": list(self._past), "age": self._age}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rho, self._past, self._age = state["rho"], list(state["past"]), state["age"]

    def metrics(self) -> dict[str, float]:
        return dict(self._told)

    # --- the loss ----------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        held = torch.tensor([name in self._held for name in batch.rollout.ids], device=batch.keep.device) & batch.keep
        some = take(batch, held.nonzero().squeeze(1))
        leash = _Leash(some, policy, self._settings.kl_form) if held.any() else None  # before any graph is there
        found = self._settings.inner.loss(batch, policy, reward)
        if leash is None:
            nothing = torch.zeros_like(found.total.detach())
            return replace(found, metrics={**found.metrics, "kl": Mean(nothing, nothing)})
        apart, weight = leash.distance(), leash.weight
        total, count = (apart * weight).sum(), weight.sum()
        # The inner loss's mean is over all samples. Over those that are held, it is as many times as large as they are
        # few in the whole step, so that no split into updates changes it.
        share = found.count / leash.whole(batch)
        if self._settings.over == "held":
            share = share / self._told["held"]
        kl = Mean(total.detach(), count)
        return Loss(found.total + self._settings.kl * total * share.to(total), found.count, {**found.metrics, "kl": kl})


class _Leash:
    """Samples with what the reference says of them."""

    def __init__(self, batch: Batch, policy: Denoiser, form: steps.Distance) -> None:
        self._rollout, self._policy = batch.rollout, policy
        self._form: steps.Distance = form
        self._stepped = bool(batch.rollout.decisions)
        if not self._stepped:
            assert isinstance(batch.rollout.plan, LatentPlan)
            self._some = noised(batch, 1, "steps", policy.times(batch.rollout.plan.steps))
        self.weight = batch.rollout.weight if self._stepped else torch.ones(len(batch.rollout), 1)
        with torch.no_grad(), policy.using("reference"):
            self._reference = self._now()

    def _now(self) -> Any:
        if self._stepped:
            return self._policy.score(self._rollout)
        return self._policy.velocity(self._some.x, self._some.t, self._some.prompts)

    def distance(self) -> Float[Tensor, "h k"]:
        """Of the live weights, with its gradient."""
        if self._stepped:
            time = steps.latents_of(self._rollout, "objective.gardo").time
            found = steps.distance(self._form, self._now(), self._reference, time)
        else:
            found = self._some.apart(self._now(), self._reference)
        self.weight = self.weight.to(found)
        return found

    def whole(self, batch: Batch) -> Float[Tensor, ""]:
        """The weight of all samples of the batch that count."""
        if not self._stepped:
            return batch.keep.sum().to(self.weight)
        return (batch.rollout.weight * batch.keep.unsqueeze(1)).sum()


def _rewards(settings: GARDO, scores: Scores) -> tuple[Tensor, list[Tensor]]:
    """(what may be hacked, what it is compared with). Raises ValueError for a part that the reward does not have."""
    names = settings.auxiliary or tuple(scores.parts)
    missing = sorted({*names, *filter(None, [settings.main])} - set(scores.parts))
    if missing or not names:
        raise ValueError(
            f"objective.gardo: the reward has no part {', '.join(missing) or 'at all'}; its parts are: "
            f"{', '.join(scores.parts) or 'none'} (reward: weighted reports parts of weight 0 too)"
        )
    main = scores.parts[settings.main] if settings.main else scores.total
    return main, [scores.parts[name] for name in names]
