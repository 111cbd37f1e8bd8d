"""The page as text: escaping, numbers, pictures as data, and the shell around it all. Nothing in it loads anything."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# No source is allowed but what is inside the file, so a prompt or a reward's note can never make the page call out.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
MINUS, DASH, THIN = "\u2212", "\u2013", "\u202f"


def esc(text: object) -> str:
    """Text that is safe between tags and in quoted attributes."""
    return html.escape(str(text), quote=True)


def number(value: float | None, sign: bool = False) -> str:
    """A number as read: three or four significant digits, a true minus, a dash for one that does not exist."""
    if value is None or math.isnan(value):
        return DASH
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        text = f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")
    else:
        text = f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}"
    return (("+" if sign and value > 0 else "") + text).replace("-", MINUS)


def percent(value: float | None, sign: bool = False) -> str:
    """A share as per cent with one decimal."""
    if value is None or math.isnan(value):
        return DASH
    return (("+" if sign and value > 0 else "") + f"{100 * value:.1f}{THIN}%").replace("-", MINUS)


def points(value: float | None, sign: bool = False) -> str:
    """A difference of shares, in percentage points."""
    if value is None or math.isnan(value):
        return DASH
    return (("+" if sign and value > 0 else "") + f"{100 * value:.1f}").replace("-", MINUS)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 90 else f"{int(hours)} h {int(minutes % 60)} min"


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def inline_json(value: Any) -> str:
    """JSON that can stand inside a script element: '<' cannot close it, and a number that is not one becomes null."""
    return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return (
            float(f"{value:.6g}") if math.isfinite(value) else None
        )  # six digits draw the same curve in half the bytes
    return value


def absent(what: str, why: str) -> str:
    """A piece that is not there, by name and reason."""
    return f'<p class="absent"><b>{esc(what)}</b> {DASH} {esc(why)}</p>'


def command(text: str) -> str:
    return f'<div class="card cmd"><code>{esc(text)}</code><button type="button">Copy</button></div>'


def yaml(text: str) -> str:
    """YAML with its keys, strings, numbers and comments marked."""
    return "\n".join(_yaml_line(line) for line in text.splitlines())


def _yaml_line(line: str) -> str:
    shape = re.match(r"^(\s*(?:- )*)([^\s#:'\"][^:#]*?|'[^']*'|\"[^\"]*\")(:)(\s.*|)$", line)
    if shape:
        return f'{esc(shape[1])}<span class="k">{esc(shape[2])}</span>:{_yaml_value(shape[4])}'
    return _yaml_value(line)


def _yaml_value(text: str) -> str:
    comment = re.search(r"(^|\s)#.*$", text)
    tail = f'<span class="c">{esc(comment[0])}</span>' if comment else ""
    body = text[: comment.start()] if comment else text
    plain = body.strip()
    if re.fullmatch(r"[-+]?[\d.][\d._]*(e[-+]?\d+)?|true|false|null|~", plain, re.IGNORECASE):
        return f'<span class="d">{esc(body)}</span>{tail}'
    return (f'<span class="s">{esc(body)}</span>' if plain and plain not in ("-", "{}", "[]") else esc(body)) + tail


def document(title: str, header: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page. `sections` are (anchor, name in the navigation, content)."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("style.html", "charts.html"))
    links = "".join(f'<li><a href="#{anchor}">{esc(name)}</a></li>' for anchor, name, _ in sections)
    body = "".join(f'<section id="{anchor}">{content}</section>\n' for anchor, _, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{esc(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n{style}</head>\n'
        f'<body><a class="skip" href="#main">Skip to the content</a>\n<header class="top">{header}</header>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main">{body}</main>\n'
        f"<footer>{footer}</footer>\n{script}</body></html>\n"
    )
