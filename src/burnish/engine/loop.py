"""Draw, score, weigh, update, report. The whole of a run, from a recipe to its folder."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from burnish.engine.ahead import Ahead
from burnish.engine.checkpoint import Checkpoint, Writer
from burnish.engine.claim import claimed
from burnish.engine.evaluate import evaluate, summary
from burnish.engine.grids import MOST_TILES
from burnish.engine.interruption import Interruption, Stopped, interruptible
from burnish.engine.layouts.chosen import layout
from burnish.engine.layouts.local import Local, Place
from burnish.engine.layouts.processes import Processes
from burnish.engine.ranks import Ranks, read_by, rows, together, whole
from burnish.engine.reporter import Nowhere, Reporter
from burnish.engine.resuming import beginning, digest, refuse, reported, steps_of
from burnish.engine.scoring import Scored, scored, settled, something_valid
from burnish.formulas.groups import group_std
from burnish.formulas.sentinel import Glance, glance, joined
from burnish.laps import Laps, lap, recorded
from burnish.recipe.encode import encode
from burnish.recipe.recipe import Recipe
from burnish.types import Batch, Prompt, Rollout, Scores, concatenate, take


def train(recipe: Recipe, folder: Path, resume: bool = False, reporter: Reporter | None = None) -> Path:
    """Run a recipe into `folder`, and return it. reporter.py says what is in it afterwards.

    With `resume` a run goes on from its newest checkpoint, as if it had never stopped (from the start if it has none).
    Ctrl-C and SIGTERM write a checkpoint after the step and raise Stopped, a SystemExit with code 130 or 143; an
    evaluation that was due then is made when the run is resumed. torchrun kills 30 s after it was asked to stop:
    where a step takes longer, --shutdown-timeout SECONDS gives it time.
    Raises ValueError for a folder that holds a run already, or another run, or in which one is at work; for weights,
    rewards and losses that are not what they should be; and for a full disk. The last checkpoint stays whole.

    Started as several processes (torchrun), all of them call this. The first one's folder and reporter are used.
    """
    facts = encode(recipe)
    with layout() as place:
        ranks = place.ranks
        folder = Path(ranks.first(lambda: str(folder)))
        ranks.first(lambda: refuse(folder, facts, resume))
        speaks = (reporter or Reporter(folder)) if ranks.leads else Nowhere()
        with ExitStack() as held, interruptible() as interruption, _room_in(folder), closing(speaks):
            ranks.first(lambda: held.enter_context(claimed(folder)))
            start = ranks.first(lambda: beginning(folder, recipe, facts, resume))
            Run(recipe, folder, speaks, interruption).go(place, facts, start)
    return folder


@contextmanager
def _room_in(folder: Path) -> Iterator[None]:
    """A full disk becomes a sentence, also where the files of a run that met one are closed and meet it again."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(f"{folder}: {problem.strerror}. Free some space and resume the run") from problem


@dataclass(frozen=True)
class Drawn:
    """What this process has drawn of a step."""

    found: Scored
    first: int  # samples of the first draw
    asked: int  # evaluations of the network for what objective and advantage compare with: reference, anchor
    seen: Glance


