"""Pictures on the page: before and after, through time, and the samples worth looking at."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.report.folder import Evaluated, Samples, Sheet
from burnish.report.html import absent, data_uri, esc, number

MOST_TILES = 60  # pairs shown before and after
SHOWN_AT_FIRST = 21  # of them; the rest are behind a button, as .few in style.html has it
PICKS = 6  # samples in each of best, worst, most disputed
WIDEST = 320  # pixels; a larger picture is reduced, or a page would weigh as much as its run
LARGEST = 1_500_000  # bytes of a sprite: 2 MB as text, and Chromium leaves longer values of a variable empty


@dataclass(frozen=True)
class Sprite:
    """Several pictures of one size as one picture, so that a page carries each sheet once."""

    uri: str
    columns: int
    rows: int
    width: int
    height: int

    def variables(self, name: str = "--sheet") -> str:
        """CSS that hands the sprite to the tiles inside an element."""
        return (
            f"{name}:url({self.uri});--cols:{self.columns};--rows:{self.rows};--aspect:{self.width / self.height:.4f}"
        )

    def place(self, index: int) -> str:
        """CSS that shows the picture `index`."""
        row, column = divmod(index, self.columns)
        x, y = (100 * at / (n - 1) if n > 1 else 0 for at, n in ((column, self.columns), (row, self.rows)))
        return f"--x:{x:.3f}%;--y:{y:.3f}%"

    @property
    def crisp(self) -> str:
        return " crisp" if self.width <= 128 else ""  # small pictures are enlarged: show their pixels, not a blur


def sprite(sheet: Sheet, indices: Sequence[int]) -> Sprite:
    """Cut pictures out of a sheet and lay them out tightly. A sheet that moves makes a sprite that moves."""
    from PIL import Image, ImageSequence

    with Image.open(sheet.path) as opened:
        shown = [(frame.convert("RGB"), frame.info.get("duration")) for frame in ImageSequence.Iterator(opened)]
    shrink = min(1.0, WIDEST / sheet.width)
    width, height = max(1, round(sheet.width * shrink)), max(1, round(sheet.height * shrink))
    columns = max(1, math.ceil(math.sqrt(len(indices))))
    rows = max(1, math.ceil(len(indices) / columns))
    laid = []
    for whole, _ in shown:
        out = Image.new("RGB", (columns * width, rows * height))
        for at, index in enumerate(indices):
            one = whole.crop(sheet.box(index))
            if shrink < 1:
                one = one.resize((width, height), Image.Resampling.LANCZOS)
            out.paste(one, (at % columns * width, at // columns * height))
        laid.append(out)
    paces = [pace for _, pace in shown]
    moving = {"save_all": True, "append_images": laid[1:], "duration": paces, "loop": 0} if len(laid) > 1 else {}
    exact = width <= 128 or bool(moving)
    return Sprite(_written(laid[0], moving, exact), columns, rows, width, height)


def _written(picture: Any, moving: Mapping[str, Any], exact: bool) -> str:
    """A data URI of a picture or a film: as it is or nearly, or as well as `LARGEST` bytes can tell it."""
    ways = [("PNG", {"optimize": True})] if exact else [("JPEG", {"quality": 88})]
    ways += [("WEBP", {"quality": quality}) for quality in (90, 75, 50, 25, 5)]
    for kind, settings in ways:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **settings, **moving)
        if buffer.tell() <= LARGEST:
            break
    return data_uri(buffer.getvalue(), f"image/{kind.lower()}")


def before_after(first: Evaluated, last: Evaluated, metric: str | None, name: str) -> str:
    """The same prompts and noise under the weights before and after, with a slider over all of them."""
    if first.sheet is None or last.sheet is None:
        return absent("Before and after", f"the evaluation {first.suite} saved no pictures")
    count = min(len(first.texts), len(last.texts), first.sheet.count, last.sheet.count)
    old, new = (e.values.get(metric or "", np.full(count, math.nan)) for e in (first, last))
    chosen = list(range(count))[:MOST_TILES]
    before, after = sprite(first.sheet, chosen), sprite(last.sheet, chosen)
    known = [i for i in chosen if i < len(old) and i < len(new) and np.isfinite(old[i]) and np.isfinite(new[i])]
    tiles = "".join(
        _tile(first.texts[i], before.place(at), after.place(at), *((old[i], new[i]) if i in known else (None, None)))
        for at, i in enumerate(chosen)
    )
    only = _only(name, [(old[i], new[i]) for i in known]) if known else ""
    hides = len(chosen) > SHOWN_AT_FIRST
    few, more = (" few", f'<button type="button" class="more">Show all {len(chosen)}</button>') if hides else ("", "")
    return (
        f'<div class="compare" style="--old:url({before.uri})"><div class="bar">{_views(name)}'
        f'<label class="wipe">before <input type="range" min="0" max="100" value="50" '
        f'aria-label="Position of the border between before and after"> after</label>{only}</div>'
        f'<div class="tiles slide{few}{before.crisp}" style="{after.variables("--new")}">{tiles}</div>{more}</div>'
    )


def _tile(prompt: str, before: str, after: str, old: float | None, new: float | None) -> str:
    if old is None or new is None:
        change, said = "same", ""
    else:
        change = "gained" if new > old else "lost" if new < old else "same"
        tone = {"gained": "better", "lost": "worse", "same": "unknown"}[change]
        said = f'<span class="tag {tone}">{_outcome(old, new)}</span>'
    words = esc(prompt)
    return (
        f'<figure class="tile" data-change="{change}"><div class="frame">'
        f'<div class="pic before" role="img" aria-label="Before: {words}" style="--sheet:var(--old);{before}"></div>'
        f'<div class="pic after" role="img" aria-label="After: {words}" style="--sheet:var(--new);{after}"></div></div>'
        f"<figcaption><b>{words}</b>{said}</figcaption></figure>"
    )


def _outcome(old: float, new: float) -> str:
    words = {0.0: "wrong", 1.0: "right"}
    if {old, new} <= words.keys():
        return f"{words[old]}, still {words[new]}" if old == new else f"{words[old]} → {words[new]}"
    return f"{number(old)} → {number(new)}"


def _views(name: str) -> str:
    modes = (("slide", "Slider"), ("side", "Side by side"), ("show-before", "Before"), ("show-after", "After"))
    return _segments("View", f"{name}-view", "view", modes)


def _only(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    gained, lost = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    modes = (("all", "All"), ("gained", f"Gained {gained}"), ("lost", f"Lost {lost}"))
    return _segments("Show", f"{name}-only", "only", modes)


def _segments(label: str, name: str, data: str, modes: Sequence[tuple[str, str]]) -> str:
    buttons = "".join(
        f'<label><input type="radio" name="{esc(name)}" data-{data}="{mode}"{" checked" if at == 0 else ""}>'
        f"<span>{esc(text)}</span></label>"
        for at, (mode, text) in enumerate(modes)
    )
    return f'<div class="seg" role="radiogroup" aria-label="{label}">{buttons}</div>'


def through_time(passes: Sequence[Evaluated], rows: int = 6, most: int = 8) -> str:
    """The same prompt and noise at every evaluation, left to right."""
    shown = [e for e in passes if e.sheet is not None]
    if len(shown) < 3:
        return ""
    keep = sorted({round(i * (len(shown) - 1) / (most - 1)) for i in range(most)}) if len(shown) > most else None
    shown = [shown[i] for i in keep] if keep else shown
    count = min(rows, *(len(e.texts) for e in shown), *(e.sheet.count for e in shown if e.sheet))
    sprites = [sprite(e.sheet, range(count)) for e in shown if e.sheet]
    sheets = ";".join(f"--t{n}:url({s.uri})" for n, s in enumerate(sprites))
    head = "".join(f"<span>step {e.step}</span>" for e in shown)
    body = "".join(
        f"<div><span>{esc(shown[0].texts[i])}</span>"
        + "".join(
            f'<div class="mini"><div class="pic" role="img" aria-label="step {e.step}: {esc(e.texts[i])}" '
            f'style="--sheet:var(--t{n});{sprites[n].place(i)}"></div></div>'
            for n, e in enumerate(shown)
        )
        + "</div>"
        for i in range(count)
    )
    shape = f"--cols:{sprites[0].columns};--rows:{sprites[0].rows};--aspect:{sprites[0].width / sprites[0].height:.4f}"
    return (
        f'<h3>Through training, one prompt and one noise a row</h3><div class="reel{sprites[0].crisp}" tabindex="0" '
        f'style="--n:{len(shown)};{shape};{sheets}"><div class="head"><span></span>{head}</div>{body}</div>'
    )


def disagreement(parts: np.ndarray) -> np.ndarray:
    """How far apart the parts (rows) of each sample (column) are: the range of its standardised parts.

    Each part is standardised over the valid samples of the step; a part that is constant has nothing to say and is left
    out. NaN where fewer than two parts speak.
    """
    z = standardised(parts)
    told = np.isfinite(z).sum(0)
    spread = np.where(np.isfinite(z), z, -np.inf).max(0) - np.where(np.isfinite(z), z, np.inf).min(0)
    return np.where(told >= 2, spread, np.nan)


def standardised(parts: np.ndarray) -> np.ndarray:
    """Each row minus its mean over its deviation, over its finite entries; NaN where the row does not vary."""
    out = np.full(parts.shape, np.nan)
    for row, values in zip(out, parts, strict=True):
        known = np.isfinite(values)
        if known.sum() > 1 and values[known].std() > 1e-9:
            row[known] = (values[known] - values[known].mean()) / values[known].std()
    return out


def picks(samples: Samples) -> str:
    """Best, worst and most disputed samples of one step."""
    if samples.sheet is None:
        return absent("Samples", f"the pictures of step {samples.step} are not in the folder")
    count = min(samples.sheet.count, len(samples.texts))
    parts = np.array([samples.parts[name][:count] for name in samples.parts]).reshape(len(samples.parts), count)
    apart = disagreement(parts) if len(parts) else np.full(count, np.nan)
    total = samples.total[:count]
    groups = (
        ("Best", "highest total reward", _highest(total, samples.texts)),
        ("Worst", "lowest total reward; is the reward right about them?", _highest(-total, samples.texts)),
        (
            "Most disputed",
            "reward parts furthest apart, each standardised over the step",
            _highest(apart, samples.texts),
        ),
    )
    wanted = sorted({i for _, _, chosen in groups for i in chosen})
    if not wanted:
        return absent("Samples", f"no sample of step {samples.step} has a valid score")
    sheet, z = sprite(samples.sheet, wanted), standardised(parts)
    out = ""
    for title, note, chosen in groups:
        cards = "".join(_pick(samples, i, sheet.place(wanted.index(i)), z[:, i]) for i in chosen)
        why = "the reward has fewer than two parts that vary" if title == "Most disputed" else "all totals are equal"
        out += f'<h3>{title} <span class="aside">{note}</span></h3>'
        out += f'<div class="picks">{cards}</div>' if chosen else absent(title, why)
    return f'<div class="{sheet.crisp.strip()}" style="{sheet.variables()}">{out}</div>'


def _highest(values: np.ndarray, texts: Sequence[str]) -> list[int]:
    """The samples of the highest values, lowest of all excluded; among equals, one of every prompt before a second."""
    known = [i for i in range(len(values)) if np.isfinite(values[i])]
    least = min((values[i] for i in known), default=0.0)
    seen: dict[tuple[float, str], int] = {}
    turn = {}
    for i in known:
        key = (float(values[i]), texts[i])
        turn[i] = seen[key] = seen.get(key, -1) + 1
    return sorted((i for i in known if values[i] > least), key=lambda i: (-values[i], turn[i]))[:PICKS]


def _pick(samples: Samples, index: int, place: str, z: np.ndarray) -> str:
    rows = ""
    for (name, values), score in zip(samples.parts.items(), z, strict=True):
        width = min(abs(score), 3) / 6 * 100 if np.isfinite(score) else 0
        bar = f'<i class="{"up" if score > 0 else "down"}" style="width:{width:.1f}%"></i>' if width else ""
        label = f"{score:+.1f} deviations from the mean" if np.isfinite(score) else "does not vary or is invalid"
        rows += (
            f'<dt>{esc(name)}</dt><dd class="z" title="{label}">{bar}</dd><dd class="num">{number(values[index])}</dd>'
        )
    for name, values in samples.measures.items():
        rows += f'<dt>{esc(name)}</dt><dd class="aside">measured</dd><dd class="num">{number(values[index])}</dd>'
    advantage = number(samples.advantage[index], sign=True) if index < len(samples.advantage) else number(None)
    prompt = esc(samples.texts[index])
    picture = f'<div class="pic" role="img" aria-label="{prompt}" style="{place}"></div>'
    return (
        f'<figure class="card pick"><div class="mini">{picture}</div>'
        f"<figcaption><b>{prompt}</b><dl>{rows}</dl>"
        f'<div class="advantage"><span>total <b class="num">{number(samples.total[index])}</b></span>'
        f'<span>advantage <b class="num">{advantage}</b></span></div></figcaption></figure>'
    )
