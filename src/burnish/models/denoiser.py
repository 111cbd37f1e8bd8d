"""Drawing and scoring for every denoiser: one loop over steps, whatever network the velocity comes from.

A file in policies/ supplies a `Network`: how prompts are read, what the velocity is, how latents become pictures. All
else (steps, trees, what is recorded, copies of the weights) is here, once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.core import Denoiser, LatentPlan, Steps, Stirred
from burnish.formulas import gaussian, sharing
from burnish.formulas.noise import Noise
from burnish.laps import lap
from burnish.models.solvers import Solver, chosen
from burnish.models.weights import Copies, KeepsCopies
from burnish.prompts import distinct_prompts
from burnish.types import Latents, Plan, Prompt, Rollout


class Network(ABC):
    """A model as a velocity field: what is foreign about it ends here."""

    device: torch.device
    shape: tuple[int, ...]  # of a latent

    @abstractmethod
    def conditions(self, prompts: Sequence[Prompt]) -> Any:
        """What the network reads of prompts, a row each: a Tensor, or a mapping or tuple of them."""

    @abstractmethod
    def velocity(
        self, x: Float[Tensor, "n *d"], t: Float[Tensor, " n"], conditions: Any, guidance: float
    ) -> Float[Tensor, "n *d"]:
        """Guided velocity, float32."""

    @abstractmethod
    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        """Where steps begin and end, falling to 0. Float64, on the CPU."""

    @abstractmethod
    def start(self, noise: Float[Tensor, "n *d"], steps: int) -> Float[Tensor, "n *d"]:
        """The state that a draw starts from, given standard normal noise."""

    def finished(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *d"]:
        """As Denoiser.finished."""
        return gaussian.clean(x, velocity, t)

    @abstractmethod
    def decode(self, latents: Float[Tensor, "n *d"]) -> Float[Tensor, "n *f c h w"]:
        """Pictures in [0, 1], with their gradient."""

    def latents(self, pictures: Sequence[Float[Tensor, "*f 3 h w"]]) -> Float[Tensor, "n *d"]:
        """As Denoiser.latents. Raises ValueError for media that cannot become such latents."""
        raise ValueError(f"pictures: {type(self).__name__} has no encoder that would make latents of them")

    @abstractmethod
    def trained(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        """Trainable weights."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """The model in its released format."""

    def read_ahead(self, prompts: Sequence[Prompt]) -> None:
        """As Policy.read_ahead."""
        return

    def adapter_off(self) -> Callable[[], AbstractContextManager[None]] | None:
        """A block in which the adapter is switched off, if there is one."""
        return None

    def divide(self, mesh: Any) -> None:
        """Divide the trained module's weights among processes. Raises ValueError where that cannot be done."""
        raise ValueError("shard: the weights of this policy cannot be divided")


