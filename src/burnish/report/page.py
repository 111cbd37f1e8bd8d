"""report.html: one file that says what a run did, whether it helped, and how to do it again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.report import pictures
from burnish.report.curves import charts
from burnish.report.folder import Run, read
from burnish.report.html import absent, command, document, duration, esc, number, yaml
from burnish.report.results import results_table
from burnish.report.timeline import timeline
from burnish.report.verdict import Headline, headline, verdict


def write(folder: Path) -> Path:
    """Make `report.html` in a run folder, whole or still going, and return its path.

    Raises ValueError if the folder is not one of a run.
    """
    folder = Path(folder)
    page, path = render(read(folder)), folder / "report.html"
    beside = folder / f".report.{os.getpid()}.tmp"  # renamed when whole: a reader never sees half a page
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)
    return path


def render(run: Run) -> str:
    """The page as text."""
    found = headline(run)
    sections = [
        ("result", "Result", verdict(run, found) + _facts(run) + _warnings(run)),
        ("before-after", "Before and after", _before_after(run, found)),
        ("curves", "Curves", _curves(run)),
        ("samples", "Samples", _samples(run)),
        ("evaluation", "Evaluation", _evaluation(run)),
        ("recipe", "Recipe", _recipe(run)),
        ("again", "Do it again", _again(run)),
    ]
    return document(f"{run.name} · Burnish", _header(run), sections, _footer(run))


def _header(run: Run) -> str:
    names = [one_name(run.settings.get(key)) for key in ("objective", "policy", "reward")]
    about = " · ".join(esc(name.replace("_", " ")) for name in names if name)
    return (
        f'<div class="mark"><b>Burnish</b><span>{esc(state(run))}</span></div><h1>{esc(run.name)}</h1>'
        f'<p class="lede">{about}</p>'
    )


def one_name(component: Any) -> str:
    """The name of a component of a recipe: of `{name: settings}`, or of `name` alone."""
    if isinstance(component, Mapping):
        component = next(iter(component), "")
    return str(component or "")


def state(run: Run) -> str:
    """Where the run is, in words."""
    steps, done = run.settings.get("steps"), run.last_step or 0
    if run.summary is not None:
        return f"finished, {done} steps"
    return f"not finished: {done} of {steps} steps" if steps is not None else f"not finished: {done} steps"


def _facts(run: Run) -> str:
    def last(name: str) -> float | None:
        return next((v for v in reversed(run.metrics[name][1]) if v is not None), None) if name in run.metrics else None

    seconds = (run.summary or {}).get("seconds")
    if seconds is None:
        seconds = sum(v or 0 for n, (_, vs) in run.metrics.items() if n.endswith("/seconds") for v in vs)
    invalid = run.metrics.get("score/invalid")
    facts = {
        "Steps": f"{run.last_step or 0:,}",
        "Time": duration(seconds) if seconds else None,
        "Pictures a second, drawing": _maybe(last("draw/images_per_second")),
        "Law gap, last step, nats": _maybe(last("update/law_gap")),
        "KL to reference, last": _maybe(last("update/kl")),
        "Invalid scores": f"{sum(v or 0 for v in invalid[1]):,.0f}" if invalid else None,
    }
    cells = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in facts.items() if v is not None)
    return f'<dl class="facts">{cells}</dl>' if cells else ""


def _maybe(value: float | None) -> str | None:
    return None if value is None else number(value)


def _warnings(run: Run) -> str:
    out = ""
    warnings = (run.environment or {}).get("warnings") or (run.summary or {}).get("warnings") or ()
    if warnings:
        items = "".join(f"<li>{esc(w)}</li>" for w in warnings)
        out += f'<div class="alert even"><p><b>Settings that cannot act in this run</b></p><ul>{items}</ul></div>'
    if run.trouble:
        items = "".join(f"<li>{esc(t)}</li>" for t in run.trouble)
        out += f'<div class="alert worse"><p><b>Files that could not be read</b></p><ul>{items}</ul></div>'
    return out


def _titled(title: str, lede: str, content: str) -> str:
    return f"<h2>{title}</h2><p>{lede}</p>{content}"


def _before_after(run: Run, found: Headline | None) -> str:
    lede = "The same prompts and the same noise, drawn with the weights before training and with the last evaluated."
    optim = run.settings.get("optim")
    if isinstance(optim, Mapping) and optim.get("ema"):
        lede += " These are an average of the trained weights (optim.ema); the curves below are of the trained."
    out = ""
    for n, (suite, passes) in enumerate(run.evaluations.items()):
        out += f"<h3>{esc(suite)}</h3>" if len(run.evaluations) > 1 else ""
        if len(passes) < 2:
            why = f"{suite} has been evaluated once, at step {passes[0].step}; a second pass is needed"
            out += absent("Before and after", why)
            continue
        metric = found.metric if found and found.suite == suite else next(iter(passes[-1].values), None)
        out += pictures.before_after(passes[0], passes[-1], metric, f"s{n}") + pictures.through_time(passes)
    why = "no evaluation has finished; `suites` of the recipe says which there are"
    return _titled("Before and after", lede, out or absent("Before and after", why))


def _curves(run: Run) -> str:
    lede = (
        "One point a step; thin is measured, thick its running mean. Point at a chart, or focus it and use the arrow "
        "keys, to read every chart at that step."
    )
    shown = charts(run.metrics) if run.metrics else absent("Curves", "metrics.jsonl has no step yet")
    return _titled("Curves", lede, shown + timeline(run.timeline))


def _samples(run: Run) -> str:
    if not run.samples:
        why = "none are saved yet; `samples_every` of the recipe says how often"
        return _titled("Samples worth looking at", "Drawn for training.", absent("Samples", why))
    last = run.samples[-1]
    lede = (
        f"Of {len(last.texts)} samples drawn for training at step {last.step}. Bars are deviations from that step's "
        "mean, up to three either way."
    )
    return _titled("Samples worth looking at", lede, pictures.picks(last))


def _evaluation(run: Run) -> str:
    lede = (
        "Differences are paired by prompt and noise. Intervals are 95 %, from a bootstrap over prompts. A metric "
        "without values by sample has no interval, and nothing is claimed of it."
    )
    shown = results_table(run.evaluations) or absent("Evaluation", "no suite has finished a pass")
    return _titled("Evaluation", lede, shown)


def _recipe(run: Run) -> str:
    written = f'<pre class="card" tabindex="0" aria-label="recipe.yaml">{yaml(run.recipe)}</pre>' if run.recipe else ""
    recipe = written or absent("Recipe", "recipe.yaml is not in the folder")
    if run.environment:
        rows = "".join(_row(k, v) for k, v in run.environment.items() if k != "warnings" and v not in (None, []))
        machine = f'<div class="card scroll"><table><tbody>{rows}</tbody></table></div>'
    else:
        machine = absent("Environment", "environment.json is not in the folder")
    both = f'<div class="two"><div>{recipe}</div><div>{machine}</div></div>'
    return _titled("Recipe and environment", "Everything that decided what this run did.", both)


def _row(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "".join(_row(f"{name} {k}", v) for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(_row(f"{name} {n}", v) for n, v in enumerate(value, 1))
    return f'<tr><th scope="row">{esc(name.replace("_", " "))}</th><td>{esc(value)}</td></tr>'


def _again(run: Run) -> str:
    where = shlex.quote(str(run.folder))
    lede = "Noise is keyed by seed, step and sample, so the same recipe on the same machine gives the same run."
    told = (run.environment or {}).get("command")
    out = f"<h3>As it was started</h3>{command(str(told))}" if told else ""
    if run.summary is None:
        out += f"<h3>Go on from the last checkpoint</h3>{command(f'burnish train {where} --resume')}"
    out += f"<h3>Again, from its recipe</h3>{command(f'burnish train {where}/recipe.yaml')}"
    out += f"<h3>This page, from the folder</h3>{command(f'burnish report {where}')}"
    return _titled("Do it again", lede, out)


def _footer(run: Run) -> str:
    version = (run.environment or {}).get("burnish")
    said = f" {version}" if isinstance(version, str) else ""
    return f"Made by Burnish{esc(said)} from the files in {esc(run.folder)}. The page loads nothing; keep it anywhere."
