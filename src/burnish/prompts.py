"""Prompts from a file or from a function.

`train.txt` holds one prompt a line. `train.jsonl` holds one JSON object a line: `text`, and where wanted `id` and
`facts` (what a rule may check, such as a class id). `module:function` names a function without arguments that returns
prompts.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from burnish.types import Prompt

KEYS = {"text", "id", "facts"}


def read_prompts(name: str) -> tuple[Prompt, ...]:
    """The prompts that `name` stands for, in their order, with distinct ids.

    Raises ValueError, with the line, for a file that is missing, empty or malformed, and for ids that occur twice.
    """
    path = Path(name).expanduser()
    if path.suffix in (".txt", ".jsonl"):
        if not path.is_file():
            raise ValueError(f"{name}: no such prompt file (looked in {path.absolute().parent})")
        return _read_file(path, path.stat().st_mtime_ns)
    if ":" in name:
        return _from_function(name)
    raise ValueError(f"{name}: prompts come from a .txt file, a .jsonl file or a module:function")


@lru_cache(maxsize=8)
def _read_file(path: Path, modified: int) -> tuple[Prompt, ...]:
    """`modified` is in the key of the cache, so that an edited file is read again."""
    parse = _text_line if path.suffix == ".txt" else _json_line
    return _checked(tuple(parse(path, number, line) for number, line in numbered_lines(path)), str(path))


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that say something, with their numbers from 1. Raises ValueError for a file that is no text in UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a text file in UTF-8 (byte {problem.start})") from problem
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def json_of(line: str, where: str) -> Any:
    """What a line of JSON says. Raises ValueError, starting with `where`, for one that is none."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as problem:
        raise ValueError(f"{where}: not JSON: {problem.msg} at column {problem.colno}") from problem


def _text_line(path: Path, number: int, line: str) -> Prompt:
    return Prompt(id=str(number), text=line.strip())


def _json_line(path: Path, number: int, line: str) -> Prompt:
    where = f"{path}, line {number}"
    row = json_of(line, where)
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object such as {{"text": "a red square"}}, got {line.strip()[:60]}')
    if surplus := sorted(row.keys() - KEYS):
        raise ValueError(f"{where}: no key called {surplus[0]!r} (choices: facts, id, text); rules read from facts")
    if not isinstance(row.get("text"), str):
        raise ValueError(f"{where}: 'text' must be a string, got {row.get('text')!r}")
    if not isinstance(row.get("facts", {}), dict):
        raise ValueError(f"{where}: 'facts' must be an object, got {row['facts']!r}")
    return Prompt(id=str(row.get("id", number)), text=row["text"], facts=row.get("facts", {}))


def named_function(name: str, where: str, hint: str = "") -> Callable[..., Any]:
    """What "module:function" names. Raises ValueError, starting with `where`, if there is no such function."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as problem:
        raise ValueError(f"{where}: cannot import {module_name!r}: {problem}") from problem
    found = vars(module).get(attribute)
    if not callable(found):
        raise ValueError(f"{where}: {module_name} has no function {attribute!r}{hint}")
    return found


@lru_cache(maxsize=8)
def _from_function(name: str) -> tuple[Prompt, ...]:
    found = named_function(name, name)()
    if not isinstance(found, Sequence) or not all(isinstance(p, Prompt) for p in found):
        raise ValueError(f"{name}: must return a sequence of burnish.types.Prompt, got {type(found).__name__}")
    return _checked(tuple(found), name)


def _checked(prompts: tuple[Prompt, ...], name: str) -> tuple[Prompt, ...]:
    if not prompts:
        raise ValueError(f"{name}: holds no prompts; one is needed at least")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ValueError(f"{name}: two prompts have the id {prompt.id!r}; ids must differ")
        seen.add(prompt.id)
    return prompts


def distinct_prompts(prompts: Sequence[Prompt]) -> tuple[Int[Tensor, " b"], list[Prompt]]:
    """The prompts without repetition, and for each sample which of them it answers."""
    place: dict[str, int] = {}
    distinct = []
    for prompt in prompts:
        if prompt.id not in place:
            place[prompt.id] = len(distinct)
            distinct.append(prompt)
    return torch.tensor([place[p.id] for p in prompts], dtype=torch.long), distinct


def by_prompt(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The samples of each distinct prompt, by their numbers: they need not lie together."""
    rows, _ = distinct_prompts(prompts)
    return [some.tolist() for some in rows.argsort(stable=True).split(rows.bincount().tolist())]
