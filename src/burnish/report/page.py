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
    system = run.settings.get("objective")
    objective = next(iter(system)) if isinstance(system, dict) and system else system
    policy = run.settings.get("policy")
    model = next(iter(policy)) if isinstance(policy, dict) and policy else policy
    about = " on ".join(f"<b>{esc(x)}</b>" if n < 0 else esc(x) for n, x in enumerate((objective, model)) if x)
    return (
        f'<div class="mark"><b>Burnish</b><span>{esc(state(run))}</span></div><h1>{esc(run.name)}</h1>'
        f'<p class="lede">{about}{"." if about else ""}</p>'
    )


def state(run: Run) -> str:
    """Where the run is, in words."""
    steps = run.settings.get("steps")
    done = 0 if run.last_step is None else run.last_step + 1
    if run.summary is not None:
        return f"finished after {done} steps"
    return f"not finished: {done} of {steps if steps is not None else 'an unknown number of'} steps recorded"


def _facts(run: Run) -> str:
    def last(name: str) -> float | None:
        return next((v for v in reversed(run.metrics[name][1]) if v is not None), None) if name in run.metrics else None

    seconds = (run.summary or {}).get("seconds")
    if seconds is None:
        seconds = sum(v or 0 for n, (_, vs) in run.metrics.items() if n.endswith("/seconds") for v in vs)
    invalid = run.metrics.get("score/invalid")
    facts = {
        "Steps": None if run.last_step is None else f"{run.last_step + 1:,}",
        "Time": duration(seconds) if seconds else None,
        "Pictures a second, drawing": _maybe(last("draw/images_per_second")),
        "Law gap, last step, nats": _maybe(last("update/law_gap")),
        "KL to reference, last": _maybe(last("update/kl")),
        "Invalid scores, mean": _maybe(sum(v or 0 for v in invalid[1]) / len(invalid[1])) if invalid else None,
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


def _before_after(run: Run, found: Headline | None) -> str:
    head = "<h2>Before and after</h2><p>The same prompts and the same noise, drawn with the weights before training and with the last ones evaluated.</p>"
    out = ""
    for n, (suite, passes) in enumerate(run.evaluations.items()):
        metric = found.metric if found and found.suite == suite else next(iter(passes[-1].values), None)
        if len(run.evaluations) > 1:
            out += f"<h3>{esc(suite)}</h3>"
        if len(passes) < 2:
            out += absent("Before and after", f"{suite} has been evaluated once, at step {passes[0].step}; a second pass is needed")
            continue
        out += pictures.before_after(passes[0], passes[-1], metric, f"s{n}") + pictures.through_time(passes)
    return head + (out or absent("Before and after", "no evaluation has finished; the recipe may name no suite"))


def _curves(run: Run) -> str:
    head = "<h2>Curves</h2><p>One point a step. Thin is measured, thick its running mean. Point at a chart, or focus it and use the arrow keys, to read every chart at that step.</p>"
    return head + (charts(run.metrics) if run.metrics else absent("Curves", "metrics.jsonl has no step yet"))


def _samples(run: Run) -> str:
    head = "<h2>Samples worth looking at</h2>"
    if not run.samples:
        return head + absent("Samples", "none are saved yet; the recipe's samples_every says how often")
    last = run.samples[-1]
    note = f"<p>Of the {len(last.prompts)} training samples saved at step {last.step}. Bars are deviations from the step's mean, to three either way.</p>"
    return head + note + pictures.picks(last)


def _evaluation(run: Run) -> str:
    head = "<h2>Evaluation</h2><p>Differences are paired by prompt and noise. Intervals are 95 %, from a bootstrap over pairs; without values for each sample there is no interval, and no claim.</p>"
    return head + (results_table(run.evaluations) or absent("Evaluation", "no suite has finished a pass"))


def _recipe(run: Run) -> str:
    written = f'<pre class="card" tabindex="0" aria-label="recipe.yaml">{yaml(run.recipe)}</pre>' if run.recipe else ""
    recipe = written or absent("Recipe", "recipe.yaml is not in the folder")
    if run.environment:
        rows = "".join(_row(k, v) for k, v in run.environment.items() if k != "warnings")
        machine = f'<div class="card scroll"><table><tbody>{rows}</tbody></table></div>'
    else:
        machine = absent("Environment", "environment.json is not in the folder")
    return f'<h2>Recipe and environment</h2><p>Everything that decided what this run did.</p><div class="two"><div>{recipe}</div><div>{machine}</div></div>'


def _row(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "".join(_row(f"{name} {k}", v) for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = " ".join(str(v) for v in value)
    return f'<tr><th scope="row">{esc(name.replace("_", " "))}</th><td>{esc(value)}</td></tr>'


def _again(run: Run) -> str:
    where = shlex.quote(str(run.folder))
    out = "<h2>Do it again</h2><p>Noise is keyed by seed, step and sample, so the same recipe on the same machine gives the same run.</p>"
    told = (run.environment or {}).get("command")
    if told:
        words = told if isinstance(told, str) else shlex.join(str(w) for w in told)
        out += f"<h3>As it was started</h3>{command(words)}"
    out += f"<h3>Again, from its recipe</h3>{command(f'burnish train {where}/recipe.yaml')}"
    if run.summary is None:
        out += f"<h3>Go on from the last checkpoint</h3>{command(f'burnish train --resume {where}')}"
    return out + f"<h3>This page, from the folder</h3>{command(f'burnish report {where}')}"


def _footer(run: Run) -> str:
    version = (run.environment or {}).get("burnish")
    said = f" {version}" if isinstance(version, str) else ""
    return f"Made by Burnish{esc(said)} from the files in {esc(run.folder)}. The page loads nothing; keep it anywhere."


