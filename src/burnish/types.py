"""The records that flow through a run: prompts -> rollout -> scores -> batch -> loss.

Every record is frozen. A stage returns a new one (`dataclasses.replace`) and never edits the one it was given.
Letters in shapes: `b` samples, `k` decisions of one sample (tokens, denoising steps), `c h w` a picture, `f c h w` a
video: what is drawn has an axis of frames before its channels, or none.
Log-probabilities are in nats. Pictures are float in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Law = Literal["sampled", "conditional", "guided", "tempered"]


@dataclass(frozen=True)
class Prompt:
    """What is asked for."""

    id: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # what a rule may check: class id, objects and counts, text


@dataclass(frozen=True)
class Plan:
    """How one rollout is drawn. Written by a planner each step, and stored in the rollout it drew."""

    group: int = 8  # samples drawn for each prompt and compared with one another
    guidance: float = 1.0  # w in u + w (c - u), c conditional and u unconditional prediction; 1 is no guidance

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}")
        if not self.guidance >= 0:
            raise ValueError(f"guidance must be 0 or more, got {self.guidance} (1 is no guidance)")

    @property
    def one_law(self) -> bool:
        """Whether the law that is trained is the law drawn from."""
        return True

    @property
    def compared(self) -> int:
        """Samples that are compared with one another: all of a prompt's, or those that share a beginning."""
        return self.group

    @property
    def together(self) -> int:
        """Samples that must be drawn at once, because they share a part of their way."""
        return 1

    @property
    def shares_learned(self) -> bool:
        """Samples of a group share states that are learned from, and that are evaluated once if scored at once."""
        return False


@dataclass(frozen=True)
class TokenPlan(Plan):
    """How a rollout of tokens is drawn."""

    temperature: float = 1.0  # logits are divided by it before filtering
    top_k: int = 0  # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of tokens whose mass reaches p; 1 keeps all
    law: Law = "sampled"  # whose log-probability `policy.logp` recomputes and training changes
    detach_null: bool = False  # stop the gradient through the unconditional branch

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature} (top_k: 1 draws greedily)")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (keeps all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (keeps all tokens), got {self.top_p}")
        if self.law not in get_args(Law):
            raise ValueError(f"law must be one of {', '.join(get_args(Law))}, got {self.law!r}")

    @property
    def one_law(self) -> bool:
        filtered = self.top_k > 0 or self.top_p < 1
        match self.law:
            case "sampled":
                return True
            case "tempered":
                return not filtered
            case "guided":
                return not filtered and self.temperature == 1
            case "conditional":
                return not filtered and self.temperature == 1 and self.guidance == 1


@dataclass(frozen=True)
class Tokens:
    """Discrete decisions, in the order they were taken."""

    ids: Int[Tensor, "b k"]
    logp: Float[Tensor, "b k"]  # nats, recorded while drawing: of the law that was sampled from, whatever plan.law says
    weight: Float[Tensor, "b k"]  # 1 on decisions that are trained, 0 on padding
    round: Int[Tensor, "b k"]  # decisions of one round were taken together: raster 0..k-1, next-scale the scale, ...
    entropy: Float[Tensor, "b k"]  # nats, of the law that was sampled from


@dataclass(frozen=True)
class Latents:
    """Continuous decisions: the steps of a denoiser that are trained. Each is whole, so that any of them may be kept.

    `*d` is the shape of a latent. Times run from 1, noise, to 0, a picture.
    """

    before: Float[Tensor, "b k *d"]
    after: Float[Tensor, "b k *d"]  # as stored: rounded, where the plan says so, before its log-probability was taken
    time: Float[Tensor, "b k 2"]  # of `before` and of `after`
    logp: Float[Tensor, "b k"]  # nats a dimension (the mean over *d, as DDPO and all after it have it)
    mean: Float[Tensor, "b k *d"]  # of the Gaussian that `after` was drawn from
    std: Float[Tensor, "b k"]  # of it
    weight: Float[Tensor, "b k"]  # 1 / n on a decision that n samples share: in a sum over samples it counts once
    entropy: Float[Tensor, "b k"]  # nats a dimension
    step: Int[Tensor, "b k"]  # number of the step, from 0, the noisiest
    origin: Int[Tensor, "b k"]  # equal numbers have one and the same `before`: one network evaluation serves them all
    node: Int[Tensor, "b k"]  # equal numbers have one and the same `after`: leaves below one branch of a tree


