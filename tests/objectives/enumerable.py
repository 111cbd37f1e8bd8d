"""Exact sums over everything the toy policy can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from toys import ToyPolicy, ToyRaster

from burnish.core import Policy
from burnish.types import Batch, Loss, Prompt, Rollout, Scores, TokenPlan, take


def toy(tokens: int, seed: int = 0) -> ToyPolicy:
    """Three symbols, float64, as many tokens as said."""
    spec = ToyRaster(tokens=tokens, symbols=3, classes=2, width=4, seed=seed, dtype=torch.float64)
    return spec.load(torch.device("cpu"))


def everything(policy: ToyPolicy, prompt: Prompt, plan: TokenPlan) -> tuple[Rollout, Tensor]:
    """All sequences that can be drawn, and how probable each is."""
    rollout = policy.enumerate(prompt, plan)
    possible = torch.isfinite(rollout.logp).all(1)
    rollout = take(rollout, possible.nonzero().flatten())
    return rollout, rollout.logp.sum(1).exp()


def worth(rollout: Rollout) -> Tensor:
    """A reward with no structure: every sequence has a value of its own."""
    ids = rollout.decisions[0].ids
    code = (ids * 3 ** torch.arange(ids.shape[1])).sum(1)
    return torch.sin(7.0 * code.double() + 1.0)


def unscored(images: Tensor, prompts: Sequence[Prompt]) -> Scores:
    raise AssertionError("none of these objectives differentiates the reward")


def batch_of(rollout: Rollout, advantage: Tensor) -> Batch:
    total = worth(rollout)
    keep = torch.ones(len(rollout), dtype=torch.bool)
    return Batch(rollout, Scores(total, {"worth": total}, keep), advantage, keep)


def slope(loss: Loss, policy: Policy) -> Tensor:
    """Gradient of total / count as one vector."""
    return gradient(loss.total / loss.count, policy)


def gradient(value: Tensor, policy: Policy) -> Tensor:
    live = [p for _, p in policy.parameters()]
    parts = torch.autograd.grad(value, live, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(live, parts)])


def true_slope(policy: ToyPolicy, prompt: Prompt, plan: TokenPlan) -> Tensor:
    """Exact gradient of the expected worth of what the policy draws."""
    value = worth(policy.enumerate(prompt, plan))
    return gradient((policy.exact_logp(prompt, replace(plan, law="sampled")).exp() * value).sum(), policy)
