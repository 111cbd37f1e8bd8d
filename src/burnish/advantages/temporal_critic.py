"""TDPO-R's advantage: what is left of a return once a critic has looked at the picture as it is at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage, Denoiser, Large, LatentPlan, Memory, Policy
from burnish.formulas.noise import generator
from burnish.formulas.steps import clean_of, latents_of, moving
from burnish.models.critic import PictureValue, clipped_value_loss, linear, reset
from burnish.models.features import Features, load_features, pixel_features
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class TemporalCritic(Advantage):
    """(R - V(x_t) - mean) / (std + 1e-8) over all samples and steps, R = inner. Zhang et al. 2024, arXiv:2402.08552.

    V sees features of the decoded state before a step. It learns after it was asked, by a clipped loss in as many
    updates as there are steps and minibatches; the steps of every sample come in an order of their own, as released.
    The paper and the released code begin anew with *active* units from time to time: those carry what was learned
    first, and dormant ones hold a critic back from overfitting. Reads the steps of a denoiser.

    Metrics:
        value_error   mean (V - R)^2, before V learned from this step
        value         mean V, before
        reset         units that began anew after this step
    """

    reads: ClassVar[tuple[Large, ...]] = ("states",)

    inner: Advantage  # of samples; TDPO-R: prompt_history
    features: str = ""  # hub id or local folder of a CLIP that looks at decoded states; empty: the latents themselves
    looks_at: Literal["state", "clean"] = "state"  # decoded as it is, as released, or the clean picture expected of it
    lr: float = 1e-4  # learning rate of the critic
    weight_decay: float = 1e-4  # of its AdamW
    clip_norm: float = 1.0  # largest norm of its gradient
    clip: float = 0.2  # how far an update may take V from what it was; 0: any distance
    minibatches: int = 2  # updates for every step, each of an equal share of the samples
    renew: Literal["active", "dormant", "none"] = "active"  # hidden units that begin anew
    renew_every: int = 10  # training steps between that
    threshold: float = 0.0  # share of its layer's mean output up to which a unit is dormant
    rows: int = 16  # states decoded, and looked at, at once. Changes memory, not the result
    seed: int = 0  # of the first weights and of orders

    def __post_init__(self) -> None:
        counts = {"minibatches": self.minibatches, "renew_every": self.renew_every, "rows": self.rows}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"advantage.temporal_critic.{name}: expected 1 or more, got {value}")

    def begin(self, policy: Policy | None) -> _Temporal:
        """Raises ValueError for `features` without a policy that decodes."""
        if not self.features:
            return _Temporal(self, pixel_features, None, _device(policy))
        if not isinstance(policy, Denoiser):
            raise ValueError("advantage.temporal_critic.features: only a run of a denoiser has a decoder for them")
        device, where = _device(policy), "advantage.temporal_critic.features"
        return _Temporal(self, load_features(self.features, where, device, self.rows), policy, device)

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        return self.begin(None)(scores, rollout)


def _device(policy: Policy | None) -> torch.device:
    return policy.parameters()[0][1].device if policy else torch.device("cpu")


class _Temporal(Advantage, Memory):
    def __init__(
        self, settings: TemporalCritic, features: Features, decoder: Denoiser | None, device: torch.device
    ) -> None:
        self._settings, self._features, self._decoder, self._device = settings, features, decoder, device
        self._net: PictureValue | None = None  # made for the features that it first sees
        self._rounds = 0
        self._told = {"value_error": torch.nan, "value": torch.nan, "reset": 0.0}

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        target = self._settings.inner(scores, rollout).detach()
        if target.dim() != 1:
            raise ValueError(
                "advantage.temporal_critic.inner: a return is one number a sample; this one differs by step"
            )
        order = torch.tensor(rollout.ids).argsort()  # so that nothing depends on the order of samples
        valid = scores.valid.cpu()[order]
        seen = self._seen(rollout)[order.to(self._device)]
        returns = target.cpu()[order].float().unsqueeze(1).expand(seen.shape[:2])
        if self._net is None:
            self._make(seen.shape[-1])
        assert self._net is not None
        with torch.no_grad():
            value = self._net(seen.flatten(0, 1)).view(seen.shape[:2]).cpu()
        left = target.cpu()[order].unsqueeze(1) - value.to(target.dtype)
        if not valid.any():
            return torch.zeros_like(left).to(scores.total)
        counted = left[valid]
        normed = (left - counted.mean()) / (counted.std(correction=0) + 1e-8)
        self._told = {
            "value_error": float((value - returns)[valid].square().mean()),
            "value": float(value[valid].mean()),
            "reset": 0.0,
        }
        self._learn(seen[valid.to(seen.device)], value[valid], returns[valid])
        return torch.where(valid.unsqueeze(1), normed, 0.0)[order.argsort()].to(scores.total)

    @torch.no_grad()
    def _seen(self, rollout: Rollout) -> Float[Tensor, "b k d"]:
        """Features of the state before every step."""
        steps, plan = latents_of(rollout, "advantage.temporal_critic"), rollout.plan
        assert isinstance(plan, LatentPlan) and plan.transition is not None
        states = steps.before if self._settings.looks_at == "state" else clean_of(moving(plan, steps.step), steps)
        found = []
        for some in states.flatten(0, 1).float().split(self._settings.rows):
            pictures = some if self._decoder is None else self._decoder.decode(some).clamp(0, 1)
            found.append(self._features(pictures).to(self._device))
        return torch.cat(found).unflatten(0, states.shape[:2])

    def _make(self, inputs: int) -> None:
        own = self._settings
        self._net = PictureValue(inputs, own.seed).to(self._device)
        self._adam = torch.optim.AdamW(self._net.parameters(), lr=own.lr, weight_decay=own.weight_decay)

    def _learn(self, seen: Float[Tensor, "v k d"], old: Float[Tensor, "v k"], returns: Float[Tensor, "v k"]) -> None:
        own, net = self._settings, self._net
        assert net is not None
        v, k = old.shape
        random = generator("temporal critic", own.seed, self._rounds)
        shuffled = torch.from_numpy(random.permuted(torch.arange(k).expand(v, k).numpy(), axis=1))
        everyone = torch.from_numpy(random.permutation(v))
        for place in range(k):
            for rows in everyone.tensor_split(min(own.minibatches, v)):
                at = rows, shuffled[rows, place]
                x = seen[at[0].to(seen.device), at[1].to(seen.device)]
                loss = clipped_value_loss(net(x), old[at].to(x.device), returns[at].to(x.device), own.clip)
                self._adam.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), own.clip_norm)
                self._adam.step()
        self._rounds += 1
        if own.renew != "none" and self._rounds % own.renew_every == 0:
            key = (own.seed, self._rounds)
            count = reset(net, self._adam, seen[:, -1], own.renew, own.threshold, key)
            self._told["reset"] = float(count)

    def state(self) -> dict[str, Any]:
        if self._net is None:
            return {}
        inputs = linear(self._net.layers)[0].in_features
        return {
            "inputs": inputs,
            "rounds": self._rounds,
            "net": self._net.state_dict(),
            "adam": self._adam.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self._make(state["inputs"])
        assert self._net is not None
        self._net.load_state_dict(state["net"])
        self._adam.load_state_dict(state["adam"])
        self._rounds = state["rounds"]

    def metrics(self) -> dict[str, float]:
        return dict(self._told)
