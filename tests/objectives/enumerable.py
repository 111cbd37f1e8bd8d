"""A policy small enough to write down every sequence it can draw: a table of logits for each prompt and last token."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from burnish.core import Copy, Policy
from burnish.formulas.noise import Noise
from burnish.formulas.tokens import draw_with_logp, law_logits, logp_of
from burnish.types import Batch, Loss, Prompt, Rollout, Scores, TokenPlan, Tokens

V = 3  # vocabulary


class Bigram(Policy):
    """p(token | prompt, position, last token), with a second table of unconditional logits. Float64."""

    def __init__(self, k: int, prompts: int = 1, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.k = k
        self.cond = torch.nn.Parameter(torch.randn(prompts, k, V + 1, V, generator=random, dtype=torch.float64))
        self.null = torch.nn.Parameter(torch.randn(k, V + 1, V, generator=random, dtype=torch.float64))
        self.copies: dict[str, list[Tensor]] = {}

    def parameters(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return [("cond", self.cond), ("null", self.null)]

    def logits(self, rollout: Rollout, law: str, ids: Tensor, keep: bool) -> Tensor:
        prompt = torch.tensor([int(p.id) for p in rollout.prompts])
        last = torch.cat([torch.full_like(ids[:, :1], V), ids[:, :-1]], 1)
        here = torch.arange(self.k).expand_as(ids)
        cond, null = self.cond[prompt[:, None], here, last], self.null[here, last]
        return law_logits(cond, null, rollout.plan, law, keep=ids if keep else None)  # type: ignore[arg-type]

    def logp(self, rollout: Rollout) -> Tensor:
        ids = rollout.decisions[0].ids
        return logp_of(self.logits(rollout, rollout.plan.law, ids, keep=True), ids)

    def drawn_logp(self, rollout: Rollout) -> Tensor:
        """Of the law that draws, -inf where it never would."""
        ids = rollout.decisions[0].ids
        return logp_of(self.logits(rollout, "sampled", ids, keep=False), ids)

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], plan: TokenPlan, noise: Noise) -> Rollout:
        ids = torch.zeros(len(prompts), self.k, dtype=torch.long)
        rollout = rollout_of(prompts, ids, plan)
        logp, uniform = torch.zeros(ids.shape, dtype=torch.float64), noise.uniform(self.k)
        for t in range(self.k):
            now = self.logits(rollout, "sampled", ids, keep=False)[:, t]
            ids[:, t], logp[:, t], _ = draw_with_logp(now, uniform[:, t])
        return rollout_of(prompts, ids, plan, logp)

    def everything(self, prompt: Prompt, plan: TokenPlan) -> tuple[Rollout, Tensor]:
        """All sequences that can be drawn, and how probable each is."""
        ids = torch.tensor(list(itertools.product(range(V), repeat=self.k)))
        rollout = rollout_of([prompt] * len(ids), ids, plan)
        with torch.no_grad():
            logp = self.drawn_logp(rollout)
        possible = torch.isfinite(logp).all(1)
        ids, logp = ids[possible], logp[possible]
        return rollout_of([prompt] * len(ids), ids, plan, logp), logp.sum(1).exp()

    def keep(self, copies: Mapping[str, Copy]) -> None:
        self.copies = {name: [p.detach().clone() for _, p in self.parameters()] for name in copies}

    @contextmanager
    def using(self, copy: str) -> Iterator[None]:
        live = [p.data for _, p in self.parameters()]
        if copy != "live":
            for (_, p), other in zip(self.parameters(), self.copies[copy], strict=True):
                p.data = other
        try:
            yield
        finally:
            for (_, p), data in zip(self.parameters(), live, strict=True):
                p.data = data

    def advance(self) -> None:
        assert not self.copies, "no objective here averages a copy"

    def state(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters():
            p.data.copy_(state[name])

    def export(self, folder: Path) -> None:
        torch.save(self.state(), folder / "bigram.pt")


def rollout_of(prompts: Sequence[Prompt], ids: Tensor, plan: TokenPlan, logp: Tensor | None = None) -> Rollout:
    logp = torch.zeros(ids.shape, dtype=torch.float64) if logp is None else logp
    weight = torch.ones_like(logp)
    order = torch.arange(ids.shape[1]).expand_as(ids)
    group = torch.tensor([int(p.id) for p in prompts])
    tokens = Tokens(ids, logp, weight, order, torch.zeros_like(logp))
    return Rollout(
        tuple(prompts), group, (tokens,), torch.zeros(len(prompts), 3, 1, 1), plan, tuple(range(len(prompts)))
    )


def worth(rollout: Rollout) -> Tensor:
    """A reward with no structure: every sequence has a value of its own."""
    code = (rollout.decisions[0].ids * V ** torch.arange(rollout.logp.shape[1])).sum(1)
    return torch.sin(7.0 * code.double() + 1.0)


def unscored(images: Tensor, prompts: Sequence[Prompt]) -> Scores:
    raise AssertionError("none of these objectives differentiates the reward")


def batch_of(rollout: Rollout, advantage: Tensor) -> Batch:
    total = worth(rollout)
    keep = torch.ones(len(rollout), dtype=torch.bool)
    return Batch(rollout, Scores(total, {"worth": total}, keep), advantage, keep)


def slope(loss: Loss, policy: Policy) -> Tensor:
    """Gradient of total / count as one vector."""
    live = [p for _, p in policy.parameters()]
    parts = torch.autograd.grad(loss.total / loss.count, live, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(live, parts)])


def true_slope(policy: Bigram, rollout: Rollout, value: Tensor) -> Tensor:
    """Exact gradient of the expectation of `value` over what the policy draws."""
    expected = (policy.drawn_logp(rollout).sum(1).exp() * value).sum()
    live = [p for _, p in policy.parameters()]
    parts = torch.autograd.grad(expected, live, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(live, parts)])
