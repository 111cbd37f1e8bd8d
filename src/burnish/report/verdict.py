"""The headline: held-out before and after, the difference, its interval, and what may be said of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from burnish.formulas.statistics import lower_is_better, paired_difference
from burnish.report.folder import Evaluated, Run
from burnish.report.html import absent, esc, number, percent, points
from burnish.report.intervals import Change

TONE = {"better": "better", "worse": "worse", "not distinguishable": "even", "unknown": "unknown"}


@dataclass(frozen=True)
class Headline:
    """The one result a run is judged by."""

    suite: str
    metric: str
    first: int  # step
    last: int
    change: Change
    share: bool  # a share of samples: shown as per cent


def headline(run: Run) -> Headline | None:
    """The metric `verified` of the suite `heldout`, as in summary.json; or else the first that has values by sample.

    None before anything was evaluated.
    """
    suites = sorted(run.evaluations, key=lambda suite: suite != "heldout")
    for suite in suites:
        first, last = run.evaluations[suite][0], run.evaluations[suite][-1]
        by_sample = [m for m in last.metrics if m in last.values]
        metric = "verified" if "verified" in by_sample else next(iter(by_sample or last.metrics), None)
        if metric is not None:
            change = measured(first, last, metric)
            return Headline(suite, metric, first.step, last.step, change, is_share(first, last, metric))
    return None


def measured(first: Evaluated, last: Evaluated, metric: str) -> Change:
    """A metric in two passes. No interval without values by sample, with one pass, or with other questions."""
    before, after = (e.metrics.get(metric, math.nan) for e in (first, last))
    old, new = first.values.get(metric), last.values.get(metric)
    if first.step == last.step or old is None or new is None or list(first.prompts) != list(last.prompts):
        return Change(before, after, lower_is_better=lower_is_better(metric))
    number_of = {name: n for n, name in enumerate(dict.fromkeys(first.prompts))}
    found = paired_difference(old, new, np.array([number_of[p] for p in first.prompts]))
    return Change(before, after, found.low, found.high, found.clusters, lower_is_better(metric))


def is_share(first: Evaluated, last: Evaluated, metric: str) -> bool:
    """Whether the values are rights and wrongs. A metric named for a part of them (verified_counting) is one too."""
    names = {name for e in (first, last) for name in e.values if metric == name or metric.startswith(f"{name}_")}
    if not names:
        return False
    name = max(names, key=len)
    seen = np.concatenate([e.values[name] for e in (first, last) if name in e.values])
    known = seen[np.isfinite(seen)]
    return len(known) > 0 and bool(np.isin(known, (0.0, 1.0)).all())


def verdict(run: Run, found: Headline | None) -> str:
    """The headline as HTML."""
    if found is None:
        return absent("Result", "nothing has been evaluated yet; the first pass of a suite appears here")
    if found.first == found.last and run.summary is None:
        value = percent(found.change.before) if found.share else number(found.change.before)
        return (
            f'<div class="card verdict running"><div class="say"><span class="word">still going</span>'
            f'<p class="big">{_name(found)} was {value} at step {found.first}.</p><p class="fine">A second pass will '
            f"say whether it moved.</p></div><div>{_figures(found)}</div></div>"
        )
    change = found.change
    return (
        f'<div class="card verdict {TONE[change.word]}"><div class="say"><span class="word">{esc(_word(found))}</span>'
        f'<p class="big">{_sentence(found)}</p><p class="fine">{_fine(found)}</p></div>'
        f"<div>{_figures(found)}{interval(change, found.share)}</div></div>"
    )


def _word(found: Headline) -> str:
    return {"unknown": "no interval, so no claim"}.get(found.change.word, found.change.word)


def _name(found: Headline) -> str:
    return f"{esc(found.metric.replace('_', ' ')).capitalize()} on {esc(found.suite.replace('_', ' '))}"


def _sentence(found: Headline) -> str:
    change, unit = found.change, " points" if found.share else ""
    size = points(abs(change.difference)) if found.share else number(abs(change.difference))
    if change.word == "not distinguishable":
        return f"{_name(found)} cannot be told apart from before training."
    verb = "rose" if change.difference > 0 else "fell" if change.difference < 0 else "did not move,"
    return f"{_name(found)} {verb} by {size}{unit}."


def _fine(found: Headline) -> str:
    change, show = found.change, points if found.share else number
    if math.isnan(change.low):
        return f"Step {found.first} against step {found.last}. There are no values for each sample to pair."
    pairs = f", over {change.prompts} prompts, each pair with equal noise" if change.prompts else ""
    unit = " points" if found.share else ""
    return (
        f"95 % interval of the difference {show(change.low, True)} to {show(change.high, True)}{unit}{pairs}. "
        f"Step {found.first} against step {found.last}."
    )


def _figures(found: Headline) -> str:
    change, show = found.change, percent if found.share else number
    gain = points(change.difference, True) if found.share else number(change.difference, True)
    unit = "points" if found.share else "difference"
    once = found.first == found.last and math.isnan(change.low)
    after = (
        f'<div class="arrow" aria-hidden="true">→</div><div><small>after</small><span class="v">{show(change.after)}'
        f'</span></div><div class="gain"><small>{unit}</small><span class="v">{gain}</span></div>'
    )
    before = f'<div class="was"><small>before</small><span class="v">{show(change.before)}</span></div>'
    return f'<div class="steps2">{before}{"" if once else after}</div>'


def interval(change: Change, share: bool, width: int = 520, height: int = 74) -> str:
    """The difference and its interval on a line that shows 0."""
    if math.isnan(change.low):
        return absent("Interval", "needs values for each sample")
    show = points if share else number
    low, high = min(change.low, 0, change.difference), max(change.high, 0, change.difference)
    room = (high - low) * 0.12 or 1.0
    low, high = low - room, high + room

    def x(value: float) -> float:
        return round(12 + (value - low) / (high - low) * (width - 24), 1)

    text = 'font-size="14" fill="var(--soft)" text-anchor="middle"'
    ends = "".join(
        f'<text x="{x(v)}" y="{height - 6}" {text}>{show(v, True)}</text>' for v in (change.low, change.high)
    )
    close = min(abs(x(0) - x(change.low)), abs(x(0) - x(change.high))) < 28
    zero = "" if close else f'<text x="{x(0)}" y="{height - 6}" {text}>0</text>'
    said = f"95 % interval {show(change.low, True)} to {show(change.high, True)}, with 0 marked"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}">'
        f'<line x1="0" x2="{width}" y1="30" y2="30" stroke="var(--line)" stroke-width="2"/>'
        f'<line x1="{x(0)}" x2="{x(0)}" y1="10" y2="50" stroke="var(--soft)" stroke-width="1.5"/>'
        f'<rect x="{x(change.low)}" y="23" width="{max(x(change.high) - x(change.low), 1):.1f}" height="14" rx="7" '
        f'fill="var(--tone)" fill-opacity=".32"/><circle cx="{x(change.difference)}" cy="30" r="8" fill="var(--tone)"/>'
        f"{zero}{ends}</svg>"
    )
