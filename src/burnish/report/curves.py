"""Which curves a page shows, in which order, and what each of them is for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.report.html import absent, esc, inline_json, number

LONGEST = 1000  # points of one curve; a longer run is shown by means of equal stretches


@dataclass(frozen=True)
class Curve:
    """One chart: the metrics it draws, under what title, and the sentence that says how to read it."""

    title: str
    note: str
    names: Sequence[str]  # metric names; one that ends in * takes every name that starts so
    without: str = " "  # names that hold this are not meant by the star
    log: bool = False
    zero: bool = False  # the axis reaches 0
    spread: bool = False  # a band of the metric <name with _std for _mean>, where it was recorded
    stacked: bool = False
    wide: bool = False
    dots: bool = False  # few points, far apart: mark each
    guide: float | None = None  # a level to read the curve against, drawn as a dashed line


GROUPS: Sequence[tuple[str, Sequence[Curve]]] = (
    (
        "Reward",
        (
            Curve(
                "Total reward",
                "What is trained on. The band is one standard deviation of the samples within a step.",
                ("score/total_mean",),
                spread=True,
                wide=True,
            ),
            Curve(
                "Reward parts",
                "Each part before weighting. One that falls while the total rises is being traded away.",
                ("score/*_mean",),
                spread=True,
            ),
            Curve(
                "Measured, never trained on",
                "If these fall while the reward rises, the reward is being gamed.",
                ("measure/*_mean",),
                spread=True,
            ),
            Curve(
                "Samples that do not teach",
                "Samples without a valid score, and groups in which every sample scored the same.",
                ("score/invalid", "score/flat_groups"),
                zero=True,
            ),
            Curve(
                "Spread within groups",
                "Deviation of the reward among samples of one prompt. At 0 there is nothing to learn.",
                ("score/group_std",),
                zero=True,
            ),
            Curve(
                "Evaluations",
                "Verified success at each pass, same prompts and noise.",
                ("eval/*_verified",),
                without="_reward_",
                dots=True,
            ),
        ),
    ),
    (
        "The law",
        (
            Curve(
                "Law gap",
                "Mean absolute difference, nats, between the log-probability recorded while drawing and the one "
                "recomputed before the first update. Under the dashed 1e-4, the law trained is the law sampled.",
                ("update/law_gap", "update/law_gap_max"),
                log=True,
                guide=1e-4,
            ),
            Curve(
                "KL",
                "Divergence from the reference weights, nats per decision.",
                ("update/kl", "update/kl_*"),
                zero=True,
            ),
            Curve(
                "Entropy",
                "Nats per decision, of the law sampled from. A fall towards 0 is collapse.",
                ("draw/entropy", "update/entropy"),
            ),
        ),
    ),
    (
        "The update",
        (
            Curve(
                "Probability ratio",
                "New over old probability of the decisions taken; exactly 1 before the first update.",
                ("update/ratio_mean", "update/ratio_min", "update/ratio_max"),
            ),
            Curve(
                "Clipped",
                "Share of decisions whose gradient the trust region cut off.",
                ("update/clipped", "update/clipped_low", "update/clipped_high"),
                zero=True,
            ),
            Curve("Gradient norm", "Before clipping.", ("update/grad_norm",), zero=True),
            Curve(
                "Agreement of gradients",
                "Cosine of a gradient with the running mean of earlier ones. Around 0 the updates are noise.",
                ("update/agreement",),
                zero=True,
            ),
            Curve("Loss", "Its level says little; a jump says something.", ("update/loss",)),
            Curve("Learning rate", "As scheduled.", ("update/lr",), zero=True),
        ),
    ),
    (
        "The pictures",
        tuple(
            Curve(title, note, (f"sentinel/{name}",))
            for name, title, note in (
                ("brightness", "Brightness", "Mean luminance, 0 to 1."),
                ("dark_share", "Dark pixels", "Share under a luminance of 0.1."),
                ("contrast", "Contrast", "Standard deviation of luminance within a picture."),
                ("edges", "Edges", "Mean absolute difference of neighbouring pixels. Falls when scenes are wiped."),
                ("colour_entropy", "Colour entropy", "Bits, over 64 colours. Falls when the palette collapses."),
                ("grid", "Grid", "Share of edge energy at the token cell's period. Rises with tiling artefacts."),
                ("diversity", "Diversity", "Pixel distance between samples of one prompt. Falls with mode collapse."),
            )
        ),
    ),
    (
        "Time",
        (
            Curve("Seconds by stage", "Of each step, stacked.", ("*/seconds",), zero=True, stacked=True, wide=True),
            Curve(
                "Processor",
                "Seconds of all cores for a step, but evaluation and saving. If few, it waited, or a GPU worked.",
                ("step/cpu_seconds",),
                zero=True,
            ),
            Curve("Pictures a second", "While drawing.", ("draw/images_per_second",), zero=True),
        ),
    ),
)


def charts(metrics: Mapping[str, tuple[Sequence[int], Sequence[float | None]]]) -> str:
    """Every chart for which something was recorded, by group; a chart without data is named."""
    out, missing, shown = [], [], set()
    for group, curves in GROUPS:
        cards = []
        for curve in curves:
            names = [n for n in _matching(curve, metrics) if n not in shown]
            shown.update(names)
            if names:
                cards.append(card(curve.title, curve.note, _series(curve, names, metrics), curve))
            else:
                missing.append(curve.title)
        if cards:
            out.append(f'<h3>{esc(group)}</h3><div class="charts">{"".join(cards)}</div>')
    if missing:
        out.append(absent("No curve for", ", ".join(missing).lower() + ": this run did not record them"))
    return "".join(out)


def card(title: str, note: str, series: Sequence[Mapping[str, Any]], curve: Curve) -> str:
    """One chart as HTML: its data as JSON, drawn by the page's script, and a sentence for those who do not see it."""
    data = {
        "series": series,
        "log": curve.log,
        "zero": curve.zero,
        "wide": curve.wide,
        "stacked": curve.stacked,
        "dots": curve.dots,
        "guide": curve.guide,
    }
    said = f"{title}. " + "; ".join(f"{s['name']}: {_first_last(s)}" for s in series)
    return (
        f'<div class="card chart{" wide" if curve.wide else ""}"><h4>{esc(title)} <span class="num"></span></h4>'
        f'<p>{esc(note)}</p><div class="plot" tabindex="0" role="img" aria-label="{esc(said)}. Arrow keys read steps.">'
        f'</div><div class="keys"></div><div class="hidden" aria-live="polite"></div>'
        f'<script type="application/json">{inline_json(data)}</script></div>'
    )


