"""The interfaces a recipe plugs together. None of them implements anything; concrete classes are final.

A component is its settings: a frozen dataclass in a file of its own, found by its file name. Policies and rewards are
loaded from theirs (`load`), because a model is heavy and its settings are not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.formulas.noise import Noise
from burnish.types import Batch, Loss, Plan, Prompt, Rollout, Scores, TokenPlan


@dataclass(frozen=True)
class Copy:
    """A second set of the trainable weights, kept beside the live one.

    With a decay d it is an average, copy <- d copy + (1 - d) live. d may rise with the number i of the training step:
    min(decay, rise max(0, i - flat)); or be held below (1 + i) / (10 + i) early on. Functions of the step: there is
    nothing to save.
    """

    decay: float | None = None  # d, or what it rises to; None: the copy stays as it was at the start
    rise: float = 0.0  # of d with every training step; 0: d is `decay` from the beginning
    flat: int = 0  # training steps before it begins to rise, in which d is 0 and the copy is the live weights
    warmup: bool = False  # d is (1 + i) / (10 + i) at most, so that a long average does not stay at the start
    every: Literal["update", "step"] = "update"  # when it moves: after each update, or after all updates of a step
    interval: int = 1  # of training steps: it moves in every so many-th of them
    renewed: bool = False  # the objective sets it to the live weights when it sees fit (Watches, Policy.renew)

    def decay_at(self, step: int) -> float | None:
        """d at a training step, counted from 1."""
        if self.decay is None:
            return None
        risen = self.rise * max(0, step - self.flat) if self.rise else self.decay
        early = (1 + step) / (10 + step) if self.warmup else 1.0
        return min(self.decay, risen, early)


@dataclass(frozen=True)
class Needs:
    """What an objective asks of a run. Nothing else asks which algorithm is running."""

    draw_from: str = "live"  # weights that draw the samples: "live" or the name of a copy
    copies: Mapping[str, Copy] = field(default_factory=dict)
    anchor: Literal["behaviour", "recomputed"] = (
        "behaviour"  # ratios against the law drawn from, or the trained law before the update
    )
    reward_gradient: bool = False  # the reward is differentiated
    whole_groups: bool = False  # a micro-batch must not split a group
    even: bool = True  # every loss makes equally many passes through the network, whatever the samples
    reference_logp: bool = False  # rollout.reference is wanted: log-probabilities under the copy of that name


class Policy(ABC):
    """A distribution over pictures that can be drawn from, scored and changed."""

    plans: ClassVar[type[Plan]] = TokenPlan  # the plans that it can draw by
    evaluations: int = 0  # states that a denoiser's network has been asked about so far; others do not count

    @abstractmethod
    def sample(self, prompts: Sequence[Prompt], plan: Plan, noise: Noise) -> Rollout:
        """Draw one sample for every prompt (prompts may repeat), recording the log-probability of the law drawn from.

        `group` of the result numbers the distinct prompts. No gradient is recorded.
        """

    def read_ahead(self, prompts: Sequence[Prompt]) -> None:
        """Encode the texts of prompts that will be drawn next, if what comes of it can be kept. Changes no number."""
        return

    @abstractmethod
    def logp(self, rollout: Rollout) -> Float[Tensor, "b k"]:
        """Log-probability, nats, of the decisions of `rollout` under `rollout.plan.law` and the weights in use now."""

    @abstractmethod
    def parameters(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        """The live trainable weights, with their names."""

    @abstractmethod
    def narrow(self, only: Sequence[str]) -> None:
        """Train from now on only weights in whose name one of these patterns is found, and freeze the others.

        Before `keep`. Raises ValueError for a pattern that is found in none.
        """

    @abstractmethod
    def keep(self, copies: Mapping[str, Copy]) -> None:
        """Keep these copies of the trainable weights from now on, equal to the live ones at this moment."""

    @abstractmethod
    def using(self, copy: str) -> AbstractContextManager[None]:
        """Work with another copy of the weights inside the block ("live" changes nothing)."""

    @abstractmethod
    def advance(self, step: int, after: Literal["update", "step"]) -> None:
        """Move the averaged copies that move now. Called after every optimiser update, and after those of a step."""

    @abstractmethod
    def renew(self, copy: str) -> None:
        """Set a copy to the live weights. Raises ValueError for one that is not kept, or not kept as `renewed`."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Trainable weights and copies by name, all that is needed to go on. Untrained weights are not in it.

        Fresh tensors on the CPU: they stay as they are while the policy learns on.
        """

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises ValueError that names a missing, surplus or misshapen entry."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the model with its live weights in its released format, loadable as `weights: folder`."""


