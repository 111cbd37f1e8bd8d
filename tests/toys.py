"""A tiny true policy: rasters of a few tokens, small enough to list every picture it can draw.

policy = ToyRaster().load(torch.device("cpu"))
rollout = policy.sample(toy_prompts(2, group=4), TokenPlan(group=4), Noise(seed=0, step=1, ids=tuple(range(8))))
everything = policy.enumerate(toy_prompt(0), TokenPlan())  # everything.logp.sum(1).exp() sums to 1
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from burnish.core import Evaluation, Policy, PolicySpec, Reward, Scorer, Suite
from burnish.formulas.noise import Noise
from burnish.formulas.tokens import draw, entropy, law_logits, logp_of
from burnish.models.weights import Copies, KeepsCopies
from burnish.types import Law, Plan, Prompt, Rollout, Scores, TokenPlan, Tokens


def toy_prompt(number: int) -> Prompt:
    return Prompt(id=f"toy{number}", text=f"toy number {number}", facts={"class": number})


def toy_prompts(distinct: int, group: int) -> list[Prompt]:
    """`group` copies of each of `distinct` prompts, side by side."""
    return [toy_prompt(n) for n in range(distinct) for _ in range(group)]


@dataclass(frozen=True)
class ToyRaster(PolicySpec):
    """A raster of `tokens` gray levels. Each depends on the class and on all tokens before it."""

    tokens: int = 3  # decisions of one sample
    symbols: int = 4  # gray levels; a sample is one of symbols ** tokens
    classes: int = 3  # prompts: facts["class"] in 0..classes-1; one more row is the null class
    width: int = 6  # hidden units
    spread: float = 0.7  # standard deviation of the first weights; larger is further from uniform
    seed: int = 0  # of the first weights
    dtype: torch.dtype | None = None  # None: float32; float64 for exact gradients

    def load(self, device: torch.device) -> ToyPolicy:
        return ToyPolicy(self, device)


class ToyPolicy(KeepsCopies):
    """logits_j = tanh(embedding(class) + sum over i < j of embedding_i(token i)) W_j + b_j."""

    def __init__(self, spec: ToyRaster, device: torch.device) -> None:
        self.spec = spec
        k, v, n = spec.tokens, spec.symbols, spec.width
        shapes = {"prompt": (spec.classes + 1, n), "token": (k, v, n), "head": (k, n, v), "bias": (k, v)}
        random = torch.Generator().manual_seed(spec.seed)
        self.weights = {
            name: torch.nn.Parameter(
                (torch.randn(shape, generator=random) * spec.spread).to(device, spec.dtype or torch.float32)
            )
            for name, shape in shapes.items()
        }
        self.copies = Copies(list(self.weights.items()))

    def sample(self, prompts: Sequence[Prompt], plan: Plan, noise: Noise) -> Rollout:
        assert isinstance(plan, TokenPlan)
        assert len(noise.ids) == len(prompts)
        uniform = noise.uniform(self.spec.tokens, "tokens")
        ids = torch.zeros(len(prompts), 0, dtype=torch.long)
        with torch.no_grad():
            for j in range(self.spec.tokens):
                # Logits of position j read only the tokens before it, so the filler here is never looked at.
                filler = torch.zeros(len(prompts), self.spec.tokens - j, dtype=torch.long)
                logits = self._law(prompts, torch.cat([ids, filler], 1), plan, "sampled")[:, j]
                ids = torch.cat([ids, draw(logits, uniform[:, j]).unsqueeze(1)], 1)
            return self._rollout(prompts, ids, plan, noise.ids)

    def logp(self, rollout: Rollout) -> Float[Tensor, "b k"]:
        ids, plan = rollout.decisions[0].ids, rollout.plan
        assert isinstance(plan, TokenPlan)
        return logp_of(self._law(rollout.prompts, ids, plan, plan.law, keep=ids), ids)

    def enumerate(self, prompt: Prompt, plan: TokenPlan) -> Rollout:
        """Every sequence once, with the exact log-probability of the law sampled from (-inf where filtered)."""
        ids = torch.tensor(list(itertools.product(range(self.spec.symbols), repeat=self.spec.tokens)))
        with torch.no_grad():
            return self._rollout([prompt] * len(ids), ids, plan, tuple(range(len(ids))))

    def exact_logp(self, prompt: Prompt, plan: TokenPlan) -> Float[Tensor, " n"]:
        """Log-probability of every sequence of `enumerate` under `plan.law` and the weights now, with gradient."""
        ids = self.enumerate(prompt, plan).decisions[0].ids
        return logp_of(self._law([prompt] * len(ids), ids, plan, plan.law), ids).sum(1)

    def export(self, folder: Path) -> None:
        save_file({name: weight.detach().clone() for name, weight in self.weights.items()}, folder / "toy.safetensors")

    def _rollout(self, prompts: Sequence[Prompt], ids: Tensor, plan: TokenPlan, keys: tuple[int, ...]) -> Rollout:
        law = self._law(prompts, ids, plan, "sampled")
        number: dict[str, int] = {}
        group = torch.tensor([number.setdefault(p.id, len(number)) for p in prompts])
        logp = logp_of(law, ids)
        order = torch.arange(self.spec.tokens).expand_as(ids)
        tokens = Tokens(ids, logp, torch.ones_like(logp), order, entropy(law))
        return Rollout(tuple(prompts), group, (tokens,), picture(ids, self.spec.symbols), plan, keys)

    def _law(
        self, prompts: Sequence[Prompt], ids: Tensor, plan: TokenPlan, law: Law, keep: Tensor | None = None
    ) -> Float[Tensor, "b k v"]:
        classes = torch.tensor([int(p.facts["class"]) for p in prompts])
        cond = self._logits(classes, ids)
        null = self._logits(torch.full_like(classes, self.spec.classes), ids)
        return law_logits(cond, null, plan, law, keep)

    def _logits(self, classes: Int[Tensor, " b"], ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k v"]:
        w = self.weights
        seen = w["token"][torch.arange(self.spec.tokens), ids]  # b k n
        before = seen.cumsum(1) - seen
        hidden = torch.tanh(w["prompt"][classes].unsqueeze(1) + before)
        return torch.einsum("bkn,knv->bkv", hidden, w["head"]) + w["bias"]


def picture(ids: Int[Tensor, "b k"], symbols: int) -> Float[Tensor, "b 3 4 w"]:
    """Each token a gray patch of 4 x 4, side by side: level id / (symbols - 1)."""
    gray = (ids.float() / (symbols - 1)).repeat_interleave(4, 1)  # b 4k
    return gray[:, None, None, :].expand(-1, 3, 4, -1).contiguous()


def prompts() -> list[Prompt]:
    """For sources: `prompts: toys:prompts`."""
    return [toy_prompt(n) for n in range(3)]


@dataclass(frozen=True)
class Brightness(Reward):
    """Mean gray level. `spoil` makes it misbehave, to see what the engine says."""

    spoil: str = (
        ""  # raise, shape, type, lie, some (every third is invalid), all, flat, noise (from torch's own stream)
    )
    pause: float = 0.0  # seconds that a call takes

    def load(self, device: torch.device) -> Scorer:
        return BrightnessScorer(self)


class BrightnessScorer(Scorer):
    def __init__(self, spec: Brightness) -> None:
        self.spec = spec

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        time.sleep(self.spec.pause)
        values = images.mean((1, 2, 3))
        match self.spec.spoil:
            case "raise":
                raise KeyError("no such endpoint")
            case "shape":
                values = values.unsqueeze(1)
            case "lie":
                values[2] = torch.nan
                return Scores(values, {"brightness": values}, torch.ones(len(values), dtype=torch.bool))
            case "some":
                values[::3] = torch.nan
            case "all":
                values[:] = torch.nan
            case "flat":
                values[:] = 0.5
            case "noise":
                values = values + 0.01 * torch.rand(len(values))
            case "type":
                return values  # type: ignore[return-value]
        return Scores.of("brightness", values)


@dataclass(frozen=True)
class ToySuite(Suite):
    """Brightness of `each` samples of every prompt, and their spread, which is no mean over samples."""

    each: int = 16  # samples of each prompt

    def run(self, policy: Policy, plan: Plan, reward: Scorer | None, seed: int) -> Evaluation:
        asked = tuple(p for p in prompts() for _ in range(self.each))
        drawn = policy.sample(asked, TokenPlan(group=self.each), Noise(seed, 0, tuple(range(len(asked))), "evaluate"))
        bright = drawn.media.mean((1, 2, 3))
        metrics = {"verified": float(bright.mean()), "spread": float(bright.std())}
        return Evaluation(metrics, {"verified": bright}, asked, drawn.media)
