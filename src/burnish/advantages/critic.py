"""DPOK's advantage: the reward minus what a network expected of the state, its step and the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core import Advantage, Large, LatentPlan, Memory, Policy
from burnish.formulas.noise import generator
from burnish.formulas.steps import latents_of
from burnish.models.critic import StepValue, text_vectors
from burnish.types import Rollout, Scores


@dataclass(frozen=True)
class Critic(Advantage):
    """R - V(x_t, t, text), a value for every step. Fan et al. 2023, arXiv:2305.16381, section 4.3.

    V is a small network of its own, with its own AdamW, regressed on the reward of the finished picture at states of
    this and earlier steps. It learns before it is asked, as released: one update on the mean gradient of `updates`
    batches. No group is needed. Reads the steps of a denoiser.

    Metrics:
        value_error   mean (V - R)^2 over the states of this step, before V learned from them
        value         mean V over them, after
    """

    reads: ClassVar[tuple[Large, ...]] = ("states",)

    text_encoder: str = ""  # hub id or local folder of a CLIP that reads the prompt; empty: fixed vectors of its words
    width: int = 256  # units of a hidden layer
    lr: float = 1e-4  # learning rate of the value
    weight_decay: float = 0.01  # of its AdamW
    updates: int = 5  # batches it learns from in a step
    together: bool = True  # one update for all of them, as released, or one for each
    batch: int = 256  # states in a batch
    buffer: int = 1000  # states of earlier steps that it goes on learning from, the newest; 0: of this step alone
    normalise: bool = False  # divide by the standard deviation over all states of the step, after taking off the mean
    seed: int = 0  # of the first weights and the choice of batches

    def __post_init__(self) -> None:
        for name, value, least in (("width", self.width, 1), ("updates", self.updates, 1), ("batch", self.batch, 1)):
            if value < least:
                raise ValueError(f"advantage.critic.{name}: expected {least} or more, got {value}")
        if self.buffer < 0 or not self.lr > 0:
            raise ValueError(f"advantage.critic: buffer must be 0 or more and lr above 0, not {self.buffer}, {self.lr}")

    def begin(self, policy: Policy | None) -> _Critic:
        device = policy.parameters()[0][1].device if policy else torch.device("cpu")
        return _Critic(self, device)

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        return self.begin(None)(scores, rollout)


class _Critic(Advantage, Memory):
    def __init__(self, settings: Critic, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._texts = text_vectors(settings.text_encoder, "advantage.critic.text_encoder", device)
        self._net: StepValue | None = None  # made for the shape of the first states that it sees
        self._past: tuple[Tensor, Tensor, Tensor] | None = None  # (inputs, step, reward) of earlier steps, on the CPU
        self._rounds = 0
        self._told: dict[str, float] = {"value_error": torch.nan, "value": torch.nan}

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        steps, plan = latents_of(rollout, "advantage.critic"), rollout.plan
        assert isinstance(plan, LatentPlan)
        b, k = steps.step.shape
        order = torch.tensor(rollout.ids).argsort()  # so that nothing depends on the order of samples
        text = self._texts([prompt.text for prompt in rollout.prompts])
        states = steps.before.detach().flatten(2).float().cpu()
        inputs = torch.cat([states, text.unsqueeze(1).expand(-1, k, -1)], 2)[order]
        step, total, valid = steps.step.cpu()[order], scores.total.detach().cpu()[order], scores.valid.cpu()[order]
        if self._net is None:
            self._make(inputs.shape[-1], plan.steps)
        reward = total.float().unsqueeze(1).expand(b, k)
        before = self._values(inputs, step)
        if valid.any():
            self._learn(inputs[valid].flatten(0, 1), step[valid].flatten(), reward[valid].flatten())
        value = self._values(inputs, step)
        self._told = {
            "value_error": float((before - reward)[valid].square().mean()),
            "value": float(value[valid].mean()),
        }
        found = torch.where(valid.unsqueeze(1), total.unsqueeze(1) - value.to(total), 0.0)
        if self._settings.normalise and valid.any():
            counted = found[valid]
            normed = (found - counted.mean()) / (counted.std(correction=0) + 1e-8)
            found = torch.where(valid.unsqueeze(1), normed, 0.0)
        return found[order.argsort()].to(scores.total)

    def _make(self, inputs: int, steps: int) -> None:
        own = self._settings
        self._shape = inputs, steps
        self._net = StepValue(inputs, steps, own.width, own.seed).to(self._device)
        self._adam = torch.optim.AdamW(self._net.parameters(), lr=own.lr, weight_decay=own.weight_decay)

    @torch.no_grad()
    def _values(self, inputs: Float[Tensor, "b k d"], step: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        assert self._net is not None
        rows = zip(inputs.flatten(0, 1).split(1024), step.flatten().split(1024), strict=True)
        found = [self._net(x.to(self._device), s.to(self._device)).cpu() for x, s in rows]
        return torch.cat(found).view(step.shape)

    def _learn(self, inputs: Float[Tensor, "n d"], step: Int[Tensor, " n"], reward: Float[Tensor, " n"]) -> None:
        own, fresh = self._settings, (inputs, step, reward)
        known = fresh if self._past is None else tuple(torch.cat(pair) for pair in zip(self._past, fresh, strict=True))
        assert self._net is not None
        n = len(known[0])
        self._adam.zero_grad(set_to_none=True)
        for update in range(own.updates):
            random = generator("critic", own.seed, self._rounds, update)
            some = torch.from_numpy(random.permutation(n)[: own.batch])
            x, s, r = (part[some].to(self._device) for part in known)
            loss = F.mse_loss(self._net(x, s), r)
            (loss / own.updates if own.together else loss).backward()
            if not own.together or update == own.updates - 1:
                self._adam.step()
                self._adam.zero_grad(set_to_none=True)
        self._rounds += 1
        self._past = tuple(part[-own.buffer :].clone() for part in known) if own.buffer else None  # pyright: ignore

    def state(self) -> dict[str, Any]:
        if self._net is None:
            return {}
        past = list(self._past) if self._past is not None else []
        state = {"shape": list(self._shape), "rounds": self._rounds, "past": past}
        return {**state, "net": self._net.state_dict(), "adam": self._adam.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self._make(*state["shape"])
        assert self._net is not None
        self._net.load_state_dict(state["net"])
        self._adam.load_state_dict(state["adam"])
        self._rounds = state["rounds"]
        self._past = tuple(state["past"]) or None

    def metrics(self) -> dict[str, float]:
        return dict(self._told)