@dataclass(frozen=True)
class Rollout:
    """Drawn samples, and everything needed to recompute how likely they were."""

    prompts: tuple[Prompt, ...]
    group: Int[Tensor, " b"]  # samples with an equal number answer one prompt and are compared with one another
    decisions: tuple[Tokens | Latents, ...]  # one image is one entry; a thought and then an image are two
    media: Float[Tensor, "b *f c h w"]  # in [0, 1]
    plan: Plan
    ids: tuple[int, ...]  # keys of the noise, unique within the step
    anchor: Float[Tensor, "b k"] | None = None  # log-probability that ratios are taken against; None: the recorded one
    reference: Float[Tensor, "b k"] | None = None  # log-probability under the reference weights, where it is needed
    final: Float[Tensor, "b *d"] | None = None  # clean latents, of policies that have them: x - t v at the last step
    waypoint: Float[Tensor, "b *d"] | None = None  # the state that a step of the plan's choice began with
    evaluations: Float[Tensor, " b"] | None = None  # of the network; one that several samples share is divided by them

    @property
    def logp(self) -> Float[Tensor, "b k"]:
        """Log-probabilities recorded while drawing, of all decisions in a row. A deterministic draw has none."""
        return self._row("logp")

    @property
    def weight(self) -> Float[Tensor, "b k"]:
        return self._row("weight")

    @property
    def entropy(self) -> Float[Tensor, "b k"]:
        return self._row("entropy")

    def _row(self, name: str) -> Float[Tensor, "b k"]:
        parts = [getattr(decision, name) for decision in self.decisions]
        return torch.cat(parts, 1) if parts else torch.zeros(len(self), 0, device=self.group.device)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Scores:
    """What the samples are worth. A score that could not be computed is NaN and `valid` is False there; never 0."""

    total: Float[Tensor, " b"]
    parts: Mapping[str, Float[Tensor, " b"]]  # named components, before weighting
    valid: Bool[Tensor, " b"]
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # per part, a word on each sample ("" for none)

    @staticmethod
    def of(name: str, values: Float[Tensor, " b"], notes: Sequence[str] | None = None) -> Scores:
        """Scores of a single part. Values that are not finite are invalid."""
        values = values.detach() if not values.requires_grad else values
        valid = torch.isfinite(values.detach())
        values = torch.where(valid, values, torch.full_like(values, torch.nan))
        return Scores(values, {name: values}, valid, {name: tuple(notes)} if notes is not None else {})

    @staticmethod
    def require(found: object) -> Scores:
        """What a reward has returned. Raises ValueError if it is something else."""
        if not isinstance(found, Scores):
            raise ValueError(
                f"a reward returns Scores (Scores.of(name, values) makes them), not {type(found).__name__}"
            )
        return found

    def noted(self) -> Scores:
        """The same with notes on every part, empty ones where there were none: so that it can be joined with others."""
        nothing = ("",) * len(self.total)
        return replace(self, notes={part: self.notes.get(part, nothing) for part in self.parts})


@dataclass(frozen=True)
class Batch:
    """What an objective sees."""

    rollout: Rollout
    scores: Scores
    advantage: Float[Tensor, " b"] | Float[Tensor, "b k"]  # 0 where a score is invalid
    keep: Bool[Tensor, " b"]  # samples that count in the loss: a valid score, and a group that was not dropped
    seed: int = 0  # of the run; with the step it keys the noise that an objective draws itself
    step: int = 0


@dataclass(frozen=True)
class Mean:
    """A mean that has not been divided yet, so that any split of a batch gives the same value."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True)
class Loss:
    """A sum and the number of things summed. The learner divides once, over micro-batches and ranks."""

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    metrics: Mapping[str, Mean] = field(default_factory=dict)


R = TypeVar("R")


def take(record: R, index: Int[Tensor, " n"]) -> R:
    """The samples `index` of a record, in that order. Prompts, tensors and nested records are indexed alike."""
    return _rows(record, index)


def _rows(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, tuple):
        if not value or (is_dataclass(value[0]) and not isinstance(value[0], Prompt)):
            return tuple(_rows(v, index) for v in value)
        return tuple(value[i] for i in index.tolist())
    if isinstance(value, Mapping):
        return {name: _rows(v, index) for name, v in value.items()}
    if isinstance(value, (Rollout, Tokens, Latents, Scores, Batch)):
        return replace(value, **{f.name: _rows(getattr(value, f.name), index) for f in fields(value)})
    return value


def moved(record: R, device: torch.device) -> R:
    """A record with all its tensors on a device."""
    return _moved(record, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(v, device) for v in value)
    if isinstance(value, Mapping):
        return {name: _moved(v, device) for name, v in value.items()}
    if isinstance(value, (Rollout, Tokens, Latents, Scores, Batch)):
        return replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in fields(value)})
    return value


def decided(batch: Batch, place: Int[Tensor, " b"]) -> Batch:
    """The batch with one of the steps of every sample, the one at `place`, and no others.

    Of a denoiser: a token cannot be scored without those before it.
    """
    (steps,) = batch.rollout.decisions
    assert isinstance(steps, Latents)

    def one(values: Tensor | None) -> Any:
        return None if values is None else values[torch.arange(len(values)), place.to(values.device)].unsqueeze(1)

    steps = replace(steps, **{f.name: one(getattr(steps, f.name)) for f in fields(steps)})
    told = {"anchor": one(batch.rollout.anchor), "reference": one(batch.rollout.reference)}
    advantage = one(batch.advantage) if batch.advantage.dim() == 2 else batch.advantage
    return replace(batch, rollout=replace(batch.rollout, decisions=(steps,), **told), advantage=advantage)


def concatenate(records: Sequence[R]) -> R:
    """Records of several draws as one. They must share their plan; a field that is None in one is None in all."""
    if not records:
        raise ValueError("concatenate needs at least one record")
    return _joined(list(records))


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, tuple):
        if first and is_dataclass(first[0]) and not isinstance(first[0], Prompt):
            return tuple(_joined(list(same)) for same in zip(*values, strict=True))
        return tuple(item for value in values for item in value)
    if isinstance(first, Mapping):
        return {name: _joined([v[name] for v in values]) for name in first}
    if isinstance(first, (Rollout, Tokens, Latents, Scores, Batch)):
        return replace(first, **{f.name: _joined([getattr(v, f.name) for v in values]) for f in fields(first)})
    if any(value != first for value in values):
        raise ValueError(f"cannot join records drawn differently: {first} and {next(v for v in values if v != first)}")
    return first
