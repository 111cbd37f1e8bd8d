"""What the processes of a run tell one another, and what each keeps to itself.

Every process draws, scores and learns from some groups of a step. What is small (scores, numbers, log-probabilities) is
gathered, so that advantages, memories and metrics are those of the whole step in every process; pictures and states
stay where they were drawn, unless the advantage says that it reads them (`Advantage.reads`).
The loop and the learner know `Ranks` alone. In a run of one process nothing is copied and nothing is sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage, Copy, Policy, Scorer
from burnish.formulas.noise import Noise
from burnish.prompts import by_prompt
from burnish.types import Latents, Plan, Prompt, Rollout, Scores, concatenate, take

T = TypeVar("T")
STATES = ("before", "after", "mean")  # of Latents: as large as a picture, for every step


class Ranks(ABC):
    """The processes of a run, which all do the same things in the same order."""

    number: int  # of this one, from 0
    count: int
    divides: bool = False  # weights are divided (core.Divides): all processes make the same passes, none does without

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.number == 0

    def share(self, things: int) -> range:
        """Which of so many things are this process's: a run of neighbours, none if there are too few."""
        return range(things * self.number // self.count, things * (self.number + 1) // self.count)

    @abstractmethod
    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order. Raises ValueError, with its sentence, where one has failed."""

    @abstractmethod
    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them. The others make nothing."""

    @abstractmethod
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of equal shapes in all processes, by their sums. Right after `gathered`."""

    @abstractmethod
    def together(self) -> AbstractContextManager[None]:
        """A block that ends in all processes as it ends in one: what one of them raises, all raise."""


class Alone(Ranks):
    """One process."""

    number, count = 0, 1

    def gathered(self, value: T) -> list[T]:
        return [value]

    def first(self, make: Callable[[], T]) -> T:
        return make()

    def add(self, tensors: Sequence[Tensor]) -> None: ...

    @contextmanager
    def together(self) -> Iterator[None]:
        yield


# --- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elsewhere:
    """Stands for what stayed with the process that drew it. Whoever looks at it is told what to say."""

    what: str

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def __getitem__(self, index: object) -> NoReturn:
        self._refuse()

    def __len__(self) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f"{self.what} of a rollout stayed with the process that drew it. An advantage that reads it says so in its "
            f"class, reads = ({self.what!r},); one that does not can only be used in a run of one process"
        )


def read_by(advantage: Advantage) -> frozenset[str]:
    """What an advantage, and those that it wraps, read besides what is always gathered."""
    inside = [getattr(advantage, f.name) for f in fields(advantage)] if is_dataclass(advantage) else []
    return frozenset(advantage.reads).union(*(read_by(value) for value in inside if isinstance(value, Advantage)))


def slim(rollout: Rollout, reads: frozenset[str]) -> Rollout:
    """The rollout without what is large and not read."""
    held: dict[str, Any] = {}
    for name in ("media", "final", "waypoint"):
        if name not in reads and getattr(rollout, name) is not None:
            held[name] = Elsewhere(name)
    if "states" not in reads:
        states: Any = {name: Elsewhere("states") for name in STATES}
        held["decisions"] = tuple(replace(d, **states) if isinstance(d, Latents) else d for d in rollout.decisions)
    return replace(rollout, **held)


def whole(
    ranks: Ranks, mine: tuple[Rollout, Scores] | None, reads: frozenset[str], plan: Plan
) -> tuple[Rollout, Scores]:
    """Rollout and scores of the step, of all processes one after another; None is a share without a group."""
    if ranks.count == 1:
        assert mine is not None, "one process has all groups"
        return mine
    # The plan is the same everywhere, and may hold any component: it is not sent.
    sent = None if mine is None else (replace(slim(mine[0], reads), plan=Plan()), mine[1])
    found = [one for one in ranks.gathered(sent) if one is not None]
    rollout, scores = (concatenate(part) for part in zip(*found, strict=True))
    return replace(rollout, plan=plan), scores


def rows(ranks: Ranks, mine: Tensor | None) -> Tensor:
    """Tensors of all processes with an entry a sample, one after another."""
    return torch.cat([one for one in ranks.gathered(mine) if one is not None])


# --- evaluation ------------------------------------------------------------------------------------------------------


class DrawsTogether(Policy):
    """A policy whose samples are drawn by all processes, and known to all. Every process asks for the same ones."""

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self._policy, self._ranks = policy, ranks

    def sample(self, prompts: Sequence[Prompt], plan: Plan, noise: Noise) -> Rollout:
        unit = plan.together
        if len(prompts) // unit < self._ranks.count:  # too few to share: every process draws them all
            return self._policy.sample(prompts, plan, noise)
        units = self._ranks.share(len(prompts) // unit)
        at = torch.arange(units.start * unit, units.stop * unit)
        mine = self._policy.sample([prompts[i] for i in at.tolist()], plan, noise.of(at))
        drawn = concatenate(self._ranks.gathered(replace(mine, plan=Plan())))
        number: dict[str, int] = {}
        group = torch.tensor([number.setdefault(p.id, len(number)) for p in prompts]).to(drawn.group)
        return replace(drawn, plan=plan, group=group)

    def logp(self, rollout: Rollout) -> Float[Tensor, "b k"]:
        return self._policy.logp(rollout)

    def parameters(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return self._policy.parameters()

    def narrow(self, only: Sequence[str]) -> None:
        self._policy.narrow(only)

    def keep(self, copies: Mapping[str, Copy]) -> None:
        self._policy.keep(copies)

    def using(self, copy: str) -> AbstractContextManager[None]:
        return self._policy.using(copy)

    def advance(self, step: int, after: Literal["update", "step"]) -> None:
        self._policy.advance(step, after)

    def renew(self, copy: str) -> None:
        self._policy.renew(copy)

    def state(self) -> dict[str, Tensor]:
        return self._policy.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._policy.restore(state)

    def export(self, folder: Path) -> None:
        self._policy.export(folder)


class ScoresTogether(Scorer):
    """A reward that every process asks for some of the scores, which all then know.

    Samples of one prompt are scored by one process, wherever they lie: a reward may compare them (Reward.compares).
    """

    def __init__(self, scorer: Scorer, ranks: Ranks) -> None:
        self._scorer, self._ranks = scorer, ranks

    def __call__(self, images: Float[Tensor, "b *f 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        groups = by_prompt(prompts)
        at = self._ranks.share(len(groups))
        mine = None
        if some := [i for group in groups[at.start : at.stop] for i in group]:
            mine = self._scorer(images[some], [prompts[i] for i in some]).noted()
        found = concatenate([one for one in self._ranks.gathered(mine) if one is not None])
        return take(found, torch.tensor([i for group in groups for i in group]).argsort())


def together(ranks: Ranks, policy: Policy, scorer: Scorer) -> tuple[Policy, Scorer]:
    """Policy and reward for suites, which draw and score with all processes."""
    return (policy, scorer) if ranks.count == 1 else (DrawsTogether(policy, ranks), ScoresTogether(scorer, ranks))