class DenoisingPolicy(KeepsCopies, Denoiser):
    """A network that is drawn from, scored and trained."""

    def __init__(self, network: Network, decode_rows: int = 64) -> None:
        self.network, self._decode_rows = network, decode_rows
        self.copies = Copies(network.trained(), network.adapter_off())

    # --- drawing -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], plan: Plan, noise: Noise) -> Rollout:
        """Raises ValueError for a number of samples that is not a multiple of what the plan draws together."""
        assert isinstance(plan, LatentPlan), f"{type(plan).__name__} is no plan for a denoiser"
        b, device = len(prompts), self.network.device
        if b % plan.together:
            raise ValueError(f"{b} samples cannot be drawn by a plan that draws {plan.together} together")
        course = _course(plan, noise)
        leader = course.leader
        rows, distinct = distinct_prompts(prompts)
        conditions = self.network.conditions(distinct)
        times = plan.times(self.network.times)
        x = _stored(self._start(plan, noise, leader[:, 0]), plan)
        record, waypoint = _Record(), None
        shown = x  # what is decoded
        solver = Solver(x, int(course.solver.max()))
        for i in range(plan.steps):
            waypoint = x if i == plan.waypoint else waypoint
            movers = course.seen[:, i].nonzero().squeeze(1)
            if len(movers) == 0:
                continue
            t, s, at = times[i], times[course.end[movers, i]], movers.to(device)
            here = x[at]
            v = self._shared(x, leader[movers, i], t, rows, conditions, plan.guidance)
            after, ground, slope = solver.step(movers, here, v, t, s, course.solver[movers, i])
            random = course.drawn[movers, i].nonzero().squeeze(1)
            if len(random):
                of = random.to(device)
                solver.drew(movers[random])
                after[of] = self._drawn(plan, noise, course, movers[random], i, (here[of], v[of]), times, record)
            x = x.index_copy(0, at, _stored(after, plan))
            if (s == 0).any():
                ended = (s == 0) & ~course.drawn[movers, i]
                of = ended.nonzero().squeeze(1).to(device)
                left = _stored(self.network.finished(ground[of], slope[of], t.expand(len(of))), plan)
                shown = shown.index_copy(0, at, x[at]).index_copy(0, at[of], left)
            if plan.candidates > 1:  # all go on from the one that was chosen
                x = x[leader[:, i + 1].to(device)]
        decisions = record.decisions(times, leader, course.author, noise.ids, plan)
        group = torch.arange(b).div(plan.compared, rounding_mode="floor")
        return Rollout(
            tuple(prompts),
            group,
            decisions,
            self._pictures(shown, leader[:, -1]),
            plan,
            noise.ids,
            final=x,
            waypoint=waypoint,
            evaluations=sharing.evaluations(leader, course.seen),
        )

    def _drawn(
        self,
        plan: LatentPlan,
        noise: Noise,
        course: _Course,
        movers: Int[Tensor, " n"],
        i: int,
        here: tuple[Float[Tensor, "n *d"], Float[Tensor, "n *d"]],
        times: Float[Tensor, " s"],
        record: _Record,
    ) -> Float[Tensor, "n *d"]:
        """States that are drawn in step i, given those before it and velocities; what is learned from is recorded."""
        assert plan.transition is not None
        x, v = here
        begin = torch.full((len(x),), float(times[i]), dtype=torch.float64, device=x.device)
        end, number = torch.full_like(begin, float(times[i + 1])), torch.full_like(begin, i, dtype=torch.long)
        mean, std = plan.move(x, v, begin, end, number)
        author = course.author[movers, i]
        z = self._noise(noise, author, f"step {i}")
        if plan.siblings != "own" and i in dict(plan.forks):
            z = self._kin(plan, noise, course.leader[movers, i], i, z)
        moved = _stored(mean + gaussian.rows(std, mean) * z, plan)
        told = course.recorded[movers, i]
        if told.any():
            record.add(movers, i, told, (x, moved, mean, plan.transition.logp(moved, mean, std), std))
        if isinstance(plan.transition, Stirred):
            return moved + gaussian.rows(plan.transition.stir(begin, end), moved) * self._noise(
                noise, author, f"stir {i}"
            )
        return moved

    def _start(self, plan: LatentPlan, noise: Noise, leader: Int[Tensor, " b"]) -> Tensor:
        """Starting states. Samples that share theirs take the noise of their leader."""
        return self.network.start(self._noise(noise, leader, "start"), plan.grid[-1] if plan.grid else plan.steps)

    def _noise(self, noise: Noise, leader: Int[Tensor, " b"], what: str) -> Tensor:
        leaders, inverse = leader.unique(return_inverse=True)
        return noise.of(leaders).normal(self.network.shape, what)[inverse].to(self.network.device)

    def _kin(self, plan: LatentPlan, noise: Noise, parent: Int[Tensor, " n"], i: int, z: Tensor) -> Tensor:
        """Noise of samples that divide in step i, from noise of their own (core.Siblings)."""
        if plan.siblings == "wide":
            return plan.spread * z
        return (self._noise(noise, parent, f"siblings {i}") + plan.spread * z) / math.sqrt(1 + plan.spread**2)

    def _shared(
        self, x: Tensor, leader: Int[Tensor, " n"], t: Tensor, rows: Tensor, conditions: Any, guidance: float
    ) -> Tensor:
        """Velocities of the samples with these leaders, computed once for those that share their state."""
        leaders, inverse = leader.unique(return_inverse=True)
        at = torch.full((len(leaders),), float(t), dtype=torch.float32, device=x.device)
        return self._velocity(x[leaders], at, conditions, rows[leaders], guidance)[inverse]

    def _velocity(self, x: Tensor, t: Tensor, conditions: Any, rows: Tensor, guidance: float) -> Tensor:
        """Velocities where `conditions` are those of the distinct prompts, and `rows` says whose prompt is which."""
        self.evaluations += len(x)
        return self.network.velocity(x, t, taken(conditions, rows), guidance)

    def _pictures(self, latents: Tensor, leader: Int[Tensor, " b"]) -> Tensor:
        leaders, inverse = leader.unique(return_inverse=True)
        parts = latents[leaders].split(self._decode_rows)
        with lap("decode"):
            return torch.cat([self.network.decode(some).clamp(0, 1) for some in parts])[inverse]

    # --- scoring -----------------------------------------------------------------------------------------------------

    def score(self, rollout: Rollout) -> Steps:
        assert rollout.decisions, "a deterministic draw has no steps to score"
        plan, steps = rollout.plan, rollout.decisions[0]
        assert isinstance(plan, LatentPlan) and isinstance(steps, Latents) and plan.transition is not None
        b, k = steps.logp.shape
        _, where, inverse = _unique(steps.origin.flatten())
        x, time = steps.before.flatten(0, 1), steps.time.flatten(0, 1)
        rows, distinct = distinct_prompts(rollout.prompts)
        sample = torch.div(where, k, rounding_mode="floor")
        conditions, t = self.network.conditions(distinct), time[where, 0].float()
        v = self._velocity(x[where], t, conditions, rows[sample.cpu()], plan.guidance)[inverse]
        mean, std = plan.move(x, v, time[:, 0], time[:, 1], steps.step.flatten())
        logp = plan.transition.logp(steps.after.flatten(0, 1), mean, std)
        return Steps(logp.view(b, k), mean.view_as(steps.mean), std.view(b, k), v.view_as(steps.mean))

    def logp(self, rollout: Rollout) -> Float[Tensor, "b k"]:
        return self.score(rollout).logp if rollout.decisions else rollout.logp

    @torch.no_grad()
    def read_ahead(self, prompts: Sequence[Prompt]) -> None:
        self.network.read_ahead(distinct_prompts(prompts)[1])

    def velocity(
        self, x: Float[Tensor, "n *d"], t: Float[Tensor, " n"], prompts: Sequence[Prompt], guidance: float = 1.0
    ) -> Float[Tensor, "n *d"]:
        rows, distinct = distinct_prompts(prompts)
        return self._velocity(x, t, self.network.conditions(distinct), rows, guidance)

    def decode(self, latents: Float[Tensor, "n *d"]) -> Float[Tensor, "n *f c h w"]:
        return self.network.decode(latents)

    @torch.no_grad()
    def latents(self, pictures: Sequence[Float[Tensor, "*f 3 h w"]]) -> Float[Tensor, "n *d"]:
        return self.network.latents(pictures)

    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        return self.network.times(steps)

    def finished(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *d"]:
        return self.network.finished(x, velocity, t)

    # --- weights -----------------------------------------------------------------------------------------------------

    def divide(self, mesh: Any) -> None:
        self.network.divide(mesh)
        self.copies = Copies(self.network.trained(), self.network.adapter_off())

    def export(self, folder: Path) -> None:
        self.network.export(folder)


def taken(conditions: Any, rows: Int[Tensor, " n"]) -> Any:
    """Rows of whatever `Network.conditions` returned."""
    if isinstance(conditions, Tensor):
        return conditions[rows.to(conditions.device)]
    if isinstance(conditions, Mapping):
        return {name: taken(value, rows) for name, value in conditions.items()}
    if isinstance(conditions, (tuple, list)):
        return tuple(taken(value, rows) for value in conditions)
    return conditions


@dataclass(frozen=True)
class _Course:
    """What samples do at every step (t of them) and state (s): those that are drawn together lie after one another."""

    leader: Int[Tensor, "b s"]  # a sample with the same state
    seen: Bool[Tensor, "b s"]  # it goes through the state
    end: Int[Tensor, "b t"]  # the state that a step from here ends in
    drawn: Bool[Tensor, "b t"]  # the step is drawn at random
    author: Int[Tensor, "b t"]  # the sample that draws it
    recorded: Bool[Tensor, "b t"]  # and learned from
    solver: Int[Tensor, "b t"]  # if it is not: by which of SOLVERS


def _course(plan: LatentPlan, noise: Noise) -> _Course:
    b = len(noise.ids)
    leader, drawn = _lanes(plan, noise) if plan.candidates > 1 else _shares(plan, b)
    seen = sharing.visited(plan.together, plan.steps, plan.ways).repeat(b // plan.together, 1)
    recorded = torch.zeros_like(drawn)
    recorded[:, list(plan.learned)] = drawn[:, list(plan.learned)]
    if plan.trained_each is not None:
        chance = torch.where(recorded, noise.uniform(plan.steps, "trained"), torch.inf)
        recorded &= chance.argsort(1).argsort(1) < plan.trained_each
    author = sharing.authors(leader, plan.candidates, plan.learned)
    solver = chosen(plan.solver, drawn, plan.finish)
    return _Course(leader, seen, sharing.ends(seen), drawn, author, recorded, solver)


def _shares(plan: LatentPlan, b: int) -> tuple[Tensor, Tensor]:
    """(leader, drawn) of samples that share a beginning, or nothing."""
    if plan.branches:
        leader, drawn = sharing.star(plan.group, plan.steps, plan.branches, plan.ways)
    else:
        leader, drawn = sharing.tree(plan.together, plan.steps, plan.stochastic, plan.forks, plan.shared_start)
    count = b // plan.together
    offset = torch.arange(b).div(plan.together, rounding_mode="floor").unsqueeze(1) * plan.together
    return leader.repeat(count, 1) + offset, drawn.repeat(count, 1)


def _lanes(plan: LatentPlan, noise: Noise) -> tuple[Tensor, Tensor]:
    """(leader, drawn) where candidates go on from one of them, chosen by a stream of the first."""
    b, c = len(noise.ids), plan.candidates
    keyed = noise.of(torch.arange(0, b, c))
    places = [keyed.uniform(1, f"choice {i}").squeeze(1) for i in plan.learned]
    chosen = (torch.stack(places, 1) * c).long().clamp(max=c - 1)
    leader = sharing.lanes(c, plan.steps, plan.learned, chosen)
    if plan.shared_start:
        leader[:, : min(plan.stochastic) + 1] = (torch.arange(b) // plan.group * plan.group).unsqueeze(1)
    drawn = torch.zeros(b, plan.steps, dtype=torch.bool)
    drawn[:, list(plan.stochastic)] = True
    return leader, drawn


@dataclass
class _Record:
    """What was drawn and is learned from, step by step."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    kept: list[tuple[Int[Tensor, " n"], int]] = field(default_factory=list)  # samples, and the step

    def add(self, samples: Int[Tensor, " n"], step: int, told: Bool[Tensor, " n"], of: Sequence[Tensor]) -> None:
        """Those of these samples that are `told`: state before and after, mean, log-probability and deviation."""
        for name, value in zip(("before", "after", "mean", "logp", "std"), of, strict=True):
            self.values.setdefault(name, []).append(value[told.to(value.device)])
        self.kept.append((samples[told], step))

    def decisions(
        self,
        times: Float[Tensor, " s"],
        leader: Int[Tensor, "b s"],
        author: Int[Tensor, "b t"],
        ids: Sequence[int],
        plan: LatentPlan,
    ) -> tuple[Latents, ...]:
        """A row a sample. Each sample has equally many decisions."""
        if not self.kept:
            return ()
        b, device = len(leader), self.values["logp"][0].device
        sample = torch.cat([at for at, _ in self.kept])
        step = torch.cat([torch.full_like(at, i) for at, i in self.kept])
        order = torch.argsort(sample, stable=True)
        k = len(order) // b
        sample, step = sample[order].view(b, k), step[order].view(b, k)
        rows = {name: torch.cat(parts)[order.to(device)].unflatten(0, (b, k)) for name, parts in self.values.items()}
        # Numbers that mean the same in every chunk of a draw: they are made from the noise id of the sample that leads.
        names = torch.tensor(ids)

        def numbered(who: Tensor, state: Tensor) -> Tensor:
            return (names[who] * (plan.steps + 1) + state).to(device)

        node = numbered(author[sample, step], step + 1)
        _, inverse, leaves = node.unique(return_inverse=True, return_counts=True)
        return (
            Latents(
                **rows,
                time=torch.stack([times[step], times[step + 1]], -1).to(device),
                weight=(1 / leaves[inverse]).to(rows["std"]),
                entropy=gaussian.entropy(rows["std"]),
                step=step.to(device),
                origin=numbered(leader[sample, step], step),
                node=node,
            ),
        )


def _stored(x: Float[Tensor, "n *d"], plan: LatentPlan) -> Float[Tensor, "n *d"]:
    """States as they are kept: rounded, before anything is computed from them."""
    return x.to(torch.bfloat16).float() if plan.stored == "bf16" else x.float()


def _unique(values: Int[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct values, the first place of each, and for every entry which of them it is."""
    distinct, inverse = values.unique(return_inverse=True)
    places = torch.arange(len(values), device=values.device)
    first = torch.full((len(distinct),), len(values), device=values.device).scatter_reduce(0, inverse, places, "amin")
    return distinct, first, inverse
