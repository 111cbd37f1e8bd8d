"""The timeline of a run's last step: a row for each kind of work, and when it was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.report.html import esc, number

# Kinds of work from the first to the last, and what lies within or beside another.
ROWS = {
    "draw": "drawing, with decoding",
    "decode": "decoding",
    "scoring": "rewards at work",
    "read": "texts of the next step",
    "score": "scores",
    "recompute": "reference and anchor",
    "weigh": "advantage",
    "update": "update, with waiting",
    "wait": "waiting for other processes",
    "measure": "measures",
    "evaluate": "evaluation",
    "save": "checkpoint",
}
WIDTH, LABEL, ROW = 720, 190, 22


def timeline(told: Mapping[str, Any] | None) -> str:
    """What timeline.json tells, as a picture; nothing if it tells nothing."""
    laps = [lap for lap in (told or {}).get("laps", ()) if lap["name"] in ROWS]
    if not told or not laps:
        return ""
    last = max(lap["end"] for lap in laps)
    names = [name for name in ROWS if any(lap["name"] == name for lap in laps)]
    scale = (WIDTH - LABEL - 60) / max(last, 1e-9)
    out = ""
    for row, name in enumerate(names):
        own = [lap for lap in laps if lap["name"] == name]
        y = row * ROW
        out += f'<text class="soft" x="0" y="{y + 14}">{esc(ROWS[name])}</text>'
        for lap in own:
            x, width = LABEL + scale * lap["start"], max(1.0, scale * (lap["end"] - lap["start"]))
            out += f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{ROW - 9}"/>'
        spent = sum(lap["end"] - lap["start"] for lap in own)
        out += f'<text class="soft" x="{WIDTH}" y="{y + 14}" text-anchor="end">{number(spent)} s</text>'
    said = f"Timeline of step {told['step']}, {number(last)} seconds"
    return (
        f'<figure class="timeline"><figcaption><b>{esc(said)}</b>, of the leading process</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {len(names) * ROW}" role="img" aria-label="{esc(said)}">{out}</svg></figure>'
    )
