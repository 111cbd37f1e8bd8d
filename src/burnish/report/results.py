"""The table of everything that was evaluated, before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from burnish.report.folder import Evaluated
from burnish.report.html import DASH, esc, number, percent, points
from burnish.report.intervals import Change
from burnish.report.verdict import TONE, is_share, measured


def results_table(evaluations: Mapping[str, Sequence[Evaluated]]) -> str:
    """One row a metric; the empty string if nothing was evaluated."""
    body = ""
    for suite, passes in evaluations.items():
        first, last = passes[0], passes[-1]
        span = f"step {first.step}" + (f" and step {last.step}" if last.step != first.step else ", no second pass yet")
        title = f'{esc(suite)} <span class="aside">{span}</span>'
        body += f'<tr class="group"><th colspan="6" scope="rowgroup">{title}</th></tr>'
        for metric in dict.fromkeys((*first.metrics, *last.metrics)):
            change = measured(first, last, metric)
            body += _row(metric, change, is_share(first, last, metric), once=first.step == last.step)
    if not body:
        return ""
    head = "".join(f'<th scope="col" class="n">{h}</th>' for h in ("before", "after", "difference", "95 % interval"))
    return (
        f'<div class="card scroll" tabindex="0" role="group" aria-label="Evaluation table"><table><thead><tr>'
        f'<th scope="col">metric</th>{head}<th scope="col">verdict</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(metric: str, change: Change, share: bool, once: bool) -> str:
    show, gap = (percent, points) if share else (number, number)
    known = not math.isnan(change.low)
    span = f"{gap(change.low, True)} to {gap(change.high, True)}" if known else DASH
    after, difference = (DASH, DASH) if once else (show(change.after), gap(change.difference, True))
    word = "" if once else change.word if known else "no interval"
    return (
        f'<tr><th scope="row">{esc(metric.replace("_", " "))}</th><td class="n">{show(change.before)}</td>'
        f'<td class="n">{after}</td><td class="n">{difference}</td><td class="n">{span}</td>'
        f'<td class="v {TONE[change.word]}">{word}</td></tr>'
    )
