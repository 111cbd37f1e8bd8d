"""Several runs on one page: curves laid over one another, held-out results in pairs, and the mean over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.formulas.statistics import lower_is_better, paired_difference
from burnish.report.curves import Curve, card, thinned
from burnish.report.folder import Evaluated, Run, read
from burnish.report.html import DASH, absent, document, esc, number, percent, points
from burnish.report.intervals import Change, over_seeds
from burnish.report.verdict import TONE, Headline, headline, interval

OVERLAID = (  # metric, and how it is drawn
    ("score/total_mean", Curve("Total reward", "Mean of each step.", (), wide=True)),
    ("update/law_gap", Curve("Law gap", "Nats; drawn against recomputed.", (), log=True, guide=1e-4)),
    ("update/kl", Curve("KL", "Nats per decision, to the reference.", (), zero=True)),
    ("draw/entropy", Curve("Entropy", "Nats per decision.", ())),
    ("update/clipped", Curve("Clipped", "Share of decisions.", (), zero=True)),
    ("update/grad_norm", Curve("Gradient norm", "Before clipping.", (), zero=True)),
    ("sentinel/diversity", Curve("Diversity", "Pixel distance between samples of one prompt.", ())),
)


@dataclass(frozen=True)
class Entry:
    """A run, what it is called here, and its headline."""

    run: Run
    name: str
    found: Headline | None


@dataclass(frozen=True)
class Family:
    """Runs that differ in nothing but their seed."""

    name: str
    entries: Sequence[Entry]

    def change(self) -> Change:
        """Means before and after, and the 95 % interval of the difference over runs (Student's t)."""
        shown = [e.found.change for e in self.entries if e.found]
        if not shown:
            return Change(math.nan, math.nan)
        _, low, high = over_seeds(np.array([c.difference for c in shown]))
        before, after = (float(np.mean(side)) for side in ([c.before for c in shown], [c.after for c in shown]))
        return Change(before, after, low, high, len(shown), shown[0].lower_is_better)


def write(folders: Sequence[Path], out: Path) -> Path:
    """Make a page that compares runs, and return its path.

    Raises ValueError for fewer than two folders, one that is not of a run, or one that is given twice.
    """
    if len(folders) < 2:
        raise ValueError(f"a comparison needs two runs or more, got {len(folders)}")
    if len({f.resolve() for f in folders}) < len(folders):
        raise ValueError("a run folder is given twice; compare different runs")
    out.write_text(render([read(Path(f)) for f in folders]), encoding="utf-8")
    return out


def render(runs: Sequence[Run]) -> str:
    """The page as text."""
    names = [run.name for run in runs]
    entries = [
        Entry(run, name if names.count(name) == 1 else str(run.folder), headline(run))
        for run, name in zip(runs, names, strict=True)
    ]
    entries, note = comparable(entries)
    different = differences([e.run for e in entries])
    families = by_recipe(entries, different)
    sections = [
        ("result", "Result", "".join(_verdict(f, len(families) == 1) for f in families) + note),
        ("pairs", "Held-out results", _results(entries, families)),
        ("curves", "Curves", _curves(entries, families)),
        ("settings", "What differs", _settings(entries, different)),
    ]
    header = (
        f'<div class="mark"><b>Burnish</b><span>comparison of {len(runs)} runs</span></div>'
        f"<h1>{esc(', '.join(f.name for f in families) if len(families) < 4 else f'{len(families)} recipes')}</h1>"
        f'<p class="lede">{esc(", ".join(e.name for e in entries))}</p>'
    )
    return document(
        "Comparison · Burnish", header, sections, "Made by Burnish. The page loads nothing; keep it anywhere."
    )


def comparable(entries: Sequence[Entry]) -> tuple[Sequence[Entry], str]:
    """Entries whose headline is not the first one's lose it, and a sentence that names them."""
    first = next((e.found for e in entries if e.found), None)
    same = [e if _alike(e.found, first) else Entry(e.run, e.name, None) for e in entries]
    without = [e.name for e in same if e.found is None]
    why = "no second evaluation of the same suite and metric as the first run, so it is left out of the results"
    return same, absent(", ".join(without), why) if without else ""


def _alike(found: Headline | None, first: Headline | None) -> bool:
    if found is None or first is None or found.first == found.last:
        return False
    return (found.suite, found.metric) == (first.suite, first.metric)


def flat(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted path."""
    if isinstance(settings, Mapping) and settings:
        for name, value in settings.items():
            yield from flat(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, settings


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not equal in all runs: dotted path -> value in each, None where it is not there."""
    settings = [dict(flat(run.settings)) for run in runs]
    paths = dict.fromkeys(path for one in settings for path in one)
    values = {path: [one.get(path) for one in settings] for path in paths}
    return {path: row for path, row in values.items() if any(v != row[0] for v in row)}


def by_recipe(entries: Sequence[Entry], different: Mapping[str, Sequence[Any]]) -> list[Family]:
    """Runs grouped by their settings without the seed; a group is named by what sets it apart."""
    groups: dict[str, list[Entry]] = {}
    for n, entry in enumerate(entries):
        apart = {path: row[n] for path, row in different.items() if path != "seed"}
        groups.setdefault(json.dumps(apart, default=str), []).append(entry)
    return [Family(_family_name(json.loads(key), n), group) for n, (key, group) in enumerate(groups.items())]


def _family_name(apart: Mapping[str, Any], n: int) -> str:
    if not apart:
        return "All runs"
    name = ", ".join(f"{path.rpartition('.')[2].replace('_', ' ')} {value}" for path, value in apart.items())
    return name if len(name) <= 60 else f"Recipe {n + 1}"


def _verdict(family: Family, alone: bool) -> str:
    change = family.change()
    found = next((e.found for e in family.entries if e.found), None)
    if found is None:
        return absent(family.name, "no run has two evaluations to compare")
    show, gap = (percent, points) if found.share else (number, number)
    unit = " points" if found.share else ""
    runs = f"{change.prompts} run{'s' if change.prompts != 1 else ''}"
    if math.isnan(change.low):
        word, fine = "one run, so no interval over seeds", f"{runs}. Its own interval is in the table below."
    else:
        word = change.word
        span = f"{gap(change.low, True)} to {gap(change.high, True)}{unit}"
        fine = f"Mean of {runs}; 95 % interval over runs {span}, by Student's t."
    title = f"{found.metric.replace('_', ' ')} on {found.suite.replace('_', ' ')}".capitalize()
    title = title if alone else f"{family.name}: {title}"
    return (
        f'<div class="card verdict {TONE[change.word]}"><div class="say"><span class="word">{esc(word)}</span>'
        f'<p class="big">{esc(title)}</p><p class="fine">{esc(fine)}</p></div><div><div class="steps2">'
        f'<div class="was"><small>before</small><span class="v">{show(change.before)}</span></div>'
        f'<div class="arrow" aria-hidden="true">→</div>'
        f'<div><small>after</small><span class="v">{show(change.after)}</span></div>'
        f'<div class="gain"><small>{"points" if found.share else "difference"}</small>'
        f'<span class="v">{gap(change.difference, True)}</span></div></div>{interval(change, found.share)}</div></div>'
    )


def _results(entries: Sequence[Entry], families: Sequence[Family]) -> str:
    first = next((e for e in entries if e.found), None)
    if first is None or first.found is None:
        return "<h2>Held-out results</h2>" + absent("Results", "no run has two evaluations of one suite")
    body = ""
    for family in families:
        if len(families) > 1:
            body += f'<tr class="group"><th colspan="6" scope="rowgroup">{esc(family.name)}</th></tr>'
        body += "".join(
            _row(e.name, e.found.change, e.found.share, _against(e, first)) for e in family.entries if e.found
        )
        shown = [e for e in family.entries if e.found]
        if len(shown) > 1:
            body += _row(f"mean of {len(shown)} runs", family.change(), first.found.share, DASH, "lead")
    columns = ("before", "after", "difference", "95 % interval", f"after, against {first.name}")
    head = "".join(f'<th scope="col" class="n">{esc(c)}</th>' for c in columns)
    return (
        "<h2>Held-out results</h2><p>Each run's pairs are one prompt and noise before and after; its interval is a "
        "bootstrap over prompts. The interval of a mean is over runs.</p>"
        f'<div class="card scroll" tabindex="0" role="group" aria-label="Held-out results"><table><thead><tr>'
        f'<th scope="col">run</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(name: str, change: Change, share: bool, against: str, kind: str = "") -> str:
    show, gap = (percent, points) if share else (number, number)
    known = not math.isnan(change.low)
    span = f"{gap(change.low, True)} to {gap(change.high, True)}" if known else DASH
    return (
        f'<tr class="{kind}"><th scope="row">{esc(name)}</th><td class="n">{show(change.before)}</td>'
        f'<td class="n">{show(change.after)}</td>'
        f'<td class="n v {TONE[change.word]}">{gap(change.difference, True)}</td>'
        f'<td class="n">{span}</td><td class="n">{against}</td></tr>'
    )


def _against(entry: Entry, first: Entry) -> str:
    """The last evaluation against that of the first run, in pairs, where both asked the same."""
    if entry is first or entry.found is None or first.found is None:
        return DASH
    mine, theirs = (_last(e) for e in (entry, first))
    metric = entry.found.metric
    if list(mine.prompts) != list(theirs.prompts) or not (metric in mine.values and metric in theirs.values):
        return "other prompts"
    number_of = {name: n for n, name in enumerate(dict.fromkeys(mine.prompts))}
    found = paired_difference(
        theirs.values[metric], mine.values[metric], np.array([number_of[p] for p in mine.prompts])
    )
    gap = points if entry.found.share else number
    tone = TONE[found.verdict(lower_is_better(metric))]
    return (
        f'<span class="tag {tone}">{gap(found.mean, True)}</span> ({gap(found.low, True)} to {gap(found.high, True)})'
    )


def _last(entry: Entry) -> Evaluated:
    assert entry.found is not None
    return entry.run.evaluations[entry.found.suite][-1]


def _curves(entries: Sequence[Entry], families: Sequence[Family]) -> str:
    cards, missing = "", []
    hue = {e.name: n if len(families) > 1 else i for n, f in enumerate(families) for i, e in enumerate(f.entries)}
    found = next((e.found for e in entries if e.found), None)
    verified = Curve("Evaluations", "The held-out metric at each pass.", (), dots=True)
    wanted = [(f"eval/{found.suite}_{found.metric}", verified)] if found else []
    for metric, curve in (*OVERLAID, *wanted):
        series = []
        for entry in entries:
            if metric in entry.run.metrics:
                steps, values = thinned(*entry.run.metrics[metric])
                series.append({"name": entry.name, "x": steps, "y": values, "colour": hue[entry.name]})
        cards += card(curve.title, curve.note, series, curve) if series else ""
        missing += [] if series else [curve.title.lower()]
    one = "recipe" if len(families) > 1 else "run"
    lede = f"One colour a {one}. Thin is measured, thick its running mean; a name in a legend switches its run off."
    lost = absent("No curve for", f"{', '.join(missing)}: no run recorded it") if missing else ""
    return f'<h2>Curves</h2><p>{lede}</p><div class="charts">{cards}</div>{lost}'


def _settings(entries: Sequence[Entry], different: Mapping[str, Sequence[Any]]) -> str:
    if not different:
        return "<h2>What differs</h2><p>Nothing: the recipes are equal, the seed included.</p>"
    head = "".join(f'<th scope="col">{esc(e.name)}</th>' for e in entries)
    body = "".join(
        f'<tr><th scope="row">{esc(path)}</th>{"".join(f"<td>{esc(DASH if v is None else v)}</td>" for v in row)}</tr>'
        for path, row in different.items()
    )
    return (
        "<h2>What differs</h2><p>Settings that are not equal in all recipes.</p>"
        '<div class="card scroll" tabindex="0" role="group" aria-label="Settings that differ"><table><thead><tr>'
        f'<th scope="col">setting</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