class Run:
    """A run on its way."""

    def __init__(self, recipe: Recipe, folder: Path, reporter: Reporter | Nowhere, interruption: Interruption) -> None:
        self._recipe, self._folder, self._reporter, self._interruption = recipe, folder, reporter, interruption
        self._still: torch.Tensor | None = None  # torch's random numbers after `_done`; None amid a step's updates
        self._done = 0  # the last step whose updates were all made
        self._untold: dict[str, float] | None = None  # metrics of that step, until it is evaluated and reported
        self._saved = 0  # the step that the newest checkpoint was made after
        self._prompts: Sequence[Prompt] = recipe.source.asks()

    def go(self, layout: Local | Processes, facts: Mapping[str, Any], start: Checkpoint | None) -> None:
        recipe = self._recipe
        place = layout.build(recipe)
        done = self._saved = self._done = start.step if start else 0
        before = steps_of(self._folder) if start and place.ranks.leads else recipe.steps
        self._reporter.begin(facts, recipe.seed, place.device, done, recipe.steps)
        if start is not None:
            place.policy.restore(start.weights)
            place.learner.restore(start.optimiser, start.updates)
            place.memories.restore(start.memory)
            torch.set_rng_state(start.random)
            self._reporter.say(f"resumed after step {done}")
            if before != recipe.steps and recipe.optim.schedule != "constant":
                self._reporter.say(
                    f"the learning rate now falls towards step {recipe.steps}, and did towards {before}: "
                    f"this is not the run of {recipe.steps} steps that never stopped"
                )
        self._still = torch.get_rng_state()
        self._edition = digest(self._prompts)
        self._began = time.monotonic() - (start.seconds if start else 0.0)
        with Writer(self._folder, recipe.keep_checkpoints) as self._checkpoints:
            if start is None:
                self._reporter.step(0, self._evaluate(place, 0))
                self._stop_if_asked(place.ranks, self._asked(place), 0)
            elif start.untold is not None and not place.ranks.first(lambda: reported(self._folder, done)):
                self._tell(place, done, dict(start.untold))
            for step in range(done + 1, recipe.steps + 1):
                try:
                    self._step(place, step)
                except Exception:
                    self._save_finished(place)
                    raise
        seconds = time.monotonic() - self._began
        if place.ranks.leads:
            self._reporter.summary(summary(self._folder, recipe.suites, recipe.steps, seconds))

    def _step(self, place: Place, step: int) -> None:
        with recorded(place.device) as laps:
            asked = self._turn(place, step, laps)
        self._reporter.timeline(step, laps)
        self._checkpoints.look()
        if step < self._recipe.steps or self._untold is not None:
            self._stop_if_asked(place.ranks, asked, step)

    def _turn(self, place: Place, step: int, laps: Laps) -> int | None:
        """One step; then measure, save, evaluate and report what is due. Returns the signal it was asked to stop by.

        Saved is before evaluated, which may take long: a run that ends in between is evaluated when it is resumed.
        """
        recipe, last, ranks = self._recipe, self._recipe.steps, place.ranks
        assert self._still is not None
        torch.set_rng_state(self._still)  # as a resumed run has them: whoever only looks takes none of them
        mine, batch, metrics = self.learn(place, step, laps)
        # weights, moments and memories are those after this step until the next is drawn and scored
        self._done, self._still, self._untold = step, torch.get_rng_state(), metrics
        with lap("measure"):
            measures = {name: self._measured(place, mine, name, step) for name in place.measures}
        for name, values in measures.items():
            metrics[f"measure/{name}_mean"] = _mean(values.total, values.valid)
        if step in (1, last) or _due(step, recipe.samples_every):
            shown = rows(ranks, mine and mine.found.rollout.media[:MOST_TILES])
            self._reporter.samples(step, replace(batch, rollout=replace(batch.rollout, media=shown)), measures)
        asked = self._asked(place)
        if step == last or asked is not None or _due(step, recipe.checkpoint_every):
            self._save(place)
        if asked is None or not self._looks(step):
            self._tell(place, step, metrics)
            asked = self._asked(place)
            if asked is not None and self._saved < step:
                self._save(place)
        return asked

    def _looks(self, step: int) -> bool:
        return step == self._recipe.steps or _due(step, self._recipe.evaluate_every)

    def _tell(self, place: Place, step: int, metrics: dict[str, float]) -> None:
        """Evaluate what is due after a step, and report it."""
        if self._looks(step):
            with lap("evaluate"):
                metrics |= self._evaluate(place, step)
        self._reporter.step(step, metrics)
        self._untold = None

    def learn(self, place: Place, step: int, laps: Laps) -> tuple[Drawn | None, Batch, dict[str, float]]:
        """Draw, score, weigh and update: what this process drew, the batch of all, and the metrics of the step."""
        ranks, began = place.ranks, time.process_time()
        mine, batch, metrics = self._drawn(place, step, laps)
        before, waited = place.policy.evaluations, laps.spent("wait")
        own = None if ranks.count == 1 else _own(batch, mine)  # alone, all are
        with lap("update"):
            metrics |= place.learner.update(place.objective, batch, place.scorer, step, own)
        metrics |= place.memories.metrics()
        metrics["update/seconds"] = laps.spent("recompute") + laps.spent("update")
        metrics["step/cpu_seconds"] = sum(ranks.gathered(time.process_time() - began))  # of all threads
        if ranks.count > 1:
            metrics["update/wait_seconds"] = laps.spent("wait") - waited
        asked = mine.asked if mine else 0
        if evaluations := sum(ranks.gathered(asked + place.policy.evaluations - before)):
            metrics["update/evaluations"] = float(evaluations)
        return mine, batch, metrics

    def _drawn(self, place: Place, step: int, laps: Laps) -> tuple[Drawn | None, Batch, dict[str, float]]:
        """What is drawn here, and the batch of all processes, weighed, with its metrics."""
        recipe, ranks = self._recipe, place.ranks
        if recipe.source.asks() != self._prompts:
            raise ValueError(f"step {step}: the prompts of this run were edited while it was at work; put them back")
        asked = len(recipe.source.prompts_at(step, recipe.seed))
        if ranks.divides and asked % ranks.count:
            raise ValueError(f"shard: {ranks.count} processes cannot share the {asked} prompts of step {step} evenly")
        groups = ranks.share(asked)
        mine = self._draw(place, step, groups) if len(groups) else None
        plan, reads = recipe.source.plan_at(step), read_by(recipe.advantage)
        rollout, scores = whole(ranks, mine and (mine.found.rollout, mine.found.scores), reads, plan)
        something_valid(scores, step)
        keep = rows(ranks, mine and mine.found.keep)
        told = mine and (mine.first, mine.found.flat, mine.found.drawn, mine.found.evaluations, mine.seen)
        first, flat, drawn, evaluations, seen = zip(*(one for one in ranks.gathered(told) if one), strict=True)
        own = {name: laps.spent(name) for name in ("draw", "decode", "score", "scoring", "wait")}
        times = ranks.gathered(own)  # of a stage: as long as the slowest takes
        slowest = {name: max(one[name] for one in times) for name in own}
        self._still = None
        with lap("weigh"):
            advantage = place.advantage(scores, rollout)
        batch = Batch(rollout, scores, advantage, keep, recipe.seed, step)
        groups_in_all = len(rollout.group.unique())
        return (
            mine,
            batch,
            {
                "draw/seconds": slowest["draw"],
                "draw/decode_seconds": slowest["decode"],
                **({"draw/wait_seconds": slowest["wait"]} if ranks.count > 1 else {}),
                "draw/images_per_second": sum(first) / slowest["draw"],
                "draw/entropy": float((rollout.entropy * rollout.weight).sum() / rollout.weight.sum()),
                "draw/samples": float(sum(drawn)),
                "score/seconds": slowest["score"],
                "score/busy_seconds": slowest["scoring"],
                "score/flat_groups": sum(flat) / groups_in_all,
                **({} if rollout.evaluations is None else {"draw/evaluations": sum(evaluations)}),
                **{f"sentinel/{name}": value for name, value in joined(seen).items()},
                **_score_metrics(scores, rollout),
            },
        )

    def _draw(self, place: Place, step: int, groups: range) -> Drawn:
        """Samples and their scores, from the weights that the objective wants to draw with."""
        recipe, policy, scorer = self._recipe, place.policy, place.scorer
        score = partial(scored, scorer=scorer, name="reward", step=step)
        with policy.using(recipe.objective.needs().draw_from), Ahead(score, place.device) as ahead:
            drawn = ahead if recipe.overlap else None
            with lap("draw"):
                rollout = place.source.draw(policy, step, recipe.seed, scorer=scorer, places=groups, drawn=drawn)
            if recipe.overlap and step < recipe.steps:
                with lap("read"):  # while rewards are at work
                    coming = recipe.source.prompts_at(step + 1, recipe.seed)
                    policy.read_ahead([coming[number] for number in place.ranks.share(len(coming))])
            with lap("score"):  # what is left of it
                scores = ahead.scores() if recipe.overlap else score(rollout)
                found = settled((rollout, scores), recipe.flat_groups, place.source, policy, scorer, step, recipe.seed)
                seen = glance(found.rollout.media, found.rollout.group)
        before = policy.evaluations
        with lap("recompute"):
            annotated = place.learner.annotate(found.rollout, recipe.advantage.reads_reference)
        return Drawn(replace(found, rollout=annotated), len(rollout), policy.evaluations - before, seen)

    def _measured(self, place: Place, mine: Drawn | None, name: str, step: int) -> Scores:
        """What a measure says of the whole step."""
        here = mine and scored(mine.found.rollout, place.measures[name], f"measures.{name}", step)
        return concatenate([one for one in place.ranks.gathered(here) if one is not None])

    def _evaluate(self, place: Place, step: int) -> dict[str, float]:
        metrics = {}
        recipe = self._recipe
        plan = recipe.source.evaluation()
        policy, scorer = together(place.ranks, place.policy, place.scorer)
        with place.policy.using(recipe.evaluated):
            for name, found in evaluate(recipe.suites, policy, plan, scorer, recipe.seed):
                self._reporter.evaluation(step, name, found)
                metrics |= {f"eval/{name}_{what}": value for what, value in found.metrics.items()}
        return metrics

    def _save_finished(self, place: Place) -> None:
        """A step has failed, but not in its updates: save the run as it was after the last that was finished."""
        if self._still is None or not self._done or place.ranks.divides or not place.ranks.leads:
            return
        if self._saved < self._done:
            self._save(place)
        self._checkpoints.wait()
        self._reporter.say(f"step {self._done} is saved; resume the run to go on from there")

    def _save(self, place: Place) -> None:
        """A checkpoint of the run as it was after the last step that was finished."""
        if not (place.ranks.leads or place.ranks.divides):
            return
        assert self._still is not None, "weights are on their way from one step to the next"
        self._saved = self._done
        with lap("save"):
            state = Checkpoint(
                self._done,
                place.learner.updates,
                time.monotonic() - self._began,
                place.policy.state(),
                place.learner.state(),
                self._still,
                place.memories.state(),
                self._edition,
                self._untold and dict(self._untold),
            )
            if place.ranks.leads:
                self._checkpoints.write(state)

    def _asked(self, place: Place) -> int | None:
        """The signal that any of the processes was asked to stop by."""
        return next((number for number in place.ranks.gathered(self._interruption.number) if number is not None), None)

    def _stop_if_asked(self, ranks: Ranks, number: int | None, step: int) -> None:
        if number is None:
            return
        self._checkpoints.wait()
        ranks.gathered(None)  # nobody leaves before it is whole
        kept = f"with a checkpoint in {self._folder}" if step else "before anything was learned"
        sentence = f"stopped after step {step} of {self._recipe.steps}, {kept}; resume the run to go on from there"
        self._reporter.say(sentence)
        raise Stopped(number, sentence)


