"""The page of a bench: tables, and a roofline for each setting.

The roofline model is that of Williams, Waterman and Patterson (2009): with x operations for each byte that is moved, a
machine does no more than min(matrix rate, x * memory rate) operations a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.report.html import DASH, document, esc, number, percent

WIDTH, HEIGHT, LEFT, FOOT = 720, 360, 70, 44
NAMES = {
    "draw": "drawing, with decoding",
    "decode": "decoding",
    "score": "scores",
    "weigh": "advantage",
    "update": "update",
    "step": "step",
    "operations": "operations",
    "memory": "memory",
}


def render(told: Mapping[str, Any]) -> str:
    """What `burnish bench --json` keeps, as a page."""
    benches: Sequence[Mapping[str, Any]] = told["benches"]
    first = benches[0]
    processes, threads = first["processes"], first["threads"]
    who = f"{processes} process{'es' * (processes > 1)} of {threads} thread{'s' * (threads > 1)}"
    best = (
        f"{who}: at best {number(first['matrix_rate'] / 1e9)} G operations a second in {esc(first['arithmetic'])}, "
        f"{number(first['memory_rate'] / 1e9)} GB a second copied."
    )
    header = (
        f'<div class="mark"><b>Burnish</b> bench</div><h1>{esc(told["recipe"])}</h1>'
        f'<p class="lede">{esc(" ".join(told["changes"]))} {esc(first["device"])}, {best}</p>'
    )
    if "growth" not in told:
        sections = [_section("step", "A step", first)]
    else:
        what = told["vary"].rpartition(".")[2]
        names = [f"{what} {value}" for value in told["values"]]
        sections = [_section(f"b{i}", name, one) for i, (name, one) in enumerate(zip(names, benches, strict=True))]
        sections.insert(0, ("growth", "Growth", _growth(told)))
    note = (
        "A multiply-add is two operations. Operations and bytes are those of matrix products, attention and "
        "convolutions: what lies between them can be fused, and its bytes are left out. Bytes are counted as if no "
        "cache kept them from one of these to the next: their share of what copying reaches may be above 1."
    )
    return document(f"Bench of {told['recipe']}", header, sections, f"<p>{note}</p>")


def _section(anchor: str, name: str, one: Mapping[str, Any]) -> tuple[str, str, str]:
    rows = "".join(
        f'<tr><th scope="row">{esc(NAMES[stage])}</th>'
        + "".join(
            f'<td class="n">{cell}</td>'
            for cell in (
                number(facts["seconds"]),
                number(facts["cpu_seconds"]),
                number(facts["images_per_second"]),
                number(facts["operations"] / 1e9),
                percent(facts["share_of_matrix_rate"]),
                number(facts["traffic"] / 1e9),
                percent(facts["share_of_memory_rate"]),
            )
        )
        + "</tr>"
        for stage, facts in one["stages"].items()
    )
    heads = ("stage", "seconds", "CPU seconds", "images/s", "G operations", "of the rate", "GB in, out", "of copying")
    table = f"<table><thead><tr>{_heads(heads)}</tr></thead><tbody>{rows}</tbody></table>"
    said = f"{one['images']} images a step, {number(one['memory'] / 1e9)} GB held, median of {one['steps']} steps."
    if whole := one["stages"]["step"]["whole_operations"]:
        said += f" Besides {number(whole / 1e9)} G operations in whole numbers a step, whose rate is not measured: "
        said += "they are not in the share of the rate, and stages that have some are not under the roof."
    return anchor, name, f'<h2>{esc(name)}</h2><p>{said}</p><div class="scroll">{table}</div>{roofline(one)}'


def roofline(one: Mapping[str, Any]) -> str:
    """The stages of a bench under the roof of its machine, as SVG.

    One without matrix products has no place in it, nor has one with some in whole numbers, which have another roof.
    """
    shown = {
        stage: (facts["operations"] / facts["traffic"], facts["operations"] / facts["seconds"])
        for stage, facts in one["stages"].items()
        if facts["operations"] and facts["traffic"] and facts["seconds"] and not facts["whole_operations"]
    }
    if not shown:
        return ""
    rate, copied = one["matrix_rate"], one["memory_rate"]
    ridge = rate / copied
    xs = [x for x, _ in shown.values()] + [ridge]
    ys = [y for _, y in shown.values()] + [rate]
    left, right = math.floor(math.log10(min(xs)) - 0.3), math.ceil(math.log10(max(xs)) + 0.3)
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 0.1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (math.log10(x) - left) / (right - left) * (WIDTH - LEFT - 10)
        up = (HEIGHT - FOOT) * (1 - (math.log10(y) - low) / (high - low))
        return across, up

    def path(*points: tuple[float, float]) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*point) for point in points))

    out = ""
    for power in range(left, right + 1):
        x, y = at(10.0**power, 10.0**low)
        out += f'<path class="grid" d="{path((10.0**power, 10.0**low), (10.0**power, 10.0**high))}"/>'
        out += f'<text class="soft" x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{_power(power)}</text>'
    for power in range(low, high + 1):
        x, y = at(10.0**left, 10.0**power)
        out += f'<path class="grid" d="{path((10.0**left, 10.0**power), (10.0**right, 10.0**power))}"/>'
        out += f'<text class="soft" x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{_power(power - 9)}</text>'
    start = max(10.0**left, 10.0**low / copied)
    out += f'<path class="roof" d="{path((start, start * copied), (ridge, rate), (10.0**right, rate))}"/>'
    for stage, (x, y) in shown.items():
        across, up = at(x, y)
        out += f'<circle cx="{across:.1f}" cy="{up:.1f}" r="5"/>'
        out += f'<text x="{across + 9:.1f}" y="{up + 4:.1f}">{esc(stage)}</text>'
    middle = (LEFT + WIDTH) / 2
    out += f'<text class="soft" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">operations a byte</text>'
    places = (f"{stage} {number(y / 1e9)} G/s at {number(x)} a byte" for stage, (x, y) in shown.items())
    spoken = f"Roofline, G operations a second. {'; '.join(places)}"
    return (
        f'<figure class="roofline"><figcaption><b>Roofline</b> {DASH} G operations a second, over operations a '
        f'byte; the line is what this machine can do at best</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{esc(spoken)}">{out}</svg></figure>'
    )


def _power(power: int) -> str:
    return f"{10.0**power:g}" if -3 <= power <= 4 else f"1e{power}"


def _growth(told: Mapping[str, Any]) -> str:
    ends = told["growth_at_the_end"]
    powers = ", ".join(
        f"{number(power)} ({esc(NAMES[name])}; {number(ends[name])} from the second largest to the largest)"
        for name, power in told["growth"].items()
    )

    def of(size: float) -> str:
        return "" if told["unit"] == told["vary"] else f": {size:,.0f} {esc(told['unit'])}"

    rows = "".join(
        f'<tr><th scope="row">{esc(value)}{of(size)}</th>'
        + "".join(
            f'<td class="n">{number(one["stages"][stage][told["clock"]])}</td>' for stage in ("draw", "update", "step")
        )
        + f'<td class="n">{number(one["memory"] / 1e9)}</td></tr>'
        for value, size, one in zip(told["values"], told["sizes"], told["benches"], strict=True)
    )
    clock = "Seconds of all cores" if told["clock"] == "cpu_seconds" else "Seconds"
    heads = _heads((esc(told["vary"]), "seconds drawing", "updating", "a step", "GB"))
    return (
        f"<h2>Growth</h2><p>{clock}, operations and bytes grow as {esc(told['unit'])} to the power of {powers}; "
        "1 is in proportion.</p>"
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _heads(names: Sequence[str]) -> str:
    first, *others = names
    return f"<th>{first}</th>" + "".join(f'<th class="n">{name}</th>' for name in others)