@runtime_checkable
class Divides(Protocol):
    """A policy's trained weights may be divided among the processes of a run: FSDP2."""

    def divide(self, mesh: Any) -> None:
        """Over a device mesh of one dimension, before `narrow` and `keep`. Raises ValueError if it cannot be done.

        From then on all processes ask for the same passes through the network, in the same order; of how many samples
        is each one's affair. `parameters` and `state` speak of whole weights, by the names they had.
        """
        ...


class PolicySpec(ABC):
    """The settings of a policy: what a recipe names under `policy`."""

    videos: ClassVar[bool] = False  # it draws videos, (b, f, 3, h, w), and not pictures

    @abstractmethod
    def load(self, device: torch.device) -> Policy:
        """Read the weights. Raises ValueError, naming file and key, for weights that do not fit."""


@dataclass(frozen=True)
class Footprint:
    """What a policy costs, as far as it is known before its weights are read."""

    parameters: int  # of the network that draws
    trainable: int  # of them, or of the adapters; the copies of the weights are of these
    tokens: int  # decisions of one sample
    vocabulary: int  # choices of each
    width: int  # of a hidden state
    layers: int
    bytes_per_number: int = 4  # of the arithmetic: caches and activations
    frozen: int = 0  # parameters of what is held beside it: tokenizer, text encoder
    recompute: bool = False  # activations are computed again for the backward pass, not kept


@runtime_checkable
class Sized(Protocol):
    """A policy spec may say what it costs; `burnish check` then estimates memory and time."""

    def footprint(self) -> Footprint: ...


