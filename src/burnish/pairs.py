"""Pictures with captions of one's own, from a folder or from a function.

A folder is what Hugging Face calls an image folder: `metadata.jsonl` holds one JSON object a line, `file_name` (a
picture, as seen from the folder) and `text`. `module:function` names a function without arguments that returns pairs of
a prompt and a picture or video in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from burnish.models.features import read_picture
from burnish.prompts import json_of, named_function, numbered_lines
from burnish.types import Prompt

LIST = "metadata.jsonl"


@dataclass(frozen=True)
class Pair:
    """A caption, and what it is of."""

    prompt: Prompt
    read: Callable[[], Float[Tensor, "*f 3 h w"]]  # the picture or video, in [0, 1]


def read_pairs(name: str, where: str) -> tuple[Pair, ...]:
    """The pairs that `name` stands for; pictures are read when they are asked for.

    Raises ValueError, starting with `where` and with the line, for what is missing, empty or malformed.
    """
    home = Path(name).expanduser()
    if home.is_dir():
        found = _from_folder(home, where)
    elif ":" in name:
        found = _from_function(name, where)
    else:
        raise ValueError(f"{where}: {name!r} is neither a folder (with {LIST}) nor a module:function")
    if not found:
        raise ValueError(f"{where}: {name} holds no pairs; one is needed at least")
    return found


def _from_folder(home: Path, where: str) -> tuple[Pair, ...]:
    file = home / LIST
    if not file.is_file():
        raise ValueError(f'{where}: {file}: no such file; a line of it is {{"file_name": "1.png", "text": "a cat"}}')
    return tuple(_pair(home, line, f"{where}: {file}, line {number}") for number, line in numbered_lines(file))


def _pair(home: Path, line: str, where: str) -> Pair:
    row = json_of(line, where)
    named = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(named, str) or not isinstance(row.get("text"), str):
        raise ValueError(f"{where}: expected file_name and text, both of them strings, got {line.strip()[:60]}")
    if not (home / named).is_file():
        raise ValueError(f"{where}: {home / named}: no such file")
    return Pair(Prompt(f"{home.name}/{named}", row["text"]), partial(read_picture, home / named, where))


def _from_function(name: str, where: str) -> tuple[Pair, ...]:
    found: Any = named_function(name, where)()
    if not isinstance(found, Sequence) or not all(
        isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], Prompt) and isinstance(one[1], Tensor)
        for one in found
    ):
        raise ValueError(f"{where}: {name}: must return a sequence of pairs of burnish.types.Prompt and a Tensor")
    return tuple(Pair(prompt, partial(_itself, picture)) for prompt, picture in found)


def _itself(picture: Tensor) -> Tensor:
    return picture
