"""Suites over a policy, and whether one pass is better than another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from burnish.core import Evaluation, Policy, Scorer, Suite
from burnish.formulas.statistics import Interval, lower_is_better, paired_difference
from burnish.types import Plan

NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)


@dataclass(frozen=True)
class Pass:
    """What is left of an evaluation once its pictures are put away."""

    metrics: Mapping[str, float]
    values: Mapping[str, Float[np.ndarray, " n"]]  # one a sample; NaN where it could not be computed
    prompts: tuple[str, ...]  # id of the prompt of each sample


@dataclass(frozen=True)
class Comparison:
    """One metric of one suite, before and after, over the same prompts and noise."""

    base: float
    tuned: float
    difference: Interval  # its interval is NaN for a metric that is not a mean over samples
    lower_is_better: bool = False

    def facts(self) -> dict[str, Any]:
        """As summary.json has it."""
        return {
            "base": _known(self.base),
            "tuned": _known(self.tuned),
            "difference": _known(self.tuned - self.base),
            "ci_low": _known(self.difference.low),
            "ci_high": _known(self.difference.high),
            "verdict": self.difference.verdict(self.lower_is_better),
        }


def evaluate(
    suites: Mapping[str, Suite], policy: Policy, plan: Plan, reward: Scorer | None, seed: int
) -> Iterator[tuple[str, Evaluation]]:
    """Every suite in turn, with the weights in use. Raises ValueError if its metrics and values do not fit together."""
    for name, suite in suites.items():
        found = suite.run(policy, plan, reward, seed)
        for what, values in found.values.items():
            if values.shape != (len(found.prompts),):
                shape, count = tuple(values.shape), len(found.prompts)
                raise ValueError(f"suites.{name}: value {what!r} has shape {shape}, but there are {count} samples")
        yield name, found


def passed(found: Evaluation) -> Pass:
    values = {name: value.detach().cpu().double().numpy() for name, value in found.values.items()}
    return Pass(found.metrics, values, tuple(p.id for p in found.prompts))


def read_pass(run: Path, suite: str, step: int) -> Pass | None:
    """A pass that the reporter saved, or None if that step was not evaluated."""
    place = run / "evaluations" / f"{suite}-{step:06d}"
    if not place.with_suffix(".json").exists():
        return None
    facts = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(place.with_suffix(".npz"), allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    metrics = {name: float("nan") if value is None else value for name, value in facts["metrics"].items()}
    return Pass(metrics, values, tuple(p["id"] for p in facts["prompts"]))


def compare(before: Pass, after: Pass) -> dict[str, Comparison]:
    """Each metric that both passes have, in pairs by sample and clustered by prompt.

    Raises ValueError for passes over different prompts: their samples are not pairs.
    """
    if before.prompts != after.prompts:
        raise ValueError("the two evaluations asked different prompts, so their samples cannot be paired")
    number = {name: i for i, name in enumerate(dict.fromkeys(before.prompts))}
    cluster = np.array([number[p] for p in before.prompts])
    found = {}
    for name in before.metrics.keys() & after.metrics.keys():
        paired = name in before.values and name in after.values
        interval = paired_difference(before.values[name], after.values[name], cluster) if paired else NOTHING
        downwards = lower_is_better(name)
        found[name] = Comparison(before.metrics[name], after.metrics[name], interval, downwards)
    return {name: found[name] for name in before.metrics if name in found}


def summary(run: Path, suites: Mapping[str, Suite], steps: int, seconds: float) -> dict[str, Any]:
    """What summary.json holds: first against last pass of each suite (see reporter.py).

    A suite that was given other prompts on the way, which a resumption may do, has nothing to be compared with.
    """
    facts: dict[str, Any] = {"steps": steps, "seconds": seconds, "suites": {}}
    for name in suites:
        first, last = read_pass(run, name, 0), read_pass(run, name, steps)
        if first is not None and last is not None and first.prompts == last.prompts:
            facts["suites"][name] = {metric: c.facts() for metric, c in compare(first, last).items()}
    shown = facts["suites"].get("heldout", {}).get("verified")
    return {**(shown or {}), **facts}


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