def _own(batch: Batch, mine: Drawn | None) -> Batch:
    """The samples of a batch that this process drew, with what is large."""
    if mine is None:
        return take(batch, torch.empty(0, dtype=torch.long))
    found, row = mine.found, {name: i for i, name in enumerate(batch.rollout.ids)}
    at = torch.tensor([row[name] for name in found.rollout.ids])
    advantage = batch.advantage[at.to(batch.advantage.device)].to(found.rollout.logp.device)
    return replace(batch, rollout=found.rollout, scores=found.scores, advantage=advantage, keep=found.keep)


def _score_metrics(scores: Scores, rollout: Rollout) -> dict[str, float]:
    valid = scores.valid
    total = scores.total.double()[valid]
    within = group_std(scores.total, rollout.group, valid)[valid]
    return {
        "score/total_mean": float(total.mean()),
        "score/total_std": float(total.std(correction=0)),
        "score/group_std": float(within.mean()),
        "score/invalid": float((~valid).sum()),
        **{f"score/{name}_mean": _mean(value, valid) for name, value in scores.parts.items()},
        **{f"score/{name}_std": float(_known(value, valid).std(correction=0)) for name, value in scores.parts.items()},
    }


def _mean(values: torch.Tensor, valid: torch.Tensor) -> float:
    return float(_known(values, valid).mean())


def _known(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The values that could be computed. Mean and deviation of none are NaN."""
    return values.double()[valid & torch.isfinite(values)]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