class Transition(ABC):
    """How one step of a denoiser moves at random: a Gaussian, which both draws and scores.

    Everything is a rectified flow, x_t = (1 - t) x_0 + t noise with the velocity noise - x_0; the policy has translated
    whatever its network predicts. Times may differ from row to row.
    """

    @abstractmethod
    def move(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"], s: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        """Mean and standard deviation of the state at s < t, given the one at t."""

    @abstractmethod
    def logp(
        self, after: Float[Tensor, "n *d"], mean: Float[Tensor, "n *d"], std: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Log-probability of a state under that Gaussian, nats a dimension."""


Solver = Literal["euler", "dpm2", "unipc"]
# own: from the law that is scored. wide: `spread` times as wide as it is scored, as BranchGRPO's released code has it.
# near: (z + spread z') / sqrt(1 + spread^2), z common to the siblings: each from the law, and alike if spread is small.
Siblings = Literal["own", "wide", "near"]


@dataclass(frozen=True)
class LatentPlan(Plan):
    """How a rollout of latents is drawn.

    Samples of a group may share a beginning: one starting noise (`shared_start`), a tree that divides at some steps
    (`forks`), or a deterministic path from which `group / len(branches)` samples branch off at each step of `branches`.
    Or `candidates` of them are one way: at every step that is learned from each draws a state of its own, and all go on
    from that of one of them, chosen at random. What is shared is computed once.
    """

    steps: int = 10  # network evaluations from noise to picture
    stochastic: tuple[int, ...] = ()  # steps drawn at random, counted from 0, the noisiest; the others follow the ODE
    trained: tuple[int, ...] | None = None  # of these, the ones to learn from; None: all
    trained_each: int | None = None  # of those, how many each sample has, of its own; None: all
    transition: Transition | None = None  # of the steps drawn at random
    transitions: tuple[Transition, ...] = ()  # one for each of `stochastic`, where they differ; (): `transition` of all
    solver: Solver = "euler"  # of the others: first order, DPM-Solver++(2M), or UniPC (models/solvers.py)
    finish: Solver | None = None  # of those after the last step drawn at random; None: `solver`
    shared_start: bool = False  # samples of a group start from one noise
    forks: tuple[tuple[int, int], ...] = ()  # (step, children): before that step every branch of a group divides
    siblings: Siblings = "own"  # how the noise of branches that divide is drawn
    spread: float = 4.0  # of siblings "wide" and "near"
    branches: tuple[int, ...] = ()  # steps drawn at random by samples of their own; excludes forks and stochastic
    stored: Literal["fp32", "bf16"] = "fp32"  # states are rounded to this before anything is computed from them
    waypoint: int | None = None  # the state that this step begins with is kept in the rollout; None: no state is
    # Ways through states, 0 (noise) to `steps` (picture); others are skipped. (): one, through all. Several only of
    # branches: samples that leave by one are finished on each of its ways, and are samples of the group each time
    ways: tuple[tuple[int, ...], ...] = ()
    candidates: int = 1  # samples that draw from one state at each step learned from; excludes forks and branches
    grid: tuple[int, ...] = ()  # steps begin at these of the times of grid[-1] even steps; (): at all of `steps`

    def __post_init__(self) -> None:
        super().__post_init__()
        forked = [step for step, _ in self.forks]
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name, steps in (("stochastic", self.stochastic), ("branches", self.branches), ("forks", forked)):
            if sorted(set(steps)) != list(steps) or any(not 0 <= step < self.steps for step in steps):
                raise ValueError(f"{name}: each step once, in order, from 0 to {self.steps - 1}; got {list(steps)}")
        if self.waypoint is not None and not 0 <= self.waypoint < self.steps:
            raise ValueError(f"waypoint must be a step from 0 to {self.steps - 1}, got {self.waypoint}")
        if self.ways:
            self._check_ways()
        if any(children < 1 for _, children in self.forks):
            raise ValueError(f"forks: a branch needs one child at least, got {self.forks}")
        if not set(forked) <= set(self.stochastic):
            raise ValueError(f"forks at {forked} must be drawn at random (stochastic: {self.stochastic})")
        if (self.stochastic or self.branches) and self.transition is None:
            raise ValueError("steps drawn at random need a transition")
        if self.transitions and len(self.transitions) != len(self.stochastic):
            raise ValueError(
                f"transitions: {len(self.transitions)} for {len(self.stochastic)} steps drawn at random; one for each, "
                "or none where all are alike"
            )
        if self.trained is not None and not set(self.trained) <= set(self.stochastic):
            raise ValueError(
                f"trained steps {self.trained} are not all drawn at random (stochastic: {self.stochastic})"
            )
        if self.trained_each is not None:
            if self.branches or self.forks or self.candidates > 1:
                raise ValueError("trained_each: samples that share steps are learned from by the same ones")
            if not 1 <= self.trained_each <= len(self.learned):
                raise ValueError(f"trained_each must be from 1 to {len(self.learned)}, got {self.trained_each}")
        if self.branches and (self.forks or self.stochastic):
            raise ValueError("branches leave a deterministic path: no forks and no other stochastic steps beside them")
        if self.branches and self.group % len(self.branches):
            raise ValueError(f"group: {self.group} samples cannot leave {len(self.branches)} branches in equal numbers")
        leaves = math.prod(children for _, children in self.forks)
        if self.forks and self.group % leaves:
            raise ValueError(f"group: {self.group} is not a multiple of the {leaves} leaves of a tree")
        if self.candidates < 1 or self.group % self.candidates:
            raise ValueError(f"group: {self.group} is not a multiple of {self.candidates} candidates, at least 1")
        if self.candidates > 1 and (self.forks or self.branches or not self.learned):
            raise ValueError(
                "candidates: drawn at steps that are learned from, with no forks and no branches beside them"
            )
        if self.grid and not (
            len(self.grid) == self.steps + 1 and self.grid[0] == 0 and sorted(set(self.grid)) == list(self.grid)
        ):
            raise ValueError(f"grid: {self.steps + 1} rising places, of which the first is 0; got {list(self.grid)}")
        if any(isinstance(transition, Stirred) for transition in self.transitions):
            raise ValueError("transitions: noise that follows a step (score_action) is that of one `transition` of all")

    def _check_ways(self) -> None:
        """A step drawn at random has the times of the whole grid: objectives need not ask which were skipped."""
        count, branches = len(self.ways), len(self.branches)
        if count > 1 and (not branches or count % branches):
            raise ValueError(f"ways: {count} for {branches} branches; one, or equally many for each branch")
        if self.group % count:
            raise ValueError(f"group: {self.group} samples cannot take {count} ways in equal numbers")
        for number, way in enumerate(self.ways):
            random = self.branches[number * branches // count :][:1] if count > 1 else self.branches or self.stochastic
            whole = max(random, default=-1) + 2
            if way[:whole] != tuple(range(whole)) or way[-1] != self.steps or sorted(set(way)) != [*way]:
                raise ValueError(
                    f"ways: states in order, from 0 to {self.steps}, none skipped before {whole - 1}, where the last "
                    f"step drawn at random ends; got {list(way)}"
                )
            if self.waypoint is not None and self.waypoint not in way:
                raise ValueError(f"waypoint: step {self.waypoint} is not on the way {list(way)}")

    def move(
        self,
        x: Float[Tensor, "n *d"],
        velocity: Float[Tensor, "n *d"],
        t: Float[Tensor, " n"],
        s: Float[Tensor, " n"],
        step: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, " n"]]:
        """Transition.move of the transition that each row's step has."""
        assert self.transition is not None
        if not self.transitions:
            return self.transition.move(x, velocity, t, s)
        mean, std = torch.empty_like(x), x.new_empty(len(x))
        for number, transition in zip(self.stochastic, self.transitions, strict=True):
            at = (step == number).nonzero().squeeze(1).to(x.device)
            if len(at):
                some = transition.move(x[at], velocity[at], t[at.to(t.device)], s[at.to(s.device)])
                mean, std = mean.index_copy(0, at, some[0]), std.index_copy(0, at, some[1].to(std))
        return mean, std

    def times(self, of: Callable[[int], Float[Tensor, " n"]]) -> Float[Tensor, " s"]:
        """Where steps begin and end, of a model whose times `of` so many even steps are known (Denoiser.times)."""
        return of(self.grid[-1])[list(self.grid)] if self.grid else of(self.steps)

    @property
    def chained(self) -> bool:
        """Whether a sample goes on from the very state that it drew and recorded."""
        return self.candidates == 1 and not isinstance(self.transition, Stirred)

    @property
    def learned(self) -> tuple[int, ...]:
        """Steps whose decisions are recorded, of all samples or of some."""
        return self.branches or (self.stochastic if self.trained is None else self.trained)

    @property
    def compared(self) -> int:
        if self.candidates > 1:
            return self.candidates
        return self.group // max(1, len(self.branches), len(self.ways))

    @property
    def together(self) -> int:
        return self.group if self.forks or self.branches or self.shared_start else self.candidates

    @property
    def shares_learned(self) -> bool:
        return bool(self.forks or self.branches)


@runtime_checkable
class Louder(Protocol):
    """A transition may be made noisier; what else is true of it stays so."""

    def louder(self, factor: float) -> Transition:
        """The same, with `factor` times the noise."""
        ...


@runtime_checkable
class Stirred(Protocol):
    """A transition may be a decision and noise after it. The decision is recorded and scored, the noise is nobody's."""

    def stir(self, t: Float[Tensor, " n"], s: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Standard deviation of the noise that is added to what `move` and `logp` are about. Not of the weights."""
        ...


class Denoiser(Policy):
    """A policy that turns noise into pictures step by step, along a velocity field."""

    plans: ClassVar[type[Plan]] = LatentPlan

    @abstractmethod
    def velocity(
        self, x: Float[Tensor, "n *d"], t: Float[Tensor, " n"], prompts: Sequence[Prompt], guidance: float = 1.0
    ) -> Float[Tensor, "n *d"]:
        """noise - clean picture, as expected at x and t; guided by u + w (c - u)."""

    @abstractmethod
    def score(self, rollout: Rollout) -> Steps:
        """What the weights in use now make of the recorded steps."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "n *d"]) -> Float[Tensor, "n *f c h w"]:
        """Pictures in [0, 1], with their gradient."""

    @abstractmethod
    def latents(self, pictures: Sequence[Float[Tensor, "*f 3 h w"]]) -> Float[Tensor, "n *d"]:
        """Clean latents of pictures or videos in [0, 1] of any size, without gradient: what `decode` undoes."""

    @abstractmethod
    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        """Where steps begin and end, falling to 0. Float64."""

    def finished(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *d"]:
        """What is decoded, from states and velocities where the last step begins: x - t v, if no noise is left in it.

        Methods of the forward process learn from x - t v all the same (Rollout.final): from one round to the next they
        would put more of that noise into pictures. A last step drawn at random ends where its transition says.
        """
        return x - t.to(x).view(-1, *[1] * (x.dim() - 1)) * velocity


@dataclass(frozen=True)
class Steps:
    """Recorded steps under some weights."""

    logp: Float[Tensor, "b k"]  # nats a dimension
    mean: Float[Tensor, "b k *d"]
    std: Float[Tensor, "b k"]
    velocity: Float[Tensor, "b k *d"]  # guided


class Planner(ABC):
    """Writes the plan of every step."""

    @abstractmethod
    def at(self, step: int) -> Plan:
        """How the samples of a training step are drawn."""

    @abstractmethod
    def evaluation(self) -> Plan:
        """How a picture is drawn that is only looked at: one of each prompt, as one would use the model."""


class Scorer(ABC):
    """A loaded reward."""

    @abstractmethod
    def __call__(self, images: Float[Tensor, "b *f 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        """Score pictures in [0, 1], or videos if the reward says that it can.

        A score that cannot be computed is invalid, with a note; it is never 0.
        """


class Reward(ABC):
    """The settings of a reward: what a recipe names under `reward`."""

    differentiable: ClassVar[bool] = False  # the scorer passes gradients from its total to the pictures
    videos: ClassVar[bool] = False  # the scorer reads videos, (b, f, 3, h, w), as well as pictures
    compares: ClassVar[bool] = False  # pictures of one prompt with one another: the scorer has to see a group whole

    @abstractmethod
    def load(self, device: torch.device) -> Scorer: ...


class Memory(ABC):
    """A component at work, with what it carries from one step to the next: past rewards, the weights of a critic."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All of it, in tensors, numbers, strings, and lists and dictionaries of these. Saved with every checkpoint."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`: what follows is as if there had been no break, bit for bit."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """What it has to say about the last step."""


@runtime_checkable
class Remembers(Protocol):
    """An advantage or an objective may remember. Its settings then begin what does, once for a run.

    What begins is of the same kind, and is called in their place, also inside a component that wraps them. Settings
    that are called themselves answer as in the first step of a run.
    """

    def begin(self, policy: Policy | None) -> Memory: ...


@runtime_checkable
class Looks(Remembers, Protocol):
    """One that remembers may look at what the run's reward makes of states on the way. It begins with the scorer."""

    def looking(self, policy: Policy, scorer: Scorer) -> Memory: ...


Large = Literal["media", "states", "final", "waypoint"]  # states: before, after and mean of every step


class Advantage(ABC):
    """Turns scores into weights on samples, or on their decisions."""

    reads_reference: ClassVar[bool] = False  # uses rollout.reference, so the reference copy must be kept
    # What it looks at besides scores and numbers of a decision. Where several processes draw, the rest stays there
    reads: ClassVar[tuple[Large, ...]] = ()

    @abstractmethod
    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, " b"] | Float[Tensor, "b k"]:
        """Advantage of every sample (b) or decision (b, k); 0 where the score is invalid."""


P = TypeVar("P", bound=Policy)


class Objective(ABC, Generic[P]):
    """A loss whose gradient improves the policy. `Objective[P]` says in its type which policies it accepts."""

    @abstractmethod
    def needs(self) -> Needs: ...

    @abstractmethod
    def loss(self, batch: Batch, policy: P, reward: Scorer) -> Loss:
        """Sum over the kept samples of the batch, with the count it is to be divided by."""


@runtime_checkable
class Watches(Protocol):
    """An objective may look at the whole of a step, of which its loss sees one part after another."""

    def before(self, batch: Batch) -> None:
        """Called before the first update of a step, with all samples that count."""

    def after(self, means: Mapping[str, float]) -> Sequence[str]:
        """Called after the last, with the mean of every metric. The copies named are set to the live weights."""
        ...


class Source(ABC):
    """Where the samples of a step come from. A function of (seed, step): it has no position to lose."""

    @abstractmethod
    def draw(
        self,
        policy: Policy,
        step: int,
        seed: int,
        attempt: int = 0,
        scorer: Scorer | None = None,
        places: Sequence[int] | None = None,
        drawn: Callable[[Rollout], None] | None = None,
    ) -> Rollout:
        """The rollout of a step. `attempt` above 0 asks for other samples of the same step (refilling).

        scorer      the run's reward, for sources that look before they draw. Its scores of the rollout are not theirs
        places      which of `prompts_at` to draw, rising; None: all. Numbers, groups and noise are those of the whole
        drawn       is told of every part as soon as it is there, in their order; groups may not be numbered yet
        """

    @abstractmethod
    def prompts_at(self, step: int, seed: int) -> Sequence[Prompt]:
        """The distinct prompts of a step, without drawing."""

    def asks(self) -> Sequence[Prompt]:
        """All that it ever asks about, so that a run can tell whether they were edited; () if it cannot be known."""
        return ()

    @abstractmethod
    def plan_at(self, step: int) -> Plan:
        """The plan of a step, without drawing."""

    @abstractmethod
    def evaluation(self) -> Plan:
        """How suites draw, and whoever else only looks."""


@dataclass(frozen=True)
class Evaluation:
    """One pass of a suite. `values` holds one row a sample, so that two passes can be compared in pairs."""

    metrics: Mapping[str, float]  # name -> value over all samples
    values: Mapping[str, Float[Tensor, " n"]]  # name -> value of each sample; NaN where it could not be computed
    prompts: tuple[Prompt, ...]  # of each sample
    media: Float[Tensor, "n *f c h w"]


class Suite(ABC):
    """A fixed set of questions asked of a policy: same prompts, same noise, every time.

    The policy has the weights that are to be looked at, which may be an average: `using` is not for suites.
    """

    videos: ClassVar[bool] = False  # it looks at videos as well as pictures

    @abstractmethod
    def run(self, policy: Policy, plan: Plan, reward: Scorer | None, seed: int) -> Evaluation:
        """Draw by `plan`, which draws one sample of each prompt, and look."""