def _first_last(series: Mapping[str, Any]) -> str:
    values = [v for v in series.get("v", series["y"]) if v is not None and math.isfinite(v)]
    return f"from {number(values[0])} to {number(values[-1])}" if values else "no value"


def _matching(curve: Curve, metrics: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for name in curve.names:
        head, star, tail = name.partition("*")
        hits = (
            [m for m in metrics if m.startswith(head) and m.endswith(tail) and curve.without not in m]
            if star
            else [name] * (name in metrics)
        )
        found += [m for m in hits if m not in found]
    return found


def _series(
    curve: Curve, names: Sequence[str], metrics: Mapping[str, tuple[Sequence[int], Sequence[float | None]]]
) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    floor: dict[int, float] = {}
    for name in names:
        steps, values = thinned(*metrics[name])
        one: dict[str, Any] = {"name": _legend(name), "x": steps, "y": values}
        band = metrics.get(name.replace("_mean", "_std")) if curve.spread else None
        if band is not None and name.endswith("_mean"):
            deviation = dict(zip(*thinned(*band), strict=True))
            around = [(y, deviation.get(x)) for x, y in zip(steps, values, strict=True)]
            one["lo"] = [None if y is None or d is None else y - d for y, d in around]
            one["hi"] = [None if y is None or d is None else y + d for y, d in around]
        if curve.stacked:
            one["lo"] = [floor.get(x, 0.0) for x in steps]
            one["hi"] = one["y"] = [floor.get(x, 0.0) + (y or 0.0) for x, y in zip(steps, values, strict=True)]
            one["v"] = values
            floor.update(zip(steps, one["hi"], strict=True))
        out.append(one)
    return out


def _legend(name: str) -> str:
    stage, _, what = name.partition("/")
    return (stage if what == "seconds" else what.removesuffix("_mean")).replace("_", " ")


def thinned(
    steps: Sequence[int], values: Sequence[float | None], longest: int = LONGEST
) -> tuple[list[int], list[float | None]]:
    """At most `longest` points: means over equal stretches of steps, placed at the last step of each."""
    width = -(-len(steps) // longest)
    if width <= 1:
        return list(steps), list(values)
    out: list[float | None] = []
    for start in range(0, len(steps), width):
        known = [v for v in values[start : start + width] if v is not None]
        out.append(sum(known) / len(known) if known else None)
    return [steps[min(s + width, len(steps)) - 1] for s in range(0, len(steps), width)], out
