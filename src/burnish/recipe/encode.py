"""From settings to plain data, fit for YAML and JSON: the inverse of `decode`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from burnish.recipe import find
from burnish.recipe.decode import settable


def encode(value: Any) -> Any:
    """Plain data with every field written out, defaults too: a run stays what it was when a default changes."""
    if is_dataclass(value) and not isinstance(value, type):
        settings = {name: encode(vars(value)[name]) for name in settable(type(value))}
        if any(find.kind_of(base) for base in type(value).__mro__):
            return {find.name_of(type(value)): settings} if settings else find.name_of(type(value))
        return settings
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
