"""Draw, score, weigh, update, report. The whole of a run, from a recipe to its folder."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from burnish.engine import checkpoint
from burnish.engine.checkpoint import Checkpoint
from burnish.engine.evaluate import evaluate, summary
from burnish.engine.interruption import Interruption, Stopped, interruptible
from burnish.engine.layouts.local import Local, Place
from burnish.engine.reporter import Reporter
from burnish.engine.scoring import Scored, scored, settled
from burnish.formulas.groups import group_std
from burnish.formulas.sentinel import statistics
from burnish.recipe.encode import encode
from burnish.recipe.read import as_yaml, data_of
from burnish.recipe.recipe import Recipe
from burnish.types import Batch

# What may differ between a run and its resumption: none of it changes what a step does.
FREE = ("steps", "device", "suites", "evaluate_every", "checkpoint_every", "keep_checkpoints", "samples_every")


def train(recipe: Recipe, folder: Path, resume: bool = False, reporter: Reporter | None = None) -> Path:
    """Run a recipe into `folder`, and return it. reporter.py says what is in it afterwards.

    With `resume` a run goes on from its newest checkpoint, as if it had never stopped (from the start if it has none).
    Ctrl-C and SIGTERM write a checkpoint after the step and raise Stopped, a SystemExit with code 130 or 143.
    Raises ValueError for a folder that holds a run already or another run, for weights, rewards and losses that are
    not what they should be, and for a full disk; the last checkpoint stays whole.
    """
    folder = Path(folder)
    facts = encode(recipe)
    start = _start(folder, facts, resume)
    reporter = reporter or Reporter(folder)
    with interruptible() as interruption, closing(reporter):
        try:
            Run(recipe, folder, reporter, interruption).go(facts, start)
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise ValueError(f"{folder}: {problem.strerror}. Free some space and resume the run") from problem
    return folder


class Run:
    """A run on its way."""

    def __init__(self, recipe: Recipe, folder: Path, reporter: Reporter, interruption: Interruption) -> None:
        self._recipe, self._folder, self._reporter, self._interruption = recipe, folder, reporter, interruption

    def go(self, facts: Mapping[str, Any], start: Checkpoint | None) -> None:
        recipe = self._recipe
        place = Local().build(recipe)
        done = start.step if start else 0
        self._reporter.begin(facts, recipe.seed, place.device, done, recipe.steps)
        if start is not None:
            place.policy.restore(start.weights)
            place.learner.restore(start.optimiser, start.updates)
            place.memories.restore(start.memory)
            torch.set_rng_state(start.random)
            self._reporter.say(f"resumed after step {done}")
        self._began = time.monotonic() - (start.seconds if start else 0.0)
        if start is None:
            self._reporter.step(0, self._evaluate(place, 0))
            self._stop_if_asked(0)
        for step in range(done + 1, recipe.steps + 1):
            self._step(place, step)
        seconds = time.monotonic() - self._began
        self._reporter.summary(summary(self._folder, recipe.suites, recipe.steps, seconds))

    def _step(self, place: Place, step: int) -> None:
        """One turn: draw, score, weigh, update; then report, evaluate and save what is due."""
        recipe, last = self._recipe, self._recipe.steps
        drawn, metrics = self._draw(place, step)
        rollout = place.learner.annotate(drawn.rollout, recipe.advantage.reads_reference)
        batch = Batch(rollout, drawn.scores, place.advantage(drawn.scores, rollout), drawn.keep)
        clock, before = time.perf_counter(), place.policy.evaluations
        metrics |= place.learner.update(place.objective, batch, place.scorer, step)
        metrics |= place.memories.metrics()
        metrics["update/seconds"] = time.perf_counter() - clock
        if evaluations := place.policy.evaluations - before:
            metrics["update/evaluations"] = float(evaluations)
        measures = {n: scored(rollout, scorer, f"measures.{n}", step) for n, scorer in place.measures.items()}
        for name, values in measures.items():
            metrics[f"measure/{name}_mean"] = _mean(values.total, values.valid)
        if step in (1, last) or _due(step, recipe.samples_every):
            self._reporter.samples(step, batch, measures)
        if step == last or _due(step, recipe.evaluate_every):
            metrics |= self._evaluate(place, step)
        self._reporter.step(step, metrics)
        asked = self._interruption.number is not None
        if step == last or asked or _due(step, recipe.checkpoint_every):
            self._save(place, step)
        if step < last:
            self._stop_if_asked(step)

    def _draw(self, place: Place, step: int) -> tuple[Scored, dict[str, float]]:
        """Samples and their scores, from the weights that the objective wants to draw with."""
        recipe, clock = self._recipe, time.perf_counter()
        with place.policy.using(recipe.objective.needs().draw_from):
            rollout = recipe.source.draw(place.policy, step, recipe.seed, scorer=place.scorer)
            seconds = time.perf_counter() - clock
            images = len(rollout) / seconds
            scores = scored(rollout, place.scorer, "reward", step)
            found = settled(
                (rollout, scores), recipe.flat_groups, recipe.source, place.policy, place.scorer, step, recipe.seed
            )
        weight = found.rollout.weight
        watched = statistics(found.rollout.media, found.rollout.group)
        return found, {
            "draw/seconds": seconds,
            "draw/images_per_second": images,
            "draw/entropy": float((found.rollout.entropy * weight).sum() / weight.sum()),
            "draw/samples": float(found.drawn),
            "score/seconds": time.perf_counter() - clock - seconds,
            "score/flat_groups": found.flat_groups,
            **({} if rollout.evaluations is None else {"draw/evaluations": float(rollout.evaluations.sum())}),
            **{f"sentinel/{name}": value for name, value in watched.items()},
            **_score_metrics(found),
        }

    def _evaluate(self, place: Place, step: int) -> dict[str, float]:
        metrics = {}
        recipe = self._recipe
        plan = recipe.source.evaluation()
        for name, found in evaluate(recipe.suites, place.policy, plan, place.scorer, recipe.seed):
            self._reporter.evaluation(step, name, found)
            metrics |= {f"eval/{name}_{what}": value for what, value in found.metrics.items()}
        return metrics

    def _save(self, place: Place, step: int) -> None:
        seconds = time.monotonic() - self._began
        state = Checkpoint(
            step,
            place.learner.updates,
            seconds,
            place.policy.state(),
            place.learner.state(),
            torch.get_rng_state(),
            place.memories.state(),
        )
        checkpoint.write(self._folder, state, self._recipe.keep_checkpoints)

    def _stop_if_asked(self, step: int) -> None:
        number = self._interruption.number
        if number is None:
            return
        kept = f"with a checkpoint in {self._folder}" if step else "before anything was learned"
        sentence = f"stopped after step {step} of {self._recipe.steps}, {kept}; resume the run to go on from there"
        self._reporter.say(sentence)
        raise Stopped(number, sentence)


def _start(folder: Path, facts: Mapping[str, Any], resume: bool) -> Checkpoint | None:
    """Where to go on from. Raises ValueError rather than write over a run, or mix two."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        if resume and not folder.is_dir():
            raise ValueError(f"{folder}: there is no run to resume")
        return None
    if not resume:
        raise ValueError(f"{folder} holds a run already; resume it, or choose another folder")
    earlier, now = (data_of(text) for text in (recipe.read_text(encoding="utf-8"), as_yaml(facts)))
    for key, value in now.items():
        if key not in FREE and earlier.get(key) != value:
            was = earlier.get(key)
            raise ValueError(
                f"{folder} was started with {key}: {was!r}, and cannot go on with {value!r}; start a new run"
            )
    newest = checkpoint.latest(folder)
    return checkpoint.read(newest) if newest else None


def _score_metrics(found: Scored) -> dict[str, float]:
    scores, valid = found.scores, found.scores.valid
    total = scores.total.double()[valid]
    within = group_std(scores.total, found.rollout.group, valid)[valid]
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
